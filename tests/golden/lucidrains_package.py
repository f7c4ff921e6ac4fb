"""Holds the original program to tests/golden/lucidrains.py: denoising-diffusion-pytorch itself loads the files.

Run from the root of the clone, with einops at hand:  python tests/golden/lucidrains_package.py FOLDER
FOLDER/VERSION/denoising_diffusion_pytorch is the unpacked package of each version below. What it only imports for
training (torchvision, ema_pytorch, accelerate) may be missing. Prints the largest difference of each answer.
"""

import importlib
import pathlib
import sys
import types

import torch
from safetensors.torch import load_file

GOLDEN = pathlib.Path(__file__).parents[2] / "crates/ddpm-checkpoint/tests/golden"
torch.set_grad_enabled(False)
torch.set_num_threads(1)

# The arguments that were ours, by file; versions whose outputs it holds.
CASES = {
    "lucidrains": (dict(dim=4, dim_mults=(1, 2), full_attn=(False, True), attn_heads=(2, 3), attn_dim_head=(3, 2)), ["2.3.4"]),
    "lucidrains_self": (dict(dim=4, init_dim=6, dim_mults=(1, 3, 2), channels=1, self_condition=True, full_attn=(False, True, False), attn_heads=(1, 2, 2), attn_dim_head=(4, 3, 5)), ["2.0.12"]),
    "lucidrains_learned": (dict(dim=4, dim_mults=(2, 1), learned_variance=True, random_fourier_features=True, learned_sinusoidal_dim=6, full_attn=(True, False), attn_heads=(2, 1), attn_dim_head=(2, 3)), ["2.1.1"]),
    "lucidrains_1_9": (dict(dim=4, dim_mults=(1, 2), full_attn=(False, True), attn_heads=(2, 2), attn_dim_head=(3, 2), resnet_block_groups=2), ["1.9.6"]),
    "lucidrains_1_8": (dict(dim=4, dim_mults=(1, 2), full_attn=(False, True), attn_heads=(2, 2), attn_dim_head=(3, 2), resnet_block_groups=2), ["1.8.9"]),
    "lucidrains_pixels": (dict(dim=4, dim_mults=(1, 2), channels=1, resnet_block_groups=2), ["1.5.4", "1.7.0", "1.7.1", "1.7.2", "1.7.7"]),
    "lucidrains_strided": (dict(dim=4, dim_mults=(1, 2), channels=1, resnet_block_groups=2), ["0.26.5", "0.27.3", "0.28.0"]),
    "lucidrains_biased": (dict(dim=4, dim_mults=(1, 2), channels=1, resnet_block_groups=2), ["0.22.0", "0.26.0", "0.26.4"]),
}
# How the walks were trained.
WALKS = {
    "lucidrains": dict(beta_schedule="sigmoid", timesteps=12, objective="pred_v"),
    "lucidrains_self": dict(beta_schedule="cosine", timesteps=9, objective="pred_x0", min_snr_loss_weight=True),
    "lucidrains_learned": dict(beta_schedule="linear", timesteps=40, objective="pred_noise"),
}


class Anything(types.ModuleType):
    """A module that has every name."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for name in ("torchvision", "torchvision.transforms", "torchvision.utils", "ema_pytorch", "accelerate", "pytorch_fid", "pytorch_fid.fid_score", "pytorch_fid.inception"):
    sys.modules[name] = Anything(name)


def package(folder, version):
    for name in [name for name in sys.modules if name.startswith("denoising_diffusion_pytorch")]:
        del sys.modules[name]
    package = types.ModuleType("denoising_diffusion_pytorch")  # without its __init__, which imports all of it
    package.__path__ = [str(folder / version / "denoising_diffusion_pytorch")]
    sys.modules["denoising_diffusion_pytorch"] = package
    return importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")


def network(file, key):
    """The network's own tensors in a file, and the buffers around it."""
    state = torch.load(GOLDEN / f"{file}.pt", weights_only=True)
    state = state.get(key, state)
    if "ema_model.betas" in state:
        state = {k.removeprefix("ema_model."): v for k, v in state.items() if k.startswith("ema_model.")}
    own = {k.removeprefix("model."): v.float() for k, v in state.items() if k.startswith("model.")}
    return (own, state) if own else ({k: v.float() for k, v in state.items()}, {})


def differ(what, found, expected):
    print(f"{what:40} {float((found - expected).abs().max()):.1e} of {float(expected.abs().max()):.2f}")


def main():
    folder = pathlib.Path(sys.argv[1])
    for file, (arguments, versions) in CASES.items():
        known = load_file(GOLDEN / f"{file}.safetensors")
        for version in versions:
            module = package(folder, version)
            unet = module.Unet(**arguments)
            own, buffers = network(file, "ema" if file == "lucidrains" else "model")
            for name, parameter in unet.named_parameters():
                if name.endswith("mem_kv"):
                    parameter.data = torch.empty_like(own[name])  # 3 of them, not 4
            unet.load_state_dict(own)
            unet.eval()
            key = f"y.{version}" if f"y.{version}" in known else "y"
            differ(f"{file} {version} {key}", unet(known["x"], known["time"]), known[key])
            if "y_after" in known:
                differ(f"{file} {version} y_after", unet(known["x"], known["time"], known["x_0_hat"]), known["y_after"])
            if file in WALKS:
                walks(module, folder, version, file, unet, known, buffers)


def walks(module, folder, version, file, unet, known, buffers):
    size = tuple(known["noise"].shape[-2:])
    kind = module.GaussianDiffusion
    if file == "lucidrains_learned":
        kind = importlib.import_module("denoising_diffusion_pytorch.learned_gaussian_diffusion").LearnedGaussianDiffusion
        unet.random_or_learned_sinusoidal_cond = False  # it refuses these frequencies, for no reason of the walk's
    diffusion = kind(unet, image_size=size, **WALKS[file])
    for name in ("betas", "loss_weight"):
        if name in buffers:
            differ(f"{file} {version} {name}", getattr(diffusion, name), buffers[name])
    draws = iter([known["noise"], *known["step_noise"]])
    module.torch.randn = lambda *_, **__: next(draws)
    module.torch.randn_like = lambda *_, **__: next(draws)
    try:
        if file == "lucidrains_learned":
            # Its p_sample hands on an argument (x_self_cond) that its own p_mean_variance passes over.
            end = ancestral(diffusion, next(draws), draws)
        else:
            end = diffusion.p_sample_loop(known["noise"].shape) * 2 - 1
    finally:
        torch.randn, torch.randn_like = RANDN
    differ(f"{file} {version} walk", end, known["end"])
    if file != "lucidrains_learned":
        torch.manual_seed(5)
        differ(f"{file} {version} seed 5", diffusion.sample(len(end)) * 2 - 1, known["seeded"])


RANDN = (torch.randn, torch.randn_like)


def ancestral(diffusion, x, draws):
    for t in reversed(range(diffusion.num_timesteps)):
        times = torch.full((len(x),), t)
        mean, _, log_variance, _ = diffusion.p_mean_variance(x=x, t=times, clip_denoised=True)
        x = mean + (0.5 * log_variance).exp() * (next(draws) if t else 0)
    return x


main()
