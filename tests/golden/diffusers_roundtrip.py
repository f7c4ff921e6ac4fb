"""A checkpoint of ours in diffusers, and a model of diffusers in ours: same x_T, same images.

    python tests/golden/diffusers_roundtrip.py target/release/ddpm-sample CHECKPOINT...

For every checkpoint (and for small networks that diffusers itself trains for a moment and saves):
  1. DDPMPipeline.from_pretrained(CHECKPOINT) loads and makes an image;
  2. a written loop with DDIMScheduler.from_config, 50 steps, eta 0, from one x_T, equals ddpm-sample to 1e-4;
  3. a written loop with DDPMScheduler, 20 steps, with the noise of every step from one file, equals ddpm-sample to 1e-4.
The largest differences are printed, and beside them how far diffusers in f32 is from diffusers in f64: a network that was
never trained makes the walk chaotic (1e-6 in x_T grows to 0.1 and more in 50 steps), so such networks prove nothing.
Needs torch, diffusers, safetensors.
"""

import subprocess
import sys
import tempfile
from unittest.mock import patch

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm as module
from safetensors.torch import load_file, save_file

N = 4
torch.set_num_threads(1)


def ours(program, model, noise, flags):
    with tempfile.TemporaryDirectory() as folder:
        save_file(noise, f"{folder}/noise.safetensors")
        command = [program, "--model", model, "--noise", f"{folder}/noise.safetensors", "--quiet"]
        subprocess.run(command + ["--out", f"{folder}/out.safetensors"] + flags, check=True)
        return load_file(f"{folder}/out.safetensors")["samples"]


@torch.no_grad()
def ddim(pipeline, x, steps):
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(pipeline.unet(x, t).sample, t, x, eta=0.0).prev_sample
    return x


@torch.no_grad()
def ddpm(pipeline, x, step_noise, steps):
    """DDPMScheduler.step with its noise taken from a file: it draws by randn_tensor whenever t > 0."""
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    for k, t in enumerate(scheduler.timesteps):
        last = k + 1 == steps
        # With trailing spacing diffusers draws noise at the last step too, although there is no step after it; the
        # paper's algorithm (and ours) does not.
        noise = torch.zeros_like(x) if last else step_noise[k]
        with patch.object(module, "randn_tensor", lambda *args, **kwargs: noise):
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    return x


def check(program, model):
    pipeline = DDPMPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(num_inference_steps=3).images[0]
    unet = pipeline.unet.config
    size = unet.sample_size if isinstance(unet.sample_size, (list, tuple)) else [unet.sample_size] * 2
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(N, unet.in_channels, *size, generator=generator)
    step_noise = torch.randn(20, *noise.shape, generator=generator)
    print(f"{model}: {type(pipeline).__name__} made a picture of {picture.size}")
    pairs = [
        ("ddim, 50 steps", ddim(pipeline, noise, 50), ours(program, model, {"noise": noise}, ["--steps", "50"])),
        (
            "ddpm, 20 steps",
            ddpm(pipeline, noise, step_noise, 20),
            ours(program, model, {"noise": noise, "step_noise": step_noise}, ["--sampler", "ddpm", "--steps", "20"]),
        ),
    ]
    pipeline.unet.double()
    exact = [ddim(pipeline, noise.double(), 50), ddpm(pipeline, noise.double(), step_noise.double(), 20)]
    for (name, theirs, mine), exact in zip(pairs, exact):
        difference, own = (theirs - mine).abs(), (theirs - exact).abs().max()
        print(
            f"  {name}: largest difference {difference.max():.2e}, mean {difference.mean():.2e};"
            f" diffusers f32 against f64 {own:.2e}; std of images {mine.std():.3f}"
        )
        assert difference.max() < 1e-4


def small_model(folder, scheduler):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=(8, 16),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    train(unet, scheduler)
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)


def train(unet, scheduler, steps=150):
    """Stripes of any brightness and phase: enough for a walk that is not chaotic."""
    adam = torch.optim.Adam(unet.parameters(), lr=2e-3)
    columns = torch.arange(16) / 16 * 6.28
    for _ in range(steps):
        x_0 = (0.5 * torch.sin(columns + 6.28 * torch.rand(16, 3, 1, 1)) + torch.rand(16, 3, 1, 1) - 0.5).expand(16, 3, 8, 16)
        eps, t = torch.randn(x_0.shape), torch.randint(0, 1000, (16,))
        target = {
            "epsilon": lambda: eps,
            "sample": lambda: x_0,
            "v_prediction": lambda: scheduler.get_velocity(x_0, eps, t),
        }[scheduler.config.prediction_type]()
        loss = (unet(scheduler.add_noise(x_0, eps, t), t).sample - target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()


if __name__ == "__main__":
    program, models = sys.argv[1], sys.argv[2:]
    for model in models:
        check(program, model)
    for scheduler in [
        DDPMScheduler(),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"),
        DDPMScheduler(prediction_type="sample", variance_type="fixed_large", clip_sample=False),
        DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
    ]:
        with tempfile.TemporaryDirectory() as folder:
            small_model(folder, scheduler)
            check(program, folder)
