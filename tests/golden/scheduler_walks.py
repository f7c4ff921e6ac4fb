"""Golden walks of crates/ddpm-samplers: every scheduler class of diffusers as it is, in its own f32.

    pip install torch diffusers numpy scipy
    python tests/golden/scheduler_walks.py          # made with torch 2.15.0, diffusers 0.42.1, scipy 1.17.1

Writes crates/ddpm-samplers/tests/golden/walks.json: for every case the class, the keys that were set, the steps, how often noise was
drawn, and every 7th number of the images at the end. Hand-written cases first, then random settings of every class; what diffusers
refuses or turns into NaN, and walks that a change of x_T by 1e-6 changes by 1e-4, are left out. Start, noise and network are the formulas of samplers.py; noise[k] is the k-th draw, whoever
makes it. Images go in and out as in a pipeline: times init_noise_sigma, through scale_model_input, in the scheduler's own scale.
"""

import json
import logging
import pathlib
import random
import sys
import warnings

import diffusers
import numpy as np
import torch

warnings.filterwarnings("ignore")
diffusers.utils.logging.set_verbosity(logging.CRITICAL)
FILE = pathlib.Path(__file__).parents[2] / "crates/ddpm-samplers/tests/golden/walks.json"
SHAPE = (2, 3, 4, 6)
I = np.arange(np.prod(SHAPE), dtype=np.float64)
DRAWN = [0]


def tensor(values):
    return torch.tensor(values.reshape(SHAPE), dtype=torch.float32)


NUDGE = [0.0]


def start():
    return tensor(np.sin(0.7 * I + 0.3) * 1.4 * (1 + NUDGE[0]))


def noise(*_, **__):
    DRAWN[0] += 1
    return tensor(np.sin(1.3 * I + 2.1 * (DRAWN[0] - 1) + 0.5) * 1.4)


for name in dir(diffusers):
    if name.endswith("Scheduler"):
        getattr(diffusers, name, None)
for name, module in list(sys.modules.items()):
    if name.startswith("diffusers.schedulers.") and hasattr(module, "randn_tensor"):
        module.randn_tensor = noise


def network(x, t):
    return 0.6 * x + 0.3 * torch.cos(3 * x) - 0.2 * np.sin(float(t) / 100)


def twice(x, t):
    """A network that also says a variance."""
    y = network(x, t)
    return torch.cat([y, 0.2 + 0.1 * torch.sin(5 * x)], dim=1)


def mask():
    return tensor((np.sin(0.9 * I) > 0).astype(float))


def walk(scheduler, n, how):
    name, DRAWN[0] = type(scheduler).__name__, 0
    scheduler.set_timesteps(**({k: how[k] for k in ("timesteps", "sigmas") if k in how} or {"num_inference_steps": n}))
    more = {k: v for k, v in how.items() if k in ("eta", "use_clipped_model_output")}
    if name == "ScoreSdeVeScheduler":
        return score_walk(scheduler, n)
    if name == "RePaintScheduler":
        return repaint_walk(scheduler, n, how)
    x = start() * float(scheduler.init_noise_sigma)
    learned = str(scheduler.config.get("variance_type")).startswith("learned")
    for t in scheduler.timesteps:
        output = (twice if learned else network)(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **more).prev_sample
    return x


def score_walk(scheduler, n):
    """ScoreSdeVePipeline."""
    scheduler.set_sigmas(n)
    x = start() * float(scheduler.init_noise_sigma)
    score = lambda x, sigma: -network(x / float(sigma), sigma * 10) / float(sigma)
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        for _ in range(scheduler.config.correct_steps):
            x = scheduler.step_correct(score(x, sigma), x).prev_sample
        out = scheduler.step_pred(score(x, sigma), t, x)
        x = out.prev_sample
    return out.prev_sample_mean


