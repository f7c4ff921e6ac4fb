"""k-diffusion's image_v1: networks in its layout, what they answer, and walks with its sampler.

Run from the root of the clone:  python tests/golden/k_diffusion.py
Made with Python 3.11, PyTorch 2.15.0 (CPU), safetensors 0.8. k_diffusion_package.py holds the original program to it.

The network is stated here anew; nothing of the original program is in it. Weights are random, and widths tiny. Files go to
crates/ddpm-checkpoint/tests/golden/:
    k_diffusion.pt                 as its train.py writes: config, model, model_ema, opt, ...; with augmentation's conditioning
    k_diffusion_raw                (answers only) of `model` in the same file
    k_diffusion_slim.safetensors   as its convert_for_inference.py writes: float16 with the config beside; patches, a
                                   variance, a skipped stage
    k_diffusion_bare.pt            a state dict alone
each with NAME.answers.safetensors: `x` (as the network sees it), `noise` (ln(sigma) / 4) and its output `y`; for the first
also `start` and where walks over five levels end, by Heun's method (`heun`) and by DPM-Solver++ (`dpm`). crates/ddpm-unet/tests/golden/k_diffusion.safetensors has `x`,
`noise` and `y` of a network of several groups and heads, whose weights `formula` of unet.py makes.
"""

import json
import math
import pathlib
import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent
OUT = HERE.parents[1] / "crates/ddpm-checkpoint/tests/golden"
UNET = HERE.parents[1] / "crates/ddpm-unet/tests/golden"
torch.set_grad_enabled(False)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


