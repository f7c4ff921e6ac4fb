"""Real diffusers beside this program, both ways: the Python half of `cargo xtask conformance`.

    python tests/golden/conformance.py --sample ddpm-sample --compare compare --model checkpoints/digits [--networks N] [--seed S]

1. N random UNet2DModels that diffusers saves, of all blocks and keys, evaluated by this program (`compare`); what diffusers
   cannot build, this program must refuse.
2. Every model given with --model, a folder that this program wrote, in diffusers: it loads as a pipeline; diffusers walks by
   every scheduler class, in its own numbers, and saves a folder with that scheduler; this program walks by what it reads
   there, from the same x_T and, where noise is drawn, the same noise of every step.
3. The same folder by `--rng torch` and by diffusers' pipeline with one CPU generator: the same pixels from the same seed;
   DDIMPipeline with eta 0 and 1, DDPMPipeline, RePaintPipeline (--inpaint), DDIMInverseScheduler (--invert).
4. Networks that know classes, sampled by both, and a random score network by ScoreSdeVePipeline.

Prints the greatest difference of each pair; exit status 1 if one is above 1e-4. A walk that is so chaotic that diffusers is
about as far from itself, when x_T changes by one unit in the last place, proves nothing: it is marked so, and no fault.
"""

import argparse
import inspect
import pathlib
import subprocess
import sys
import tempfile
import warnings
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDPMPipeline, RePaintPipeline, RePaintScheduler, ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

import unet_sweep

warnings.filterwarnings("ignore")
diffusers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)

TOLERANCE = 1e-4
# How much further apart two walks may be than diffusers from itself.
OF_CHAOS = 10
IMAGES = 4
STEPS = 50
# class: what is set besides, and what asks this program for it where the folder alone does not.
SCHEDULERS = [
    ("DDPMScheduler", {}, ["--sampler", "ddpm"]),
    ("DDPMScheduler", {"variance_type": "fixed_small", "timestep_spacing": "leading"}, ["--sampler", "ddpm"]),
    ("DDIMScheduler", {}, []),
    ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}, []),
    ("DDIMScheduler", {"timestep_spacing": "linspace"}, []),
    ("DPMSolverMultistepScheduler", {}, []),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"}, []),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, []),
    ("DPMSolverSinglestepScheduler", {}, []),
    ("UniPCMultistepScheduler", {}, []),
    ("DEISMultistepScheduler", {}, []),
    ("PNDMScheduler", {"timestep_spacing": "leading"}, []),
    ("PNDMScheduler", {"timestep_spacing": "leading", "skip_prk_steps": True}, []),
    ("LMSDiscreteScheduler", {}, []),
    ("EulerDiscreteScheduler", {}, []),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, []),
    ("EulerAncestralDiscreteScheduler", {}, []),
    ("HeunDiscreteScheduler", {}, []),
    ("KDPM2DiscreteScheduler", {}, []),
    ("KDPM2AncestralDiscreteScheduler", {}, []),
    ("EDMEulerScheduler", {}, []),
    ("EDMDPMSolverMultistepScheduler", {}, []),
]


class Noise:
    """Standard normal noise in drawing order, kept for the other program."""

    def __init__(self):
        self.generator, self.drawn = torch.Generator().manual_seed(1), []

    def __call__(self, shape, *_, dtype=torch.float32, **__):
        self.drawn.append(torch.randn(tuple(shape), generator=self.generator))
        return self.drawn[-1].to(dtype)


@torch.no_grad()
def walk(scheduler, unet, x, steps, classes=None):
    """A pipeline's loop: images, and the noise that was drawn."""
    noise, module = Noise(), inspect.getmodule(type(scheduler))
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    patched = patch.object(module, "randn_tensor", noise) if hasattr(module, "randn_tensor") else patch.dict({})
    with patched:
        for t in scheduler.timesteps:
            output = unet(scheduler.scale_model_input(x, t), t, classes).sample
            x = scheduler.step(output, t, x).prev_sample
    return x, noise.drawn


