"""Random UNet2DModels with random weights, inputs and outputs, for `cargo run -p ddpm-unet --example compare -- FOLDER`.

    python tests/golden/unet_sweep.py FOLDER [COUNT] [SEED]
"""

import pathlib
import random
import sys

import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file


def random_config(rng):
    depth = rng.randint(1, 4)
    groups = rng.choice([1, 2, 4, 8])
    widths = [groups * rng.randint(1, 5) * (2 if groups < 4 else 1) for _ in range(depth)]
    widths[0] = max(widths[0], 6 * groups if groups < 4 else widths[0])
    head_dim = rng.choice([None, None, 1, 2, 3, 4])
    if head_dim is not None:
        head_dim = min(head_dim, *widths)
    divisors = [g for g in (1, 2, 3, 4, 8) if widths[-1] % g == 0]
    return dict(
        in_channels=rng.randint(1, 4), out_channels=rng.randint(1, 6), center_input_sample=rng.random() < 0.2,
        time_embedding_dim=rng.choice([None, None, 24]), freq_shift=rng.choice([0, 1]), flip_sin_to_cos=rng.random() < 0.5,
        down_block_types=tuple(rng.choice(["DownBlock2D", "AttnDownBlock2D"]) for _ in widths),
        up_block_types=tuple(rng.choice(["UpBlock2D", "AttnUpBlock2D"]) for _ in widths),
        mid_block_type=rng.choice(["UNetMidBlock2D", "UNetMidBlock2D", "UNetMidBlock2D", None]),
        block_out_channels=tuple(widths), layers_per_block=rng.randint(1, 3),
        mid_block_scale_factor=rng.choice([1, 1, 2**0.5]), downsample_padding=rng.choice([0, 1]),
        attention_head_dim=head_dim, norm_num_groups=groups, attn_norm_num_groups=rng.choice([None, None, *divisors]),
        norm_eps=rng.choice([1e-6, 1e-5]), resnet_time_scale_shift=rng.choice(["default", "scale_shift"]),
        add_attention=rng.random() < 0.8, dropout=rng.choice([0.0, 0.1]),
    )


def main(folder, count=20, seed=0):
    rng = random.Random(int(seed))
    torch.manual_seed(int(seed))
    for number in range(int(count)):
        config = random_config(rng)
        model = UNet2DModel(**config).eval()
        for parameter in model.parameters():  # normalisations that are not the identity
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        factor, batch = 2 ** (len(config["block_out_channels"]) - 1), rng.randint(1, 3)
        x = torch.randn(batch, config["in_channels"], factor * rng.randint(1, 3), factor * rng.randint(1, 3))
        time = torch.tensor([rng.randint(0, 999) for _ in range(batch)])
        with torch.no_grad():
            output = model(x, time).sample.contiguous()
        path = pathlib.Path(folder) / f"{number:03}"
        model.save_pretrained(path)
        save_file({"x": x, "time": time.float(), "output": output}, path / "io.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
