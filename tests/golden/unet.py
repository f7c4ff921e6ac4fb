"""Golden values of crates/ddpm-unet from diffusers' UNet2DModel.

    pip install torch diffusers safetensors numpy
    python tests/golden/unet.py          # made with torch 2.15.0, diffusers 0.42.1

Writes into crates/ddpm-unet/tests/golden/, for every case of CASES:
    NAME.config.json       the configuration as diffusers writes it
    NAME.parameters.txt    names and shapes, in the order in which PyTorch's constructor makes them
    NAME.safetensors       x [B, C, H, W], time [B], output (float32); classes where there are some
    NAME.gradients.safetensors   (GRADIENTS only) the gradient of mean((output - target)^2), computed in float64
    NAME.slopes.txt        (SLOPES only) of the same gradient, for every parameter: its norm, and its product with `formula`
Weights are not stored: `formula` makes them from their names, here and in the Rust test, exactly.
`torchs_weights.txt` has a digest of every network as PyTorch's constructor draws it.
`saved/` is one network with torch's own random weights, saved by diffusers, with its input and output.
"""

import pathlib
import shutil

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parents[2] / "crates/ddpm-unet/tests/golden"

HO = dict(
    attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, norm_num_groups=4
)


def levels(*widths_and_attention, up=None):
    """One (width, attention) a level, from the full resolution down; `up` overrides attention on the way up."""
    attention = [attention for _, attention in widths_and_attention]
    return dict(
        block_out_channels=tuple(width for width, _ in widths_and_attention),
        down_block_types=tuple("AttnDownBlock2D" if yes else "DownBlock2D" for yes in attention),
        up_block_types=tuple("AttnUpBlock2D" if yes else "UpBlock2D" for yes in (up or attention[::-1])),
    )


# name: (configuration, batch, height, width)
CASES = {
    "ho": (
        dict(HO, in_channels=1, out_channels=1, sample_size=8, layers_per_block=1, **levels((8, 0), (12, 1), (12, 0))), 2, 8, 8,
    ),
    "openai": (
        dict(
            norm_num_groups=4, attention_head_dim=4, resnet_time_scale_shift="scale_shift", layers_per_block=1,
            sample_size=(8, 12), dropout=0.1, **levels((8, 0), (16, 1)),
        ), 3, 8, 12,
    ),
    "heads_that_do_not_fill_the_width": (
        dict(HO | dict(attention_head_dim=5), layers_per_block=1, **levels((12, 1), (16, 1))), 2, 4, 6,
    ),
    "attention_groups": (
        dict(
            norm_num_groups=4, attn_norm_num_groups=2, attention_head_dim=3, resnet_time_scale_shift="scale_shift",
            layers_per_block=1, freq_shift=1, **levels((8, 1), (12, 0)),
        ), 2, 6, 4,
    ),
    "attention_groups_of_the_middle": (
        dict(norm_num_groups=4, attn_norm_num_groups=8, layers_per_block=1, **levels((8, 0), (16, 0))), 2, 4, 6,
    ),
    "one_level": (
        dict(
            HO, center_input_sample=True, add_attention=False, layers_per_block=3, time_embedding_dim=20, in_channels=1,
            out_channels=2, **levels((8, 0)),
        ), 2, 5, 7,
    ),
    "no_middle": (dict(HO, mid_block_type=None, layers_per_block=2, **levels((8, 0), (8, 1))), 2, 4, 4),
    "divided_middle": (
        dict(
            norm_num_groups=3, norm_eps=1e-3, mid_block_scale_factor=1.5, attention_head_dim=None, out_channels=6,
            layers_per_block=1, flip_sin_to_cos=False, num_train_timesteps=1000, **levels((9, 0), (12, 1)),
        ), 2, 8, 12,
    ),
    "uneven": (
        dict(HO | dict(downsample_padding=1), layers_per_block=1, **levels((16, 0), (8, 1), (12, 0), up=[1, 0, 1])), 2, 12, 8,
    ),
    "four_levels": (
        dict(norm_num_groups=2, attention_head_dim=2, freq_shift=1, **levels((4, 0), (4, 1), (6, 0), (8, 1))), 1, 8, 16,
    ),
}
GRADIENTS = ["ho", "attention_groups"]


def blocks(widths, down, up, **more):
    """Types without their ends: "SkipDown" is "SkipDownBlock2D"."""
    return dict(
        block_out_channels=widths, down_block_types=tuple(f"{name}Block2D" for name in down),
        up_block_types=tuple(f"{name}Block2D" for name in up), layers_per_block=1, **more,
    )


