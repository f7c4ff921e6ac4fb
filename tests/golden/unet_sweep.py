"""Random UNet2DModels with random weights, inputs and outputs, for `cargo run -p ddpm-unet --example compare -- FOLDER`.

    python tests/golden/unet_sweep.py FOLDER [COUNT] [SEED]

All blocks, all keys. A configuration that diffusers cannot build or call is saved without weights: there the comparison
expects a refusal.
"""

import json
import pathlib
import random
import sys
import warnings

import diffusers
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
PLAIN = ["", "Attn"]
DOWN = {"": "DownBlock2D", "Attn": "AttnDownBlock2D", "Resnet": "ResnetDownsampleBlock2D", "Skip": "SkipDownBlock2D",
        "AttnSkip": "AttnSkipDownBlock2D"}
UP = {"": "UpBlock2D", "Attn": "AttnUpBlock2D", "Resnet": "ResnetUpsampleBlock2D", "Skip": "SkipUpBlock2D",
      "AttnSkip": "AttnSkipUpBlock2D"}


def random_config(rng, kinds=("plain", "plain", "all", "skip")):
    kind, depth = rng.choice(kinds), rng.randint(1, 3 if kinds else 4)
    groups = rng.choice([1, 2, 4, 8])
    widths = [groups * rng.randint(1, 5) * (2 if groups < 4 else 1) for _ in range(depth)]
    widths[0] = max(widths[0], 6 * groups if groups < 4 else widths[0])
    down = [rng.choice(PLAIN if kind == "plain" else [*PLAIN, "Resnet", "Resnet"]) for _ in widths]
    up = [rng.choice(PLAIN if kind == "plain" else [*PLAIN, "Resnet", "Resnet"]) for _ in widths]
    channels, outputs = rng.randint(1, 4), rng.randint(1, 6)
    if kind == "skip":
        widths = [rng.choice([32, 64]) for _ in range(depth)]
        groups, channels, outputs = rng.choice([4, 8, 32]), 3, 3
        first, last = rng.randint(0, depth), rng.randint(0, depth)
        down = [rng.choice(["Skip", "AttnSkip"]) if i < first else down[i] for i in range(depth)]
        up = [rng.choice(["Skip", "AttnSkip"]) if i >= last else up[i] for i in range(depth)]
        if first == depth and last == 0 and rng.random() < 0.5:
            groups = None
        if rng.random() < 0.1:  # mostly refused
            rng.shuffle(down)
            channels = rng.randint(1, 4)
    head_dim = rng.choice([None, None, 1, 2, 3, 4])
    if head_dim is not None:
        head_dim = min(head_dim, *widths)
    divisors = [g for g in (1, 2, 3, 4, 8) if widths[-1] % g == 0]
    more = {}
    if kind != "plain":
        more = dict(
            time_embedding_type=rng.choice(["positional", "fourier", "learned"]),
            downsample_type=rng.choice(["conv", "resnet"]), upsample_type=rng.choice(["conv", "resnet"]),
            act_fn=rng.choice(["silu", "swish", "mish", "gelu", "relu"]), num_train_timesteps=1000,
            class_embed_type=rng.choice([None, None, None, "timestep", "identity"]), num_class_embeds=rng.choice([None, None, 7]),
        )
    return dict(
        in_channels=channels, out_channels=outputs, center_input_sample=rng.random() < 0.2,
        time_embedding_dim=rng.choice([None, None, 24]), freq_shift=rng.choice([0, 1]), flip_sin_to_cos=rng.random() < 0.5,
        down_block_types=tuple(DOWN[name] for name in down), up_block_types=tuple(UP[name] for name in up),
        mid_block_type=rng.choice(["UNetMidBlock2D", "UNetMidBlock2D", "UNetMidBlock2D", None]),
        block_out_channels=tuple(widths), layers_per_block=rng.randint(1, 2 if kind == "skip" else 3),
        mid_block_scale_factor=rng.choice([1, 1, 2**0.5]), downsample_padding=rng.choice([0, 1]),
        attention_head_dim=head_dim, norm_num_groups=groups, attn_norm_num_groups=rng.choice([None, None, *divisors]),
        norm_eps=rng.choice([1e-6, 1e-5]), resnet_time_scale_shift=rng.choice(["default", "scale_shift"]),
        add_attention=rng.random() < 0.8, dropout=rng.choice([0.0, 0.1]), **more,
    )


def inputs(rng, config):
    """Image, times and classes of a batch."""
    factor, batch = 2 ** (len(config["block_out_channels"]) - 1), rng.randint(1, 3)
    # Never one pixel: PyTorch refuses to normalise a single number.
    x = torch.randn(batch, config["in_channels"], factor * rng.randint(2, 3), factor * rng.randint(1, 3))
    time = torch.tensor([rng.randint(0, 999) for _ in range(batch)])
    if config.get("time_embedding_type") == "fourier":
        time = torch.tensor([rng.choice([0.02, 0.7, 5.0, 120.0]) for _ in range(batch)])
    classes = None
    if config.get("class_embed_type") == "identity":
        classes = torch.randn(batch, config["time_embedding_dim"] or 4 * config["block_out_channels"][0])
    elif config.get("class_embed_type") or config.get("num_class_embeds"):
        classes = torch.tensor([rng.randint(1, 6) for _ in range(batch)])
    return x, time, classes


def save_refused(path, config):
    path.mkdir(parents=True)
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    (path / "config.json").write_text(json.dumps(lists, indent=1))


def main(folder, count=20, seed=0):
    rng = random.Random(int(seed))
    torch.manual_seed(int(seed))
    diffusers.utils.logging.set_verbosity_error()
    for number in range(int(count)):
        config, path = random_config(rng), pathlib.Path(folder) / f"{number:03}"
        x, time, classes = inputs(rng, config)
        try:
            model = UNet2DModel(**config).eval()
            for parameter in model.parameters():  # normalisations that are not the identity
                if parameter.ndim == 1:
                    parameter.data += 0.2 * torch.randn_like(parameter)
            with torch.no_grad():
                output = model(x, time, classes).sample.contiguous()
        except (ValueError, RuntimeError, TypeError, ZeroDivisionError):
            save_refused(path, config)
            continue
        model.save_pretrained(path)
        tensors = {"x": x, "time": time.float(), "output": output}
        if classes is not None:
            tensors["classes"] = classes.float()
        save_file(tensors, path / "io.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
