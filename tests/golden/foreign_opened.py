"""Holds converted checkpoints to diffusers: what `ddpm-sample --save-model` writes opens there and answers the same.

    cargo build -p ddpm-sample && python tests/golden/foreign_opened.py target/debug/ddpm-sample
    # said so with torch 2.15.0, diffusers 0.42.1:
    #   ho 6e-07, ddim 8e-07, ddim_raw 6e-07, improved_plain 4e-07, guided 1e-06, guided_new_order 1e-06 apart at most

The files and the answers are those of foreign.py, and so are the betas of schedules that diffusers has no name for.
`improved` has heads and a time that diffusers has not: its folder must
be refused as a pipeline.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

GOLDEN = pathlib.Path(__file__).parents[2] / "crates/ddpm-checkpoint/tests/golden"
DIFFUSION = ["image_size=8x12", "diffusion_steps=1000", "noise_schedule=linear", "num_groups=2"]
HEADS = ["num_head_channels=4"]
CASES = [
    ("ho", "ho", [], []),
    ("ddim", "ddim", [], []),
    ("ddim", "ddim_raw", [], ["--weights", "raw"]),
    ("improved_plain", "improved_plain", ["num_heads=1"], []),
    ("guided", "guided", [*HEADS, "use_new_attention_order=false"], []),
    ("guided_new_order", "guided_new_order", [*HEADS, "use_new_attention_order=true"], []),
]


def convert(program, file, arch, flags, folder):
    command = [program, "--model", GOLDEN / f"{file}.pt", "--arch", *arch, "--save-model", folder, *flags]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


@torch.no_grad()
def main(program):
    with tempfile.TemporaryDirectory() as place:
        for index, (file, answers, arch, flags) in enumerate(CASES):
            folder = pathlib.Path(place) / str(index)
            convert(program, file, DIFFUSION + arch, flags, folder)
            network = UNet2DModel.from_pretrained(folder / "unet").eval()
            scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
            assert scheduler.config.num_train_timesteps == 1000
            known = load_file(GOLDEN / f"{answers}.safetensors")
            classes = known["classes"].long() if "classes" in known else None
            answer = network(known["x"], known["time"], class_labels=classes).sample
            apart = (answer - known["y"]).abs().max().item()
            assert apart < 1e-5, (answers, apart)
            if classes is None and answer.shape == known["x"].shape:
                pipeline = DDPMPipeline.from_pretrained(folder)
                pipeline.set_progress_bar_config(disable=True)
                assert len(pipeline(num_inference_steps=2, output_type="np").images) == 1
            print(f"{answers}: {apart:.0e} apart at most")
        for name, told in json.loads((GOLDEN / "betas.json").read_text()).items():
            folder = pathlib.Path(place) / name
            ends = [] if name == "jsd" else ["beta_end=0.03"] if name == "const" else ["beta_start=2e-4", "beta_end=0.03"]
            convert(program, "ho", ["image_size=8", "diffusion_steps=24", "num_groups=2", f"noise_schedule={name}", *ends], [], folder)
            betas = DDPMPipeline.from_pretrained(folder).scheduler.betas
            apart = (betas - torch.tensor(told)).abs().max().item()
            assert len(betas) == 24 and apart < 1e-7, (name, apart)
            print(f"{name}: {apart:.0e} apart at most")
        folder = pathlib.Path(place) / "ho_variants"
        convert(program, "ho_variants", DIFFUSION, [], folder)
        try:
            UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
        except (RuntimeError, ValueError):
            print("ho_variants: no network of diffusers, and says so")
        else:
            raise AssertionError("diffusers opens what it cannot compute")
        folder = pathlib.Path(place) / "improved"
        arch = ["image_size=8x12", "diffusion_steps=4000", "noise_schedule=cosine", "num_groups=2", "num_heads=2"]
        convert(program, "improved", [*arch, "use_new_attention_order=false", "rescale_timesteps=true"], [], folder)
        assert not (folder / "model_index.json").exists() and (folder / "not-a-diffusers-pipeline.md").exists()
        print("improved: no pipeline of diffusers, and says so")


if __name__ == "__main__":
    main(sys.argv[1])