def ours(program, model, tensors, flags):
    """This program's images, or what it says instead."""
    with tempfile.TemporaryDirectory() as folder:
        noise = []
        if tensors:
            save_file(tensors, f"{folder}/noise.safetensors")
            noise = ["--noise", f"{folder}/noise.safetensors"]
        command = [program, "--model", model, *noise, "--quiet", "--out", f"{folder}/out.safetensors", *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().replace("\n", " ")
        made = load_file(f"{folder}/out.safetensors")
        return made["noise"] if "noise" in made else made["samples"]


class Table:
    """Rows as they come, and whether all held."""

    def __init__(self):
        self.failed = 0

    def row(self, what, difference, own=0.0):
        verdict, remark = "ok", ""
        if not difference <= TOLERANCE:
            chaotic = difference <= OF_CHAOS * own
            verdict = "chaos" if chaotic else "WRONG"
            remark = f"  (diffusers from itself {own:.1e})"
            self.failed += not chaotic
        print(f"{verdict:6} {difference:9.2e}  {what}{remark}", flush=True)

    def nothing_to_hold_to(self, what, error):
        """Where diffusers itself breaks down."""
        print(f"{'none':6} {'':9}  {what}: diffusers breaks down itself: {error}", flush=True)

    def said(self, what, words):
        """Refusals of what this program does not do are listed, and are no fault; every other word is."""
        missing = "not supported" in words
        self.failed += not missing
        print(f"{'absent' if missing else 'WRONG '} {'':9}  {what}: {words}", flush=True)


def networks(table, compare, count, seed):
    print(f"\nRandom networks of diffusers, evaluated by both ({count})")
    with tempfile.TemporaryDirectory() as folder:
        unet_sweep.main(folder, count, seed)
        # Its status is 1 where a difference is too large, which the table finds itself; what it says of errors is shown.
        lines = subprocess.run([compare, folder], stdout=subprocess.PIPE, text=True, check=False).stdout.splitlines()
    if len(lines) != count + 1:
        sys.exit("\n".join([*lines, f"{compare} did not come to the end of {count} networks"]))
    for line in lines[:-1]:
        difference, place, words = line.split(maxsplit=2)
        table.row(f"{pathlib.Path(place).name} {words[:150]}", float(difference))


def steps_of(scheduler):
    return 20 if type(scheduler).__name__ in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler") else STEPS


def schedulers(table, program, model):
    print(f"\n{model}, written by this program: {STEPS} steps by both from one x_T (20 where a step asks the network twice)")
    pipeline = DDPMPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    unet = pipeline.unet
    size = unet.config.sample_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    x = torch.randn(IMAGES, unet.config.in_channels, height, width, generator=torch.Generator().manual_seed(0))
    for name, more, flags in SCHEDULERS:
        what = name + "".join(f", {key} {value}" for key, value in more.items())
        scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **more)
        steps = steps_of(scheduler)
        try:
            theirs, drawn = walk(scheduler, unet, x, steps)
            nudged, _ = walk(scheduler, unet, torch.nextafter(x, torch.tensor(9.0)), steps)
        except IndexError as error:
            # With some schedules two of its steps fall on one time, which diffusers then looks up as the last.
            table.nothing_to_hold_to(what, error)
            continue
        with tempfile.TemporaryDirectory() as folder:
            # save_pretrained of a pipeline refuses schedulers that the pipeline does not know; the parts do not.
            save(folder, unet, scheduler)
            tensors = {"noise": x}
            if drawn:
                tensors["step_noise"] = torch.stack(drawn)
            result = ours(program, folder, tensors, ["--steps", str(steps), *flags])
        if isinstance(result, str):
            table.said(what, result)
        else:
            table.row(what, (theirs - result).abs().max().item(), (theirs - nudged).abs().max().item())


def save(folder, unet, scheduler, pipeline="DDPMPipeline"):
    unet.save_pretrained(f"{folder}/unet")
    scheduler.save_pretrained(f"{folder}/scheduler")
    name = type(scheduler).__name__
    (pathlib.Path(folder) / "model_index.json").write_text(
        '{"_class_name": "%s", "_diffusers_version": "%s", "scheduler": ["diffusers", "%s"], '
        '"unet": ["diffusers", "UNet2DModel"]}' % (pipeline, diffusers.__version__, name)
    )