CASES |= {
    "resnet_blocks": (
        blocks(
            (8, 12, 16), ["ResnetDownsample", "ResnetDownsample", "AttnDown"], ["ResnetUpsample", "AttnUp", "ResnetUpsample"],
            norm_num_groups=4, attention_head_dim=4, resnet_time_scale_shift="scale_shift", num_class_embeds=5, in_channels=2,
            out_channels=4,
        ), 2, 8, 12,
    ),
    "skip_blocks": (
        blocks(
            (16, 24, 16), ["SkipDown"] * 3, ["SkipUp"] * 3, norm_num_groups=8, attention_head_dim=None,
            time_embedding_type="fourier", center_input_sample=True, norm_eps=1e-6, mid_block_scale_factor=2**0.5,
        ), 3, 8, 12,
    ),
    "attention_skip_blocks": (
        blocks(
            (32, 32), ["AttnSkipDown", "SkipDown"], ["SkipUp", "AttnSkipUp"], norm_num_groups=None, attention_head_dim=8,
            time_embedding_dim=24, act_fn="relu",
        ), 2, 4, 6,
    ),
    "attention_skip_blocks_up": (
        blocks((32, 64), ["SkipDown", "AttnSkipDown"], ["AttnSkipUp", "SkipUp"], time_embedding_dim=24), 1, 6, 4,
    ),
    "halved_and_doubled_by_blocks": (
        blocks(
            (8, 12), ["AttnDown", "Down"], ["AttnUp", "Up"], norm_num_groups=2, downsample_type="resnet",
            upsample_type="resnet", time_embedding_type="learned", num_train_timesteps=1000, act_fn="gelu",
            attention_head_dim=3, dropout=0.1,
        ), 2, 6, 10,
    ),
    "skips_into_plain_blocks": (
        blocks(
            (12, 16, 16), ["SkipDown", "ResnetDownsample", "Down"], ["Up", "AttnUp", "SkipUp"], norm_num_groups=4,
            attention_head_dim=None, act_fn="mish", class_embed_type="identity", time_embedding_dim=20, out_channels=5,
        ), 2, 8, 4,
    ),
    "classes_as_times": (
        blocks(
            (8, 8), ["Down", "AttnDown"], ["AttnUp", "Up"], norm_num_groups=2, class_embed_type="timestep", freq_shift=1,
            act_fn="swish", num_class_embeds=7,
        ), 3, 4, 6,
    ),
    "classes_as_rows_beside_fourier": (
        blocks(
            (8, 8), ["Down", "ResnetDownsample"], ["Up", "ResnetUpsample"], norm_num_groups=2, class_embed_type="timestep",
            time_embedding_type="fourier", flip_sin_to_cos=False,
        ), 2, 4, 2,
    ),
    "rescaled": (dict(HO, layers_per_block=1, mid_block_scale_factor=1.5, **levels((8, 0), (12, 1))), 2, 4, 6),
}
SLOPES = [
    "resnet_blocks", "skip_blocks", "attention_skip_blocks", "attention_skip_blocks_up", "halved_and_doubled_by_blocks",
    "skips_into_plain_blocks", "classes_as_times", "rescaled",
]


