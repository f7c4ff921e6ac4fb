"""Twenty optimiser steps in diffusers and PyTorch: losses and gradient norms that ddpm-train must reproduce.

    python tests/golden/train_20_steps.py > crates/ddpm-train/tests/it/train_20_steps.txt

torch 2.15.0, diffusers 0.42.1. Weights, images and noise come from an integer hash that both sides compute, so that the
file holds only results. Lines: step, loss, gradient norm before clipping. The last two lines are ten steps of
AdamW and of Adam alone on six numbers.
"""

import torch
from diffusers import DDPMScheduler, UNet2DModel

MASK = 0xFFFFFFFF


def uniform(i, k):
    """A number in [-1, 1) for element i of thing k."""
    x = ((i + 1) * 2654435761 + k * 2246822519) & MASK
    x ^= x >> 15
    x = (x * 2246822519) & MASK
    x ^= x >> 13
    return x / 2**31 - 1


def tensor(shape, k, scale, offset=0.0):
    n = torch.Size(shape).numel()
    values = torch.tensor([uniform(i, k) for i in range(n)], dtype=torch.float64)
    return (offset + scale * values).float().reshape(shape)


def weight(name, shape, k):
    if len(shape) > 1:
        return tensor(shape, k, (3 / torch.Size(shape[1:]).numel()) ** 0.5)
    return tensor(shape, k, 0.1, 1.0 if name.endswith("weight") else 0.0)


def twenty_steps():
    model = UNet2DModel(
        sample_size=(8, 12), in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None, norm_num_groups=4, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
        norm_eps=1e-6,
    )
    names = sorted(name for name, _ in model.named_parameters())
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for k, name in enumerate(names):
            parameters[name].copy_(weight(name, parameters[name].shape, k))
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    for step in range(20):
        x_0 = tensor((4, 3, 8, 12), 1000 + step, 1.0)
        eps = tensor((4, 3, 8, 12), 2000 + step, 3**0.5)
        t = torch.tensor([int((uniform(b, 3000 + step) + 1) / 2 * 1000) for b in range(4)])  # 0..999
        x_t = scheduler.add_noise(x_0, eps, t)
        loss = torch.nn.functional.mse_loss(model(x_t, t).sample, eps)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(f"{step + 1} {loss.item():.9} {norm.item():.9}")


def ten_steps(optimizer, **options):
    p = torch.nn.Parameter(tensor((2, 3), 1, 1.0))
    optimizer = optimizer([p], lr=0.05, betas=(0.8, 0.95), eps=1e-6, **options)
    for step in range(10):
        p.grad = tensor((2, 3), 10 + step, 2.0)
        optimizer.step()
    print(*[f"{value:.9}" for value in p.detach().flatten().tolist()])


torch.manual_seed(0)
twenty_steps()
ten_steps(torch.optim.AdamW, weight_decay=0.1)
ten_steps(torch.optim.Adam)
