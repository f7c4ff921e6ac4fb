"""What diffusers' pipelines make of one small network with one CPU generator: crates/ddpm-sample/tests/golden/pipelines/.

    pip install torch diffusers safetensors scipy
    python tests/golden/torch_pipelines.py          # made with torch 2.15.0, diffusers 0.42.1

Writes the network as diffusers saves it, cases.json (scheduler configuration and flags of every case) and images.safetensors: three
images of every case, two calls of batch size 2 and 1 with the same generator, seed 5, before they are clamped. DDPM and DDIM by their
pipelines (whose clamping is taken away), other schedulers by the loop that diffusers' pipelines for them have.
"""

import json
import logging
import pathlib
from unittest.mock import patch

import diffusers
import torch
from safetensors.torch import save_file

diffusers.utils.logging.set_verbosity(logging.CRITICAL)
FOLDER = pathlib.Path(__file__).parents[2] / "crates/ddpm-sample/tests/golden/pipelines"


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, sample_size=8, in_channels=3, out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@torch.no_grad()
def by_pipeline(pipeline, n, generator, steps, **how):
    pipeline.set_progress_bar_config(disable=True)
    # (image / 2 + 0.5).clamp(0, 1) without the clamp.
    with patch.object(torch.Tensor, "clamp", lambda x, low=None, high=None, clamp=torch.Tensor.clamp: x if (low, high) == (0, 1) else clamp(x, low, high)):
        image = pipeline(batch_size=n, generator=generator, num_inference_steps=steps, output_type="np", **how).images
    return torch.from_numpy(image).permute(0, 3, 1, 2) * 2 - 1


@torch.no_grad()
def by_loop(scheduler, n, generator, steps):
    x = torch.randn(n, 3, 8, 8, generator=generator) * scheduler.init_noise_sigma
    scheduler.set_timesteps(steps)
    import inspect

    more = dict(generator=generator) if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        x = scheduler.step(UNET(scheduler.scale_model_input(x, t), t).sample, t, x, **more).prev_sample
    return x


def case(name, cls, steps, flags="", how=None, **keys):
    scheduler = getattr(diffusers, cls)(**keys)
    generator = torch.Generator().manual_seed(5)
    parts = []
    for n in (2, 1):
        if cls == "DDPMScheduler":
            parts.append(by_pipeline(diffusers.DDPMPipeline(UNET, scheduler), n, generator, steps))
        elif cls == "DDIMScheduler":
            parts.append(by_pipeline(diffusers.DDIMPipeline(UNET, scheduler), n, generator, steps, **(how or {})))
        else:
            parts.append(by_loop(scheduler, n, generator, steps))
    IMAGES[name] = torch.cat(parts).float().contiguous()
    config = json.loads(scheduler.to_json_string(), parse_constant=lambda _: None)
    CASES.append(dict(name=name, scheduler=config, flags=f"--steps {steps} {flags}".strip()))


UNET, CASES, IMAGES = unet(), [], {}
case("ddpm", "DDPMScheduler", 10)
case("ddpm trailing", "DDPMScheduler", 6, timestep_spacing="trailing", variance_type="fixed_large")
case("ddim", "DDIMScheduler", 10)
case("ddim eta", "DDIMScheduler", 7, "--eta 0.6", dict(eta=0.6))
case("dpm++sde", "DPMSolverMultistepScheduler", 8, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)
case("euler-a", "EulerAncestralDiscreteScheduler", 8)
case("kdpm2-a", "KDPM2AncestralDiscreteScheduler", 5, beta_start=1e-4, beta_end=0.02)
case("unipc", "UniPCMultistepScheduler", 8, prediction_type="v_prediction")
case("pndm", "PNDMScheduler", 6)

FOLDER.mkdir(parents=True, exist_ok=True)
UNET.save_pretrained(FOLDER / "unet")
save_file(IMAGES, FOLDER / "images.safetensors")
(FOLDER / "cases.json").write_text("[\n" + ",\n".join(json.dumps(c, sort_keys=True) for c in CASES) + "\n]\n")
for name, images in IMAGES.items():
    print(name, images.std().item(), images[0, 0, -3:, -1].tolist())
