"""The digits preset trained in diffusers, beside checkpoints of ours: the same measure for both.

    python tests/golden/diffusers_training.py --steps 1200 --seeds 0 1 2 --ours runs/a/checkpoints/step-00001200 ...

For every seed a network of the same configuration is trained in PyTorch on the same digits with the same optimiser,
learning rate, warm-up, clipping, batch and EMA. Then every network, theirs and ours (read by diffusers), gets:
  1. the loss on the held-out digits, 40 passes with the same t and the same noise for every network;
  2. the Frechet distance between 1,497 images (DDIM, 50 steps, the same x_T for every network) and the training digits,
     on the 64 pixels themselves; between the held-out and the training digits it is printed too, for scale.
The first network of each kind leaves a grid of 64 in --out. Needs torch, diffusers, numpy, scipy, pillow.
"""

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from PIL import Image

DIGITS = Path(__file__).parents[2] / "crates/ddpm-data/digits"
BATCH, LEARNING_RATE, WARM_UP, EMA = 32, 1e-3, 100, 0.998
SCHEDULER = DDPMScheduler()


def digits(name):
    pixels = np.frombuffer(gzip.open(DIGITS / f"{name}-images-idx3-ubyte.gz").read(), np.uint8, offset=16)
    return torch.tensor(pixels.reshape(-1, 1, 8, 8).astype(np.float32) / 127.5 - 1)


def train(x, steps, seed):
    torch.manual_seed(seed)
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_num_groups=8,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    average = [p.detach().clone() for p in net.parameters()]
    adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    started = time.time()
    for step in range(1, steps + 1):
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1, step / WARM_UP)
        x_0 = x[torch.randint(0, len(x), (BATCH,))]
        eps, t = torch.randn_like(x_0), torch.randint(0, 1000, (BATCH,))
        loss = (net(SCHEDULER.add_noise(x_0, eps, t), t).sample - eps).square().mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        with torch.no_grad():
            for a, p in zip(average, net.parameters()):
                a.lerp_(p, 1 - min(EMA, (1 + step) / (10 + step)))
    with torch.no_grad():
        for a, p in zip(average, net.parameters()):
            p.copy_(a)
    print(f"diffusers seed {seed}: {steps} steps, {steps * BATCH / (time.time() - started):.0f} images/s", flush=True)
    return net


@torch.no_grad()
def held_out(net, x):
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(40):
        eps, t = torch.randn(x.shape, generator=generator), torch.randint(0, 1000, (len(x),), generator=generator)
        losses.append(float((net(SCHEDULER.add_noise(x, eps, t), t).sample - eps).square().mean()))
    return np.mean(losses)


@torch.no_grad()
def images(net, count):
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    return x.clamp(-1, 1)


def frechet(a, b):
    a, b = a.flatten(1).double().numpy(), b.flatten(1).double().numpy()
    (s, u) = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ u).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + u - 2 * root)


def save_grid(x, path):
    pixels = ((x[:64] + 1) * 127.5).round().byte().numpy().reshape(8, 8, 8, 8).transpose(0, 2, 1, 3).reshape(64, 64)
    Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    flags = argparse.ArgumentParser()
    flags.add_argument("--steps", type=int, default=1200)
    flags.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    flags.add_argument("--ours", nargs="*", default=[])
    flags.add_argument("--out", type=Path, default=Path("."))
    flags = flags.parse_args()
    torch.set_num_threads(2)
    x, y = digits("train"), digits("t10k")
    nets = [(f"ours {path}", UNet2DModel.from_pretrained(path, subfolder="unet")) for path in flags.ours]
    nets += [(f"diffusers seed {seed}", train(x, flags.steps, seed)) for seed in flags.seeds]
    print(f"held-out digits themselves: Frechet distance {frechet(x, y):.2f}")
    for k, (name, net) in enumerate(nets):
        made = images(net.eval(), len(x))
        print(f"{name}: held-out loss {held_out(net, y):.4f}, Frechet distance {frechet(x, made):.2f}", flush=True)
        if k in (0, len(flags.ours)):
            save_grid(made, flags.out / f"{name.split()[0]}.png")
