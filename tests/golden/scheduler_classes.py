"""The keys of diffusers' scheduler classes with their defaults: crates/ddpm-samplers/src/classes.json.

    pip install torch diffusers
    python tests/golden/scheduler_classes.py          # made with torch 2.15.0, diffusers 0.42.1

An infinity, which JSON has no number for, is null.
"""

import inspect
import json
import math
import pathlib

import diffusers

FILE = pathlib.Path(__file__).parents[2] / "crates/ddpm-samplers/src/classes.json"
NAMES = """DDPMScheduler DDIMScheduler DDIMInverseScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler UniPCMultistepScheduler
DEISMultistepScheduler PNDMScheduler LMSDiscreteScheduler EulerDiscreteScheduler EulerAncestralDiscreteScheduler HeunDiscreteScheduler
KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler EDMEulerScheduler EDMDPMSolverMultistepScheduler ScoreSdeVeScheduler
RePaintScheduler""".split()


def keys(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    infinite = lambda value: isinstance(value, float) and math.isinf(value)
    return {k: None if infinite(p.default) else p.default for k, p in parameters.items() if k not in ("self", "kwargs")}


lines = [f"  {json.dumps(name)}: {json.dumps(keys(name))}" for name in NAMES]
FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
