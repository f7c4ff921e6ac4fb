"""Golden values of crates/ddpm-samplers' walks over levels from diffusers' DPM-Solver, Euler and Heun schedulers.

    pip install torch diffusers numpy
    python tests/golden/schedulers.py          # made with torch 2.15.0, diffusers 0.42.1

Writes crates/ddpm-samplers/tests/golden/levels.json: for every case the scheduler's configuration as diffusers saves it,
the levels and times, and x in the middle and at the end of the loop. Start, noise and network are the formulas of
samplers.py. diffusers keeps alpha-bar in float32, which costs sigma near the clean image four digits; here the schedulers
get it in float64, so that the algorithms are compared and not the tables.
Images are handed to the Euler and Heun schedulers in their own scale, x_t / sqrt(alpha-bar_t), and written down as x_t.
"""

import json
import pathlib

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler as Dpm,
    EulerAncestralDiscreteScheduler as Ancestral,
    EulerDiscreteScheduler as Euler,
    HeunDiscreteScheduler as Heun,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete

FILE = pathlib.Path(__file__).parents[2] / "crates/ddpm-samplers/tests/golden/levels.json"
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


def alpha_bars(config):
    n, a, b = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    if config["beta_schedule"] == "linear":
        betas = np.linspace(a, b, n)
    elif config["beta_schedule"] == "scaled_linear":
        betas = np.linspace(a**0.5, b**0.5, n) ** 2
    else:
        f = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f((np.arange(n) + 1) / n) / f(np.arange(n) / n), 0.999)
    a = np.cumprod(1 - betas)
    if config["rescale_betas_zero_snr"]:
        # Lin et al. 2023, algorithm 1, on the root of alpha-bar; the last one as diffusers has it.
        r = a**0.5
        a = ((r - r[-1]) * r[0] / (r[0] - r[-1])) ** 2
        a[-1] = 2.0**-24
    return torch.tensor(a)


def loop(scheduler, steps):
    """x_t after every step, at the scale of the level after it."""
    config = dict(scheduler.config)
    config.setdefault("rescale_betas_zero_snr", False)
    table = alpha_bars(config)
    near = scheduler.alphas_cumprod.double()
    assert torch.allclose(near, table, rtol=1e-4, atol=2e-7), (near - table).abs().max()
    scheduler.alphas_cumprod = table
    scheduler.set_timesteps(steps)
    exploding = not isinstance(scheduler, Dpm)
    x = start() * float(scheduler.init_noise_sigma)
    xs = []
    for k, t in enumerate(scheduler.timesteps):
        more = {}
        if exploding:
            scheduling_euler_ancestral_discrete.randn_tensor = lambda *_, **__: noise(k)
        elif scheduler.config.algorithm_type.startswith("sde"):
            more["variance_noise"] = noise(k)
        model_input = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(model_input, t), t, x, **more).prev_sample
        sigma = float(scheduler.sigmas[scheduler.step_index])
        xs.append(x / (sigma**2 + 1) ** 0.5 if exploding else x)
    # Every second step of Heun is only half of one.
    return xs[1::2] + xs[-1:] if isinstance(scheduler, Heun) else xs