class Norm(nn.Module):
    """Groups of 32 channels, scaled and shifted by what the noise level became."""

    def __init__(self, told, channels):
        super().__init__()
        self.groups, self.mapper = max(1, channels // 32), nn.Linear(told, 2 * channels)

    def forward(self, x, told):
        scale, shift = self.mapper(told)[:, :, None, None].chunk(2, 1)
        return F.group_norm(x, self.groups, eps=1e-5) * (1 + scale) + shift


class Block(nn.Module):
    def __init__(self, told, a, between, b):
        super().__init__()
        none = nn.Identity()
        self.main = nn.ModuleList([
            Norm(told, a), none, nn.Conv2d(a, between, 3, padding=1), none,
            Norm(told, between), none, nn.Conv2d(between, b, 3, padding=1), none,
        ])
        self.skip = nn.Conv2d(a, b, 1, bias=False) if a != b else none

    def forward(self, x, told):
        h = self.main[2](F.gelu(self.main[0](x, told)))
        return self.main[6](F.gelu(self.main[4](h, told))) + self.skip(x)


class Attention(nn.Module):
    def __init__(self, told, channels):
        super().__init__()
        self.heads, self.norm_in = max(1, channels // 64), Norm(told, channels)
        self.qkv_proj, self.out_proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x, told):
        b, c, h, w = x.shape
        rows = self.qkv_proj(self.norm_in(x, told)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = rows.unbind(1)
        a = torch.softmax(torch.einsum("bhdn,bhdm->bhnm", q, k) / math.sqrt(c // self.heads), -1)
        return x + self.out_proj(torch.einsum("bhnm,bhdm->bhdn", a, v).reshape(b, c, h, w))


class Resize(nn.Module):
    """Halves or doubles by the filter along each axis; the program keeps it as a tensor, though it never changes."""

    def __init__(self, double):
        super().__init__()
        self.double = double
        self.register_buffer("kernel", torch.outer(FILTER, FILTER) * (4 if double else 1))

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1), "reflect")
        kernel = self.kernel[None, None].expand(x.shape[1], 1, 4, 4).to(x)
        if self.double:
            return F.conv_transpose2d(x, kernel, stride=2, padding=3, groups=x.shape[1])
        return F.conv2d(x, kernel, stride=2, groups=x.shape[1])


class Frequencies(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("weight", torch.randn(width // 2, 1))

    def forward(self, noise):
        angles = (2 * math.pi * noise[:, None]) * self.weight[:, 0]
        return torch.cat([angles.cos(), angles.sin()], 1)


class ImageV1(nn.Module):
    def __init__(self, channels_in, told, depths, widths, attended, patch=1, variance=False, skipped=0, mapping_cond=0):
        super().__init__()
        self.patch, self.variance, self.skipped = patch, variance, skipped
        above = lambda i: widths[max(0, i - 1)]
        self.timestep_embed = Frequencies(told)
        if mapping_cond:
            self.mapping_cond = nn.Linear(mapping_cond, told, bias=False)
        self.mapping = nn.Sequential(nn.Linear(told, told), nn.GELU(), nn.Linear(told, told), nn.GELU())
        pixels = channels_in * patch**2
        self.proj_in = nn.Conv2d(pixels, above(skipped), 1)
        self.proj_out = nn.Conv2d(above(skipped), pixels + variance, 1)

        def level(i, first, last):
            parts, c = [], first
            for j in range(depths[i]):
                to = last if j + 1 == depths[i] else widths[i]
                parts.append(Block(told, c, widths[i], to))
                parts += [Attention(told, to)] if attended[i] else []
                c = to
            return parts

        n = len(widths)
        resize = lambda i, double: Resize(double) if i > skipped else nn.Identity()
        down = [nn.ModuleList([resize(i, False), *level(i, above(i), widths[i])]) for i in range(n)]
        up = [nn.ModuleList([*level(i, widths[i] * (1 if i == n - 1 else 2), above(i)), resize(i, True)]) for i in range(n)]
        self.u_net = nn.Module()
        self.u_net.d_blocks, self.u_net.u_blocks = nn.ModuleList(down), nn.ModuleList(reversed(up))

    def forward(self, x, noise):
        told = self.mapping(self.timestep_embed(noise))

        def through(parts, h):
            for part in parts:
                h = part(h, told) if isinstance(part, (Block, Attention)) else part(h)
            return h

        h, kept = self.proj_in(F.pixel_unshuffle(x, self.patch)), []
        for parts in self.u_net.d_blocks[self.skipped :]:
            h = through(parts, h)
            kept.append(h)
        kept.pop()
        for i, parts in enumerate(self.u_net.u_blocks[: len(kept) + 1]):
            h = through(parts, torch.cat([h, kept.pop()], 1) if i else h)
        h = self.proj_out(h)
        return F.pixel_shuffle(h[:, :-1] if self.variance else h, self.patch)


class Wrapped(nn.Module):
    """The network in what tells it how images were augmented, which is zeros when it samples."""

    def __init__(self, *args, **how):
        super().__init__()
        self.inner_model = ImageV1(*args, **how, mapping_cond=9)

    def forward(self, x, noise):
        return self.inner_model(x, noise)


def randomised(network, dtype):
    """Weights of a size that lets every part be seen in the output, rounded to what will be stored."""
    for p in network.parameters():
        p.copy_(torch.randn_like(p) / math.sqrt(p[0].numel()) if p.dim() > 1 else torch.randn_like(p) * 0.1)
    for p in [*network.parameters(), *network.buffers()]:
        p.copy_(p.to(dtype).float())
    return network.eval()


def denoised(network, x, sigma, data):
    """Karras et al. 2022, table 1, the last column."""
    total = math.sqrt(sigma**2 + data**2)
    noise = torch.full([len(x)], math.log(sigma) / 4)
    return data**2 / total**2 * x + sigma * data / total * network(x / total, noise)


def karras(steps, low, high, rho=7.0):
    ends = [s ** (1 / rho) for s in (high, low)]
    return [(ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** rho for i in range(steps)]


def heun(network, x, sigmas, data):
    """Karras et al. 2022, algorithm 1, to sigma 0."""
    for now, then in zip(sigmas, [*sigmas[1:], 0.0]):
        slope = (x - denoised(network, x, now, data)) / now
        guess = x + (then - now) * slope
        if then > 0:
            slope = (slope + (guess - denoised(network, guess, then, data)) / then) / 2
        x = x + (then - now) * slope
    return x


def dpm(network, x, sigmas, data):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095), its second order as Heun's, to sigma 0: k-diffusion's demonstrations."""
    before = None
    for now, then in zip(sigmas, [*sigmas[1:], 0.0]):
        clean = denoised(network, x, now, data)
        if then == 0:
            return clean
        h = math.log(now / then)
        x, share = then / now * x - math.expm1(-h) * clean, math.expm1(-h) / h + 1
        if before is not None:
            x = x + share * (h / before[1]) * (clean - before[0])
        before = clean, h


def answer(name, network, shape, levels, **more):
    x = torch.randn(len(levels), *shape)
    noise = torch.tensor(levels).log() / 4
    save_file({"x": x, "noise": noise, "y": network(x, noise).contiguous(), **more}, OUT / f"{name}.answers.safetensors")


def state(network, dtype=torch.float32):
    return {name: value.to(dtype) for name, value in network.state_dict().items()}


def model(size, channels, told, depths, widths, attended, **more):
    """The part `model` of a configuration."""
    return {
        "type": "image_v1", "input_channels": channels, "input_size": list(size), "mapping_out": told, "depths": depths,
        "channels": widths, "self_attn_depths": attended, "cross_attn_depths": None, "dropout_rate": 0.05, **more,
    }


FIRST = (3, 8, [1, 2], [4, 8], [False, True])
SLIM = (1, 6, [1, 2, 1], [4, 6, 8], [True, False, True])
BARE = (1, 4, [1, 1], [4, 6], [False, False])


def files():
    torch.manual_seed(21)
    raw, average = (randomised(Wrapped(*FIRST), torch.float32) for _ in range(2))
    told = model([8, 8], *FIRST, sigma_data=0.5, sigma_min=0.02, sigma_max=40.0, augment_wrapper=True, patch_size=1, has_variance=False, skip_stages=0, mapping_cond_dim=0)
    told["sigma_sample_density"] = {"type": "lognormal", "mean": -1.2, "std": 1.2}
    opt = torch.optim.AdamW(raw.parameters(), lr=1e-4, betas=(0.95, 0.999)).state_dict()
    torch.save({
        "config": {"model": told, "dataset": {"type": "imagefolder"}}, "model": state(raw), "model_ema": state(average), "opt": opt,
        "sched": {"last_epoch": 3}, "ema_sched": {"power": 0.75}, "epoch": 1, "step": 2, "gns_stats": None, "elapsed": 12.5,
    }, OUT / "k_diffusion.pt")
    sigmas = karras(5, 0.02, 40.0)
    start = torch.randn(2, 3, 8, 12)
    # diffusers begins EDM's walks a little above sigma_max, where an image of variance 1 would be.
    walks = {walk.__name__: walk(average, start * math.hypot(40.0, 1.0), sigmas, 0.5).contiguous() for walk in (heun, dpm)}
    answer("k_diffusion", average, (3, 8, 12), [40.0, 0.3], start=start, **walks)
    answer("k_diffusion_raw", raw, (3, 8, 12), [0.02, 1.0])

    slim = randomised(ImageV1(*SLIM, patch=2, variance=True, skipped=1), torch.float16)
    told = model([8, 8], *SLIM, sigma_data=0.7, sigma_min=0.01, sigma_max=80, augment_wrapper=False, patch_size=2, has_variance=True, skip_stages=1)
    config = {"config": json.dumps({"model": told, "dataset": {"type": "mnist"}}, indent=4)}
    save_file(state(slim, torch.float16), OUT / "k_diffusion_slim.safetensors", metadata=config)
    answer("k_diffusion_slim", slim, (1, 8, 12), [2.5, 0.1])

    bare = randomised(ImageV1(*BARE), torch.float32)
    torch.save(state(bare), OUT / "k_diffusion_bare.pt")
    answer("k_diffusion_bare", bare, (1, 4, 6), [2.5, 0.1])


def wide():
    """Four groups, two heads; an odd number of patches each way."""
    sys.path.insert(0, str(HERE))
    from unet import formula

    network = ImageV1(2, 16, [1, 1], [32, 128], [False, True], patch=3)
    for name, p in [*network.named_parameters(), ("timestep_embed.weight", network.timestep_embed.weight)]:
        p.copy_(torch.as_tensor(formula(name, p.shape)))
    x = torch.as_tensor(formula("input.x", (2, 2, 18, 12)))
    noise = torch.tensor([0.5, -1.25])
    save_file({"x": x, "noise": noise, "y": network(x, noise).contiguous()}, UNET / "k_diffusion.safetensors")


if __name__ == "__main__":
    files()
    wide()
