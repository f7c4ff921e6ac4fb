"""Golden values of crates/ddpm-samplers from diffusers' DDPM, DDIM and DDIMInverse schedulers.

    pip install torch diffusers numpy
    python tests/golden/samplers.py          # made with torch 2.15.0, diffusers 0.42.1

Writes crates/ddpm-samplers/tests/golden/loops.json: for every case the scheduler's configuration as diffusers saves it,
the arguments of the loop, and x at the end of every loop (some also in the middle).
Start, noise and network are formulas, the same here and in the Rust test, so that no random generator is needed:
    x_T[i]      = sin(0.7 i + 0.3) * 1.4
    noise[k][i] = sin(1.3 i + 2.1 k + 0.5) * 1.4
    network     = 0.6 x + 0.3 cos(3 x) - 0.2 sin(t / 100)      (t: the network time)
over the flat index i of [2, 3, 4, 6]; x_T and noise are computed in float64 and rounded to float32.
"""

import json
import pathlib

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

FILE = pathlib.Path(__file__).parents[2] / "crates/ddpm-samplers/tests/golden/loops.json"
SHAPE = (2, 3, 4, 6)
I = np.arange(np.prod(SHAPE), dtype=np.float64)


def tensor(values):
    return torch.tensor(values.reshape(SHAPE), dtype=torch.float32)


def start():
    return tensor(np.sin(0.7 * I + 0.3) * 1.4)


def noise(k):
    return tensor(np.sin(1.3 * I + 2.1 * k + 0.5) * 1.4)


def network(x, t):
    return 0.6 * x + 0.3 * torch.cos(3 * x) - 0.2 * np.sin(float(t) / 100)


def loop(scheduler, steps, **arguments):
    """x after every step; arguments go to step()."""
    scheduler.set_timesteps(steps)
    x, drawn = start(), 0
    xs = []
    for t in scheduler.timesteps:
        more = dict(arguments)
        if isinstance(scheduler, DDPMScheduler):
            # DDPMScheduler draws for itself: hand it ours.
            scheduling_ddpm.randn_tensor = lambda *_, k=drawn, **__: noise(k)
        elif arguments.get("eta"):
            more["variance_noise"] = noise(drawn)
        drawn += 1
        x = scheduler.step(network(x, t), t, x, **more).prev_sample
        xs.append(x)
    return xs


def case(name, kind, steps, arguments=None, **settings):
    scheduler = kind(**settings)
    xs = loop(scheduler, steps, **(arguments or {}))
    return dict(
        name=name,
        config=json.loads(scheduler.to_json_string()),
        steps=steps,
        arguments=arguments or {},
        timesteps=[int(t) for t in scheduler.timesteps[:60]],
        middle=flat(xs[len(xs) // 2]),
        end=flat(xs[-1]),
    )


def flat(x):
    """Every 7th element: enough to see any axis swapped, small enough to read."""
    return [round(float(v), 7) for v in x.flatten()[::7]]


V = dict(prediction_type="v_prediction")
X0 = dict(prediction_type="sample")
CASES = [
    case("ddpm 1000", DDPMScheduler, 1000),
    case("ddpm 50 leading", DDPMScheduler, 50, variance_type="fixed_large"),
    case("ddpm 20 trailing v", DDPMScheduler, 20, timestep_spacing="trailing", **V),
    case("ddpm 30 linspace x_0 cosine", DDPMScheduler, 30, timestep_spacing="linspace", beta_schedule="squaredcos_cap_v2", **X0),
    case("ddpm 25 sigmoid, no clip", DDPMScheduler, 25, beta_schedule="sigmoid", clip_sample=False),
    case("ddpm 25 laplace", DDPMScheduler, 25, beta_schedule="laplace"),
    case("ddpm 100 of 100 trained betas", DDPMScheduler, 100, trained_betas=[0.001 * (i + 1) for i in range(100)], num_train_timesteps=100),
    case("ddim 50 trailing", DDIMScheduler, 50, timestep_spacing="trailing"),
    case("ddim 50 leading offset", DDIMScheduler, 50, steps_offset=1, set_alpha_to_one=False, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
    case("ddim 50 eta 1", DDIMScheduler, 50, dict(eta=1.0)),
    case("ddim 50 trailing eta 0.5 v", DDIMScheduler, 50, dict(eta=0.5), timestep_spacing="trailing", **V),
    case("ddim 50 from clipped", DDIMScheduler, 50, dict(use_clipped_model_output=True), timestep_spacing="trailing"),
    case("ddim 20 x_0 range 0.7", DDIMScheduler, 20, clip_sample_range=0.7, timestep_spacing="trailing", **X0),
    case("ddim 50 zero snr v", DDIMScheduler, 50, timestep_spacing="trailing", rescale_betas_zero_snr=True, **V),
    case("ddim 50 cosine v", DDIMScheduler, 50, timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2", **V),
    case("ddim 50 cosine", DDIMScheduler, 50, timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2"),
    case("ddim 30 trailing, stride", DDIMScheduler, 30, timestep_spacing="trailing"),
    case("ddim 24 linspace, stride", DDIMScheduler, 24, timestep_spacing="linspace"),
    case("inverse 50", DDIMInverseScheduler, 50),
    case("inverse 50 v", DDIMInverseScheduler, 50, **V),
    case("inverse 20 trailing, no clip", DDIMInverseScheduler, 20, timestep_spacing="trailing", clip_sample=False),
]

FILE.parent.mkdir(parents=True, exist_ok=True)
FILE.write_text("[\n" + ",\n".join(json.dumps(c, sort_keys=True) for c in CASES) + "\n]\n")
print(FILE, FILE.stat().st_size)