def case(name, kind, steps, **settings):
    scheduler = kind(**settings)
    # -Infinity (lambda_min_clipped) is no JSON.
    config = json.loads(scheduler.to_json_string(), parse_constant=lambda _: None)
    xs = loop(scheduler, steps)
    assert len(xs) == steps
    sigmas = [float(s) for s in dict.fromkeys(scheduler.sigmas.tolist())]
    times = scheduler.timesteps.tolist()
    if kind is Heun:
        times = times[:1] + times[1::2]
    places = sorted({0, 1, steps // 2, steps - 1})
    return dict(
        name=name,
        config=config,
        steps=steps,
        places=places,
        sigmas=[sigmas[i] for i in places],
        times=[times[i] for i in places],
        middle=flat(xs[steps // 2]),
        end=flat(xs[-1]),
    )


def flat(x):
    """Every 7th element: enough to see any axis swapped, small enough to read."""
    return [float(f"{float(v):.8g}") for v in x.flatten()[::7]]


COSINE = dict(beta_schedule="squaredcos_cap_v2")
LATENT = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
KARRAS = dict(use_karras_sigmas=True)
TRAILING, LEADING = dict(timestep_spacing="trailing"), dict(timestep_spacing="leading", steps_offset=1)
V, X0 = dict(prediction_type="v_prediction"), dict(prediction_type="sample")
MIN = dict(final_sigmas_type="sigma_min")
NOISE = dict(algorithm_type="dpmsolver", **MIN)
SDE = dict(algorithm_type="sde-dpmsolver++")
HEUN = dict(solver_type="heun")
FIRST, THIRD = dict(solver_order=1), dict(solver_order=3)
CASES = [
    case("++ 2M 20", Dpm, 20),
    case("++ 1 10 trailing v", Dpm, 10, **FIRST, **TRAILING, **V),
    case("++ 2M heun 10 leading", Dpm, 10, **HEUN, **LEADING, **LATENT),
    case("++ 3M 20 trailing v", Dpm, 20, **THIRD, **TRAILING, **V),
    case("++ 3M 10 lower order", Dpm, 10, **THIRD, **X0),
    case("++ 3M 10 not lower, sigma_min", Dpm, 10, **THIRD, **MIN, **V, lower_order_final=False),
    case("++ 2M 20 sigma_min euler at final", Dpm, 20, **MIN, **V, euler_at_final=True),
    case("++ 2M 20 karras", Dpm, 20, **KARRAS),
    case("++ 2M 20 karras cosine v", Dpm, 20, **KARRAS, **COSINE, **V),
    case("++ 2M 15 zero snr trailing v", Dpm, 15, **TRAILING, **V, rescale_betas_zero_snr=True),
    case("dpm 1 20", Dpm, 20, **NOISE, **FIRST),
    case("dpm 2M 20", Dpm, 20, **NOISE),
    case("dpm 2M heun 14", Dpm, 14, **NOISE, **HEUN),
    case("dpm 3M 20 v", Dpm, 20, **NOISE, **THIRD, **V),
    case("sde 1 20", Dpm, 20, **SDE, **FIRST),
    case("sde 2M 20 v", Dpm, 20, **SDE, **V),
    case("sde 2M heun 12 karras v", Dpm, 12, **SDE, **HEUN, **KARRAS, **V),
    case("euler 20", Euler, 20),
    case("euler 13 leading latent", Euler, 13, **LEADING, **LATENT),
    case("euler 20 trailing v", Euler, 20, **TRAILING, **V),
    case("euler 20 karras v", Euler, 20, **KARRAS, **V),
    case("euler 20 sigma_min trailing", Euler, 20, **MIN, **TRAILING),
    case("euler 15 zero snr trailing v", Euler, 15, **TRAILING, **V, rescale_betas_zero_snr=True),
    case("ancestral 20 trailing", Ancestral, 20, **TRAILING),
    case("ancestral 20 v", Ancestral, 20, **V),
    case("ancestral 20 leading v cosine", Ancestral, 20, **LEADING, **V, **COSINE),
    case("heun 10 trailing v", Heun, 10, **TRAILING, **V),
    case("heun 10", Heun, 10),
    case("heun 12 karras x_0", Heun, 12, **KARRAS, **X0),
    case("heun 10 clip leading", Heun, 10, **LEADING, clip_sample=True, clip_sample_range=0.9),
]

FILE.write_text("[\n" + ",\n".join(json.dumps(c, sort_keys=True) for c in CASES) + "\n]\n")
print(FILE, FILE.stat().st_size)
for c in CASES:
    print(c["name"], max(abs(v) for v in c["end"]), c["times"])