def seeds(table, program, model):
    """The pipelines as they are, with one generator for x_T and all steps."""
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    print(f"\n{model}: the same pixels from the same seed (--rng torch)")
    if "--rng" not in help_text:
        return table.said("--rng torch", "not supported")
    pipeline = DDPMPipeline.from_pretrained(model)
    for name, steps, eta in (("DDPMScheduler", 60, None), ("DDIMScheduler", STEPS, 0.0), ("DDIMScheduler", STEPS, 1.0)):
        scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
        kind = getattr(diffusers, name.replace("Scheduler", "Pipeline"))
        pipe = kind(unet=pipeline.unet, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        # The fast pipelines give images in [0, 1]; x_0 as computed is held to them after the same clamp.
        generator = torch.Generator().manual_seed(17)
        more = {} if eta is None else {"eta": eta}
        theirs = pipe(batch_size=IMAGES, num_inference_steps=steps, generator=generator, output_type="np", **more).images
        with tempfile.TemporaryDirectory() as folder:
            save(folder, pipeline.unet, scheduler)
            flags = ["--rng", "torch", "--seed", "17", "--num", str(IMAGES), "--batch-size", str(IMAGES), "--steps", str(steps)]
            result = ours(program, folder, None, flags + ([] if eta is None else ["--eta", str(eta)]))
        what = f"{kind.__name__}, {steps} steps" + ("" if eta is None else f", eta {eta:g}")
        compare_images(table, what, theirs, result)


def images_in(table, program, model):
    """RePaintPipeline with one generator, and DDIM's way back, of images that diffusers made."""
    print(f"\n{model}: images in (--inpaint, --invert)")
    pipeline = DDPMPipeline.from_pretrained(model)
    unet = pipeline.unet
    size = unet.config.sample_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    x = torch.randn(2, unet.config.in_channels, height, width, generator=torch.Generator().manual_seed(3))
    image, _ = walk(diffusers.DDIMScheduler.from_config(pipeline.scheduler.config), unet, x, STEPS)
    image = image.clamp(-1, 1)
    mask = (torch.arange(width) < width // 2).float().expand(1, 1, height, width).contiguous()
    painter = RePaintScheduler.from_config(pipeline.scheduler.config)
    pipe = RePaintPipeline(unet=unet, scheduler=painter)
    pipe.set_progress_bar_config(disable=True)
    how = dict(num_inference_steps=25, eta=0.5, jump_length=5, jump_n_sample=3)
    theirs = pipe(image, mask, generator=torch.Generator().manual_seed(17), output_type="np", **how).images
    with tempfile.TemporaryDirectory() as folder:
        save(folder, unet, painter, "RePaintPipeline")
        save_file({"samples": image}, f"{folder}/image.safetensors")
        save_file({"mask": mask}, f"{folder}/mask.safetensors")
        flags = ["--inpaint", f"{folder}/image.safetensors", "--mask", f"{folder}/mask.safetensors", "--steps", "25", "--eta", "0.5", "--jumps", "5,3"]
        result = ours(program, folder, None, flags + ["--rng", "torch", "--seed", "17", "--batch-size", "2"])
        compare_images(table, "RePaintPipeline, 25 steps, jumps 5,3, eta 0.5", theirs, result)
        inverse = DDIMInverseScheduler.from_config(pipeline.scheduler.config)
        back, _ = walk(inverse, unet, image, STEPS)
        save(folder, unet, inverse)
        result = ours(program, folder, None, ["--invert", f"{folder}/image.safetensors", "--steps", str(STEPS)])
    if isinstance(result, str):
        return table.said("DDIMInverseScheduler", result)
    table.row(f"DDIMInverseScheduler, {STEPS} steps", (back - result).abs().max().item())


def compare_images(table, what, theirs, result):
    """Pixels in [0, 1] of a pipeline beside x_0 as computed."""
    if isinstance(result, str):
        return table.said(what, result)
    images = (result / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    table.row(what, float(np.abs(images - theirs).max()))


def untrained(seed, **more):
    """A small random network."""
    torch.manual_seed(seed)
    blocks = dict(block_out_channels=(16, 32), down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    return UNet2DModel(**{"sample_size": 8, "in_channels": 3, "out_channels": 3, "norm_num_groups": 8, "layers_per_block": 1, **blocks, **more}).eval()


def classes(table, program):
    """Networks that know classes: as numbers below a number, as numbers, as vectors."""
    print("\nRandom networks that know classes, DDIM and DDPM, by both from one x_T")
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    kinds = [
        ("num_class_embeds 5", dict(num_class_embeds=5), torch.tensor([3, 3, 3]), ["--class", "3"]),
        ("num_class_embeds 3, each in turn", dict(num_class_embeds=3), torch.tensor([0, 1, 2]), ["--class", "all"]),
        ("class_embed_type timestep", dict(class_embed_type="timestep"), torch.tensor([7, 7, 7]), ["--class", "7"]),
        ("class_embed_type identity", dict(class_embed_type="identity"), torch.randn(3, 64), []),
        ("scale_shift, resnet blocks", dict(num_class_embeds=5, resnet_time_scale_shift="scale_shift", upsample_type="resnet",
         down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D")), torch.tensor([1, 1, 1]), ["--class", "1"]),
    ]
    for seed, (what, more, labels, flags) in enumerate(kinds):
        unet = untrained(seed, **more)
        for name, asks in (("DDIMScheduler", []), ("DDPMScheduler", ["--sampler", "ddpm"])):
            # Velocities: noise predicted by a random network is divided by next to nothing at first.
            scheduler = getattr(diffusers, name)(prediction_type="v_prediction")
            theirs, drawn = walk(scheduler, unet, x, 20, labels)
            nudged, _ = walk(scheduler, unet, torch.nextafter(x, torch.tensor(9.0)), 20, labels)
            tensors = {"noise": x} | ({"step_noise": torch.stack(drawn)} if drawn else {}) | ({} if flags else {"classes": labels.float()})
            with tempfile.TemporaryDirectory() as folder:
                save(folder, unet, scheduler)
                result = ours(program, folder, tensors, ["--steps", "20", *flags, *asks])
            if isinstance(result, str):
                table.said(f"{what}, {name}", result)
            else:
                table.row(f"{what}, {name}", (theirs - result).abs().max().item(), (theirs - nudged).abs().max().item())


def scores(table, program):
    """ScoreSdeVePipeline with one generator, of a random network that is told sigma."""
    print("\nA random score network: the same pixels from the same seed (--rng torch)")
    blocks = dict(down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"), up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"))
    unet = untrained(9, time_embedding_type="fourier", **blocks, norm_num_groups=None, block_out_channels=(32, 32))
    for more in ({"sigma_max": 20.0}, {"correct_steps": 0, "sigma_max": 50.0}):
        scheduler = ScoreSdeVeScheduler(num_train_timesteps=2000, **more)
        pipe = ScoreSdeVePipeline(unet=unet, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        theirs = pipe(batch_size=2, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(17), output_type="np").images
        with tempfile.TemporaryDirectory() as folder:
            save(folder, unet, scheduler, "ScoreSdeVePipeline")
            result = ours(program, folder, None, ["--rng", "torch", "--seed", "17", "--num", "2", "--batch-size", "2", "--steps", str(STEPS)])
        what = f"ScoreSdeVePipeline, {STEPS} steps" + "".join(f", {key} {value}" for key, value in more.items())
        # Its pixels are x_0 itself.
        compare_images(table, what, theirs, result if isinstance(result, str) else result * 2 - 1)


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--sample", required=True)
    flags.add_argument("--compare", required=True)
    flags.add_argument("--model", action="append", default=[])
    flags.add_argument("--networks", type=int, default=40)
    flags.add_argument("--seed", type=int, default=0)
    flags = flags.parse_args()
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}; greatest difference, allowed {TOLERANCE}")
    table = Table()
    networks(table, flags.compare, flags.networks, flags.seed)
    for model in flags.model:
        schedulers(table, flags.sample, model)
        seeds(table, flags.sample, model)
        images_in(table, flags.sample, model)
    classes(table, flags.sample)
    scores(table, flags.sample)
    print(f"\n{table.failed} wrong" if table.failed else "\nall the same")
    return min(table.failed, 1)


if __name__ == "__main__":
    sys.exit(main())