def formula(name, shape):
    """Numbers from a name: splitmix64 of (FNV-1a of the name + i), 24 bits, uniform in [-1, 1) times a bound."""
    hash_ = 0xCBF29CE484222325
    for byte in name.encode():
        hash_ = ((hash_ ^ byte) * 0x100000001B3) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(hash_) + (np.arange(np.prod(shape, dtype=int), dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    if name.startswith("input."):
        bound, offset = np.float32(2), np.float32(0)
    elif len(shape) > 1:
        bound, offset = np.float32(1.5 / np.sqrt(np.prod(shape[1:], dtype=np.float64))), np.float32(0)
    else:
        bound, offset = np.float32(0.25), np.float32("norm" in name and name.endswith(".weight"))
    return torch.from_numpy((u * bound + offset).reshape(shape))


def construct(config):
    """The model and its parameters' names in the order of their construction."""
    made, register = [], torch.nn.Module.register_parameter

    def remember(module, name, parameter):
        made.append(parameter)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = remember
    try:
        model = UNet2DModel(**config)
    finally:
        torch.nn.Module.register_parameter = register
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # Fourier's frequencies are made twice, and the second are registered under two names.
    order = list(dict.fromkeys(names[id(parameter)] for parameter in made if id(parameter) in names))
    assert sorted(order) == sorted(model.state_dict())
    return model, order


def rescale(model):
    """Our `rescale_residuals`: every residual sum over the square root of 2, and the middle's over its factor besides."""
    for module in model.modules():
        for factor in ("output_scale_factor", "rescale_output_factor"):
            if isinstance(getattr(module, factor, None), (int, float)):
                setattr(module, factor, getattr(module, factor) * 2**0.5)


def times_of(model, batch):
    """Levels of noise for Fourier, otherwise whole numbers."""
    fourier = model.config.time_embedding_type == "fourier"
    return torch.tensor([0.7, 31.0, 4.5] if fourier else [999, 0, 412])[:batch]


def classes_of(model, name, batch):
    if model.class_embedding is None:
        return None
    if model.config.class_embed_type == "identity":
        return formula(f"input.{name}.classes", (batch, model.config.time_embedding_dim))
    return torch.tensor([4, 1, 3])[:batch]


def write_case(name, config, batch, height, width):
    model, order = construct(config)
    if name == "rescaled":
        rescale(model)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: formula(key, shape) for key, shape in shapes.items()})
    model.eval()
    x = formula(f"input.{name}.x", (batch, config.get("in_channels", 3), height, width))
    time, classes = times_of(model, batch), classes_of(model, name, batch)
    with torch.no_grad():
        output = model(x, time, classes).sample
    text = model.to_json_string()
    if name == "rescaled":
        text = text.replace('"resnet_time_scale_shift"', '"rescale_residuals": true,\n  "resnet_time_scale_shift"')
    (FOLDER / f"{name}.config.json").write_text(text)
    lines = [f"{key} {' '.join(map(str, shapes[key]))}\n" for key in order]
    (FOLDER / f"{name}.parameters.txt").write_text("".join(lines))
    tensors = {"x": x, "time": time.float(), "output": output.contiguous()}
    if classes is not None:
        tensors["classes"] = classes.float()
    save_file(tensors, FOLDER / f"{name}.safetensors")
    if name in GRADIENTS:
        model.double()
        target = formula(f"input.{name}.target", tuple(output.shape)).double()
        (model(x.double(), time).sample - target).square().mean().backward()
        gradients = {key: value.grad.float().contiguous() for key, value in model.named_parameters()}
        save_file(gradients, FOLDER / f"{name}.gradients.safetensors")
    if name in SLOPES:
        model.double()
        model.time_proj.register_forward_hook(lambda module, given, rows: rows.double())  # of classes diffusers casts none
        target = formula(f"input.{name}.target", tuple(output.shape)).double()
        told = classes.double() if model.config.class_embed_type == "identity" else classes
        (model(x.double(), time, told).sample - target).square().mean().backward()
        (FOLDER / f"{name}.slopes.txt").write_text("".join(slope(*pair) for pair in model.named_parameters()))
    print(f"{name}: {sum(map(np.prod, shapes.values()))} parameters, output std {output.std():.3f}")


def slope(name, parameter):
    if parameter.grad is None:
        return f"{name} 0 0\n"
    product = (parameter.grad * formula(f"input.{name}", tuple(parameter.shape))).sum()
    return f"{name} {parameter.grad.norm():.9g} {product:.9g}\n"


def write_saved():
    torch.manual_seed(0)
    model = UNet2DModel(**dict(HO, layers_per_block=1, **levels((8, 0), (12, 1)))).eval()
    model.save_pretrained(FOLDER / "saved")
    x, time = torch.randn(2, 3, 8, 12), torch.tensor([250, 3])
    with torch.no_grad():
        output = model(x, time).sample
    save_file({"x": x, "time": time.float(), "output": output}, FOLDER / "saved/io.safetensors")


def write_torchs_weights():
    """A digest of the bits of all parameters after torch.manual_seed(7), in the order of construction, and what follows."""
    lines = []
    for name, (config, *_) in CASES.items():
        torch.manual_seed(7)
        model, order = construct(config)
        state = model.state_dict()
        weights = torch.cat([state[key].flatten() for key in order])
        lines.append(f"{name} {digest(weights)} then {digest(torch.randn(20))}\n")
    (FOLDER / "torchs_weights.txt").write_text("".join(lines))


def digest(tensor):
    """FNV-1a over the bits of each number, a word at a time."""
    hash_ = 0xCBF29CE484222325
    for bits in tensor.contiguous().view(torch.int32).flatten().tolist():
        hash_ = (hash_ ^ (bits & 0xFFFFFFFF)) * 0x100000001B3 % 2**64
    return f"{hash_:016x}"


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for name, case in CASES.items():
        write_case(name, *case)
    write_saved()
    write_torchs_weights()