def repaint_walk(scheduler, n, how):
    """RePaintPipeline."""
    scheduler.set_timesteps(n, how["jump_length"], how["jump_n_sample"])
    scheduler.eta = how["eta"]
    image, x = tensor(np.cos(0.4 * I) * 0.9), start()
    last = scheduler.timesteps[0] + 1
    for t in scheduler.timesteps:
        if t < last:
            x = scheduler.step(network(x, t), t, x, image, mask()).prev_sample
        else:
            x = scheduler.undo_step(x, last)
        last = t
    return x


def case(cls, n, how=None, **keys):
    ends = []
    for NUDGE[0] in (1e-6, 0.0):
        DRAWN[0] = 0
        scheduler = getattr(diffusers, cls)(**keys)
        ends.append(walk(scheduler, n, how or {}))
    x = ends[1]
    if not torch.isfinite(x).all():
        raise ValueError("not finite")
    if (ends[0] - x).abs().max() > 1e-4 * max(1.0, float(x.abs().max())):
        raise ValueError("chaotic")
    end = [float(f"{float(v):.7g}") for v in x.flatten()[::7]]
    return dict(cls=cls, keys=keys, steps=n, how=how or {}, draws=DRAWN[0], end=end)


LATENT = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = dict(beta_schedule="squaredcos_cap_v2")
V, X0 = dict(prediction_type="v_prediction"), dict(prediction_type="sample")
T, L1, LIN = dict(timestep_spacing="trailing"), dict(timestep_spacing="leading", steps_offset=1), dict(timestep_spacing="linspace")
MIN = dict(final_sigmas_type="sigma_min")
SNR = dict(rescale_betas_zero_snr=True)
K = [dict(use_karras_sigmas=True), dict(use_exponential_sigmas=True), dict(use_beta_sigmas=True)]
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
M, S, U, D = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
P, E, H = "PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"
THRESHOLD = dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)
BY_HAND = [
    ("DDPMScheduler", 1000, None, {}),
    ("DDPMScheduler", 20, None, dict(variance_type="learned", clip_sample=False)),
    ("DDPMScheduler", 20, None, dict(variance_type="learned_range", **T)),
    ("DDPMScheduler", 20, None, dict(variance_type="fixed_large", **T)),
    ("DDPMScheduler", 20, None, dict(variance_type="fixed_small_log", **LIN)),
    ("DDPMScheduler", 12, None, dict(**THRESHOLD, **V)),
    ("DDPMScheduler", 30, None, dict(beta_schedule="sigmoid", **L1)),
    ("DDPMScheduler", 30, None, dict(beta_schedule="laplace")),
    ("DDPMScheduler", 25, None, dict(**SNR, **V, **T)),
    ("DDPMScheduler", 5, dict(timesteps=[800, 523, 100, 87, 1]), {}),
    ("DDIMScheduler", 50, dict(eta=0.6), dict(**L1, set_alpha_to_one=False, **LATENT)),
    ("DDIMScheduler", 24, dict(eta=1.0), dict(**LIN)),
    ("DDIMScheduler", 30, dict(use_clipped_model_output=True), dict(**T)),
    ("DDIMScheduler", 13, None, dict(**THRESHOLD)),
    ("DDIMInverseScheduler", 30, None, dict(clip_sample=False)),
    ("DDIMInverseScheduler", 13, None, dict(**T, **V, clip_sample=False)),
    *[(M, 12, None, dict(algorithm_type=a, solver_order=o, solver_type=k, **V, **(MIN if a in ("dpmsolver", "sde-dpmsolver") else {})))
      for a in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++") for o in (1, 2, 3) for k in ("midpoint", "heun")],
    *[(M, 20, None, dict(solver_order=3, **k)) for k in K + [dict(use_lu_lambdas=True), dict(use_lu_lambdas=True, **COSINE)]],
    (M, 20, None, dict(use_karras_sigmas=True, **COSINE)),
    (M, 9, None, dict(**FLOW, flow_shift=3.0)),
    (M, 9, None, dict(lambda_min_clipped=-3.0, **THRESHOLD)),
    (M, 9, None, dict(lambda_min_clipped=-3.0, **T)),
    (M, 15, None, dict(**SNR, **T, **V, euler_at_final=True, **MIN)),
    (M, 4, dict(timesteps=[900, 600, 250, 40]), {}),
    *[(S, n, None, dict(solver_order=o, solver_type=k)) for n in (7, 8, 9) for o in (2, 3) for k in ("midpoint", "heun")],
    *[(S, n, None, dict(solver_order=3, **MIN, **V, lower_order_final=l)) for n in (9, 10) for l in (True, False)],
    *[(S, 10, None, dict(algorithm_type=a, solver_order=o, **V, **MIN)) for a in ("dpmsolver", "sde-dpmsolver++") for o in (2, 3)],
    (S, 9, None, dict(algorithm_type="sde-dpmsolver++", solver_order=3, solver_type="heun", **X0)),
    *[(S, 10, None, dict(**k, lambda_min_clipped=-4.0)) for k in K],
    *[(U, 10, None, dict(solver_order=o, solver_type=k, **V)) for o in (1, 2, 3, 4) for k in ("bh1", "bh2")],
    (U, 10, None, dict(predict_x0=False, **MIN)),
    (U, 16, None, dict(solver_order=3, disable_corrector=[0, 1, 5], **T)),
    (U, 8, None, dict(lower_order_final=False, solver_order=3, **MIN)),
    *[(U, 12, None, dict(**k, **X0)) for k in K],
    *[(U, 12, None, dict(**k, **V, **MIN)) for k in K],
    (U, 9, None, dict(**FLOW, flow_shift=2.0)),
    (U, 9, None, dict(**FLOW, shift_terminal=0.1, **MIN)),
    (U, 5, None, dict(**FLOW, use_karras_sigmas=True, sigma_min=0.01, sigma_max=200.0)),
    *[(D, n, None, dict(solver_order=o, **V)) for n in (8, 20) for o in (1, 2, 3)],
    # Between levels as close as those of beta sigmas the third order loses its digits in diffusers' f32.
    *[(D, 12, None, dict(solver_order=o, **k, **L1)) for o, k in zip((3, 3, 2), K)],
    (D, 9, None, dict(**FLOW, flow_shift=2.0)),
    *[(P, n, None, dict(skip_prk_steps=s, **v, **w)) for n, s, v, w in [
        (10, True, {}, {}), (10, False, {}, {}), (12, True, V, L1), (12, False, V, L1), (7, True, {}, LIN), (9, False, {}, T),
        (20, False, {}, dict(set_alpha_to_one=True)), (30, True, {}, T)]],
    *[("LMSDiscreteScheduler", n, None, dict(**w)) for n, w in [(10, {}), (20, V), (12, T), (12, dict(**L1, **X0)), (12, K[0]), (12, K[1]), (12, K[2])]],
    *[(E, 15, None, dict(**w)) for w in [T, L1, SNR | V | T, MIN, X0, *K, dict(interpolation_type="log_linear"), dict(timestep_type="continuous", **V),
                                         dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=20.0, **V)]],
    (E, 4, dict(timesteps=[900, 600, 250, 40]), {}),
    (E, 5, dict(sigmas=[20.0, 7.0, 3.0, 1.0, 0.2, 0.0]), V),
    *[("EulerAncestralDiscreteScheduler", 15, None, dict(**w)) for w in [{}, V, T, L1, SNR | V | T]],
    *[(H, 8, None, dict(**w)) for w in [{}, V, T, L1, X0, *K, dict(beta_schedule="exp"), dict(clip_sample=True, clip_sample_range=0.8)]],
    (H, 4, dict(timesteps=[900, 600, 250, 40]), {}),
    *[(c, 8, None, dict(**w)) for c in ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler") for w in [{}, V, T, L1, *K]],
    *[("EDMEulerScheduler", 12, None, dict(**w)) for w in [{}, V, MIN, dict(sigma_schedule="exponential"), dict(sigma_data=1.0, rho=5.0)]],
    *[("EDMDPMSolverMultistepScheduler", n, None, dict(**w)) for n, w in [
        (12, {}), (20, dict(solver_order=3)), (12, dict(**V, solver_type="heun", **MIN)), (12, dict(algorithm_type="sde-dpmsolver++")), (12, THRESHOLD)]],
    *[("ScoreSdeVeScheduler", 10, None, dict(**w)) for w in [{}, dict(correct_steps=2, snr=0.1), dict(sigma_max=50.0, correct_steps=0)]],
    ("RePaintScheduler", 20, dict(eta=0.0, jump_length=5, jump_n_sample=3), {}),
    ("RePaintScheduler", 25, dict(eta=0.7, jump_length=4, jump_n_sample=2), dict(clip_sample=False)),
    # Noise predicted where nothing of the image is left: x_0 is infinite, and clipped.
    ("DDPMScheduler", 12, None, dict(**SNR, **T)),
    ("DDIMScheduler", 10, dict(eta=0.5), dict(**SNR, **T, clip_sample_range=2.0)),
    (P, 1, None, dict(skip_prk_steps=True)),
    *[(E, 10, None, dict(interpolation_type="log_linear", **L1, **k)) for k in K],
    *[(M, 10, None, dict(use_lu_lambdas=True, **k)) for k in K],
    (P, 20, None, dict(skip_prk_steps=True, beta_end=0.04)),
    (E, 10, None, dict(interpolation_type="log_linear", timestep_type="continuous", **V)),
]
VALUES = dict(
    num_train_timesteps=[1000, 1100, 500], beta_end=[0.02, 0.03], beta_start=[1e-4, 8.5e-4], beta_schedule=["linear", "scaled_linear", "squaredcos_cap_v2"],
    prediction_type=["epsilon", "v_prediction", "sample"], clip_sample=[True, False], timestep_spacing=["leading", "linspace", "trailing"], steps_offset=[0, 1],
    rescale_betas_zero_snr=[False, True], solver_order=[1, 2, 3], solver_type=["midpoint", "heun", "bh1", "bh2"], algorithm_type=["dpmsolver++", "sde-dpmsolver++", "dpmsolver"],
    lower_order_final=[True, False], euler_at_final=[True, False], final_sigmas_type=["zero", "sigma_min"], use_karras_sigmas=[False, False, True],
    use_exponential_sigmas=[False, False, False, True], use_beta_sigmas=[False, False, False, True], set_alpha_to_one=[True, False], skip_prk_steps=[True, False],
    predict_x0=[True, True, False], variance_type=["fixed_small", "fixed_large"], thresholding=[False, False, False, True],
)


def at_random(count):
    dice, names = random.Random(6), sorted({c[0] for c in BY_HAND} - {"RePaintScheduler", "ScoreSdeVeScheduler", "DDIMInverseScheduler"})
    made = 0
    while made < count:
        cls = names[made % len(names)]
        keys = {k: dice.choice(v) for k, v in VALUES.items() if k in getattr(diffusers, cls)()._internal_dict and dice.random() < 0.4}
        if keys.get("rescale_betas_zero_snr") and keys.get("prediction_type", "epsilon") == "epsilon":
            continue
        n = dice.choice([5, 8, 10, 20, 25, 50])
        try:
            made_case = case(cls, n, None, **keys)
        except Exception:
            continue
        if max(map(abs, made_case["end"])) < 1e3:
            made += 1
            yield made_case


CASES = []
for cls, n, how, keys in BY_HAND:
    try:
        CASES.append(case(cls, n, how, **keys))
    except Exception as error:
        print("left out:", cls, n, how, keys, "-", type(error).__name__, str(error)[:90])
CASES += at_random(90)
FILE.write_text("[\n" + ",\n".join(json.dumps(c, sort_keys=True) for c in CASES) + "\n]\n")
print(len(CASES), "cases,", FILE.stat().st_size, "bytes")
print(json.dumps([(c["cls"], max(map(abs, c["end"]))) for c in CASES if max(map(abs, c["end"])) > 50]))
