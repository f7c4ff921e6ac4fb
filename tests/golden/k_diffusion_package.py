"""Holds the original program to tests/golden/k_diffusion.py: k-diffusion itself loads the files.

Run from the root of the clone:  python tests/golden/k_diffusion_package.py FOLDER
FOLDER has k_diffusion 0.1.1, dctorch and einops unpacked; what it only imports for training or other samplers
(torchvision, torchsde, torchdiffeq, skimage) may be missing. Said, with PyTorch 2.15.0: see the end.
"""

import json
import math
import pathlib
import sys
import types

import torch
from safetensors import safe_open
from safetensors.torch import load_file

GOLDEN = pathlib.Path(__file__).parents[2] / "crates/ddpm-checkpoint/tests/golden"
torch.set_grad_enabled(False)
torch.set_num_threads(1)


class Anything(types.ModuleType):
    """A module that has every name."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


sys.path.insert(0, sys.argv[1])
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchsde", "torchdiffeq", "skimage"):
    sys.modules[name] = Anything(name)
def merge(base, head):
    """jsonmerge's, of dicts within dicts."""
    both = isinstance(base, dict) and isinstance(head, dict)
    return {key: merge(base[key], head[key]) if key in base and key in head else {**base, **head}[key] for key in {**base, **head}} if both else head


sys.modules["jsonmerge"] = types.ModuleType("jsonmerge")
sys.modules["jsonmerge"].merge = merge
package = types.ModuleType("k_diffusion")  # without its __init__, which imports all of it
package.__path__ = [str(pathlib.Path(sys.argv[1]) / "k_diffusion")]
sys.modules["k_diffusion"] = package
from k_diffusion import config, layers, sampling


def compare(name, found, known):
    print(f"{name}: {(found - known).abs().max() / known.abs().max():.0e} of the largest number apart at most")


def answer(name, network, answers):
    known = load_file(GOLDEN / f"{answers}.answers.safetensors")
    compare(name, network(known["x"], (4 * known["noise"]).exp()), known["y"])
    return known


def made(told, state):
    told = merge(told, {"model": {"dropout_rate": 0.0}})  # its attention drops out in evaluation too
    network = config.make_model(config.load_config(told)).eval()
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return network


file = torch.load(GOLDEN / "k_diffusion.pt")
network = made(file["config"], file["model_ema"])
known = answer("model_ema", network, "k_diffusion")
answer("model", made(file["config"], file["model"]), "k_diffusion_raw")
told = file["config"]["model"]
denoiser = layers.Denoiser(network, sigma_data=told["sigma_data"])
sigmas = sampling.get_sigmas_karras(5, told["sigma_min"], told["sigma_max"], rho=7.0)
start = known["start"] * math.hypot(told["sigma_max"], 1.0)
compare("Heun's walk", sampling.sample_heun(denoiser, start, sigmas, disable=True), known["heun"])
walked = sampling.sample_dpmpp_2m_sde(denoiser, start, sigmas, eta=0.0, solver_type="heun", disable=True, noise_sampler=lambda *_: 0.0)
compare("DPM-Solver++'s walk", walked, known["dpm"])

slim = GOLDEN / "k_diffusion_slim.safetensors"
with safe_open(slim, "pt") as opened:
    told = json.loads(opened.metadata()["config"])
answer("slim", made(told, load_file(slim)), "k_diffusion_slim")
