"""Other people's checkpoints: small networks in their own layouts, and what they answer.

Run from the root of the clone:  python tests/golden/foreign.py
Made with Python 3.12, PyTorch 2.15.0 (CPU), diffusers 0.42.1, safetensors 0.8.

The networks are stated here anew, from the papers and from what the layouts' names and shapes say; nothing of the
original programs is in them. Weights are random (and not zero where training would begin with zero, so that every path
counts), widths are tiny, groups fewer than the 32 that the originals have, so that files stay small. Files go to
crates/ddpm-checkpoint/tests/golden/: NAME.pt in the layout, NAME.safetensors with `x`, `time`, perhaps `classes`, and
the output `y`; betas.json has the noise schedules of Ho's and DDIM's programs. Weights stored in half precision are rounded before the answer is computed.
"""

import json
import math
import pathlib
import shutil
import zipfile
from collections import OrderedDict

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

OUT = pathlib.Path(__file__).parents[2] / "crates/ddpm-checkpoint/tests/golden"
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)


# ---------------------------------------------------------------- Ho's network


def sines_first(time, width):
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    angles = time.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], 1)


class Holder(nn.Module):
    """A module with children of these names."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class HoResnet(nn.Module):
    def __init__(self, a, b, time, groups, wide=False):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, a, eps=1e-6), nn.Conv2d(a, b, 3, padding=1)
        self.temb_proj = nn.Linear(time, b)
        self.norm2, self.conv2 = nn.GroupNorm(groups, b, eps=1e-6), nn.Conv2d(b, b, 3, padding=1)
        self.shortcut = ("conv_shortcut" if wide else "nin_shortcut") if a != b else None
        if self.shortcut:
            self.add_module(self.shortcut, nn.Conv2d(a, b, 3, padding=1) if wide else nn.Conv2d(a, b, 1))

    def forward(self, x, t):
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(t))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (getattr(self, self.shortcut)(x) if self.shortcut else x)


class HoAttention(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        b, c, h, w = x.shape
        n = self.norm(x)
        q, k, v = (m(n).reshape(b, c, h * w).transpose(1, 2) for m in (self.q, self.k, self.v))
        a = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(c), -1) @ v
        return x + self.proj_out(a.transpose(1, 2).reshape(b, c, h, w))


class Ho(nn.Module):
    """`wide`: shortcuts are 3x3 convolutions; `plain`: levels change their size without one."""

    def __init__(self, channels, width, mults, layers, attended, groups, wide=False, plain=False):
        super().__init__()
        self.width, time, n, self.plain = width, 4 * width, len(mults), plain
        self.temb = Holder(dense=nn.ModuleList([nn.Linear(width, time), nn.Linear(time, time)]))
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        down, skips, c = [], [width], width
        for i, m in enumerate(mults):
            blocks, attns = nn.ModuleList(), nn.ModuleList()
            for _ in range(layers):
                blocks.append(HoResnet(c, width * m, time, groups, wide))
                c = width * m
                skips.append(c)
                if i in attended:
                    attns.append(HoAttention(c, groups))
            level = Holder(block=blocks, attn=attns)
            if i < n - 1:
                if not plain:
                    level.downsample = Holder(conv=nn.Conv2d(c, c, 3, stride=2))
                skips.append(c)
            down.append(level)
        self.down = nn.ModuleList(down)
        self.mid = Holder(block_1=HoResnet(c, c, time, groups), attn_1=HoAttention(c, groups), block_2=HoResnet(c, c, time, groups))
        up = {}
        for i in reversed(range(n)):
            blocks, attns = nn.ModuleList(), nn.ModuleList()
            for _ in range(layers + 1):
                blocks.append(HoResnet(c + skips.pop(), width * mults[i], time, groups, wide))
                c = width * mults[i]
                if i in attended:
                    attns.append(HoAttention(c, groups))
            up[i] = Holder(block=blocks, attn=attns)
            if i > 0 and not plain:
                up[i].upsample = Holder(conv=nn.Conv2d(c, c, 3, padding=1))
        self.up = nn.ModuleList([up[i] for i in range(n)])
        self.norm_out, self.conv_out = nn.GroupNorm(groups, c, eps=1e-6), nn.Conv2d(c, channels, 3, padding=1)

    def forward(self, x, time):
        t = self.temb.dense[1](F.silu(self.temb.dense[0](sines_first(time, self.width))))
        h = self.conv_in(x)
        kept = [h]
        for i, level in enumerate(self.down):
            for j, block in enumerate(level.block):
                h = block(h, t)
                if len(level.attn):
                    h = level.attn[j](h)
                kept.append(h)
            if i < len(self.down) - 1:
                h = F.avg_pool2d(h, 2) if self.plain else level.downsample.conv(F.pad(h, (0, 1, 0, 1)))
                kept.append(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, t)), t)
        for i, level in reversed(list(enumerate(self.up))):
            for j, block in enumerate(level.block):
                h = block(torch.cat([h, kept.pop()], 1), t)
                if len(level.attn):
                    h = level.attn[j](h)
            if i > 0:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
                h = h if self.plain else level.upsample.conv(h)
        return self.conv_out(F.silu(self.norm_out(h)))


# ---------------------------------------------------------------- OpenAI's network


def cosines_first(time, width):
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
    angles = time.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], 1)


class OpenAiResnet(nn.Module):
    def __init__(self, a, b, time, groups, film, change=None):
        super().__init__()
        self.film, self.change = film, change
        norm = lambda c: nn.GroupNorm(groups, c, eps=1e-5)
        self.in_layers = nn.Sequential(norm(a), nn.SiLU(), nn.Conv2d(a, b, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * b if film else b))
        self.out_layers = nn.Sequential(norm(b), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(b, b, 3, padding=1))
        if a != b:
            self.skip_connection = nn.Conv2d(a, b, 1)

    def resize(self, x):
        if self.change == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.change == "up" else x

    def forward(self, x, t):
        h = F.silu(self.in_layers[0](x))
        x, h = self.resize(x), self.in_layers[2](self.resize(h))
        t = self.emb_layers(t)[:, :, None, None]
        if self.film:
            scale, shift = t.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + t)
        return h + (self.skip_connection(x) if hasattr(self, "skip_connection") else x)


class OpenAiAttention(nn.Module):
    """`heads(c)` heads at c channels; the rows of qkv are (head, kind, channel) or, in the new order, (kind, head, channel)."""

    def __init__(self, c, groups, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads(c), new_order
        self.norm = nn.GroupNorm(groups, c, eps=1e-5)
        self.qkv, self.proj_out = nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        rows = self.qkv(self.norm(x.reshape(b, c, h * w)))
        if self.new_order:
            q, k, v = rows.reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        else:
            q, k, v = rows.reshape(b, self.heads, 3, c // self.heads, h * w).unbind(2)
        a = torch.softmax(torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(c // self.heads), -1)
        a = torch.einsum("bhts,bhcs->bhct", a, v).reshape(b, c, h * w)
        return x + self.proj_out(a).reshape(b, c, h, w)


class OpenAi(nn.Module):
    def __init__(self, channels, out, width, mults, layers, attended, groups, heads, new_order=False, film=True, updown=False, classes=None, rescale=None, heads_up=None):
        super().__init__()
        self.width, time, n, self.rescale = width, 4 * width, len(mults), rescale
        first = int(width * mults[0])
        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        if classes:
            self.label_emb = nn.Embedding(classes, time)
        attention = lambda c: OpenAiAttention(c, groups, heads, new_order)
        attention_up = lambda c: OpenAiAttention(c, groups, heads_up or heads, new_order)
        blocks, skips, c = [nn.Sequential(nn.Conv2d(channels, first, 3, padding=1))], [first], first
        for i, m in enumerate(mults):
            for _ in range(layers):
                parts = [OpenAiResnet(c, int(width * m), time, groups, film)]
                c = int(width * m)
                blocks.append(nn.Sequential(*parts, *([attention(c)] if i in attended else [])))
                skips.append(c)
            if i < n - 1:
                halve = OpenAiResnet(c, c, time, groups, film, "down") if updown else Holder(op=nn.Conv2d(c, c, 3, stride=2, padding=1))
                blocks.append(nn.Sequential(halve))
                skips.append(c)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = nn.Sequential(OpenAiResnet(c, c, time, groups, film), attention(c), OpenAiResnet(c, c, time, groups, film))
        blocks = []
        for i in reversed(range(n)):
            for j in range(layers + 1):
                parts = [OpenAiResnet(c + skips.pop(), int(width * mults[i]), time, groups, film)]
                c = int(width * mults[i])
                if i in attended:
                    parts.append(attention_up(c))
                if i > 0 and j == layers:
                    parts.append(OpenAiResnet(c, c, time, groups, film, "up") if updown else Holder(conv=nn.Conv2d(c, c, 3, padding=1)))
                blocks.append(nn.Sequential(*parts))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(nn.GroupNorm(groups, c, eps=1e-5), nn.SiLU(), nn.Conv2d(first, out, 3, padding=1))

    def forward(self, x, time, classes=None):
        time = time.float() * self.rescale if self.rescale else time
        t = self.time_embed(cosines_first(time, self.width))
        if classes is not None:
            t = t + self.label_emb(classes)

        def through(parts, h):
            for part in parts:
                if isinstance(part, OpenAiResnet):
                    h = part(h, t)
                elif hasattr(part, "op"):
                    h = part.op(h)
                elif hasattr(part, "conv"):
                    h = part.conv(F.interpolate(h, scale_factor=2, mode="nearest"))
                else:
                    h = part(h)
            return h

        h, kept = x, []
        for block in self.input_blocks:
            h = through(block, h)
            kept.append(h)
        h = through(self.middle_block, h)
        for block in self.output_blocks:
            h = through(block, torch.cat([h, kept.pop()], 1))
        return self.out(h)


# ---------------------------------------------------------------- files


def randomised(network, dtype=torch.float32):
    """Weights of a size that lets every part be seen in the output, rounded to what will be stored."""
    for name, p in network.named_parameters():
        if p.dim() > 1:
            p.copy_(torch.randn_like(p) / math.sqrt(p[0].numel()))
        else:
            p.copy_(torch.randn_like(p) * 0.1 + (1.0 if p.dim() == 1 and name.endswith("weight") else 0.0))
        p.copy_(p.to(dtype).float())
    return network.eval()


def answer(name, network, size, times, **told):
    x = torch.randn(len(times), *size)
    time = torch.tensor(times)
    y = network(x, time, **told)
    tensors = {"x": x, "time": time.float(), "y": y.contiguous()}
    if told:
        tensors["classes"] = told["classes"].float()
    save_file(tensors, OUT / f"{name}.safetensors")


def save(name, content, **how):
    torch.save(content, OUT / f"{name}.pt", **how)


def state(network, dtype=torch.float32, prefix=""):
    return OrderedDict((prefix + k, v.to(dtype)) for k, v in network.state_dict().items())


def layouts():
    torch.manual_seed(7)
    # pesser's: a bare state dict. DDIM's: a list with the raw network (its names begin with `module.`) and the average.
    ho = randomised(Ho(3, 4, (1, 2), 1, {1}, 2), torch.float16)
    save("ho", state(ho, torch.float16))
    answer("ho", ho, (3, 8, 12), [999, 0])
    raw, average = (randomised(Ho(1, 4, (1, 1, 2), 2, {1}, 2), torch.bfloat16) for _ in range(2))
    optimizer = torch.optim.Adam(raw.parameters(), lr=2e-4).state_dict()
    save("ddim", [state(raw, torch.bfloat16, "module."), optimizer, 12, 34567, dict(state(average, torch.bfloat16))])
    answer("ddim", average, (1, 8, 12), [500, 7])
    answer("ddim_raw", raw, (1, 8, 12), [500, 7])

    # improved-diffusion: so many heads, 4000 steps told as 1000, learned variance.
    of = lambda n: (lambda c: n)
    improved = randomised(OpenAi(3, 6, 4, (1, 2, 3), 1, {1, 2}, 2, of(2), rescale=1000 / 4000), torch.float16)
    save("improved", state(improved, torch.float16))
    answer("improved", improved, (3, 8, 12), [3999, 1])
    # Without scale and shift, one head.
    plain = randomised(OpenAi(1, 1, 4, (1, 2), 2, set(), 2, of(1), film=False), torch.float16)
    save("improved_plain", state(plain, torch.float16), _use_new_zipfile_serialization=False)
    answer("improved_plain", plain, (1, 4, 6), [999, 400])
    # guided-diffusion: heads of so many channels, residual blocks that halve and double, classes, both orders.
    by = lambda n: (lambda c: c // n)
    for name, new in (("guided", False), ("guided_new_order", True)):
        guided = randomised(OpenAi(3, 6, 4, (1, 2), 1, {1}, 2, by(4), new_order=new, updown=True, classes=5), torch.float16)
        save(name, state(guided, torch.float16))
        answer(name, guided, (3, 8, 12), [999, 250], classes=torch.tensor([4, 1]))


    # As its largest: the first level has half the channels that the time has numbers.
    torch.manual_seed(10)
    half = randomised(OpenAi(3, 6, 8, (0.5, 1), 1, {1}, 2, by(4), updown=True), torch.float16)
    save("guided_half", state(half, torch.float16))
    answer("guided_half", half, (3, 8, 12), [999, 250])


def variants():
    """What the programs have as switches, and few checkpoints."""
    torch.manual_seed(11)
    ho = randomised(Ho(1, 4, (1, 2, 2), 1, {1}, 2, wide=True, plain=True), torch.float16)
    # DDIM's "bayesian" type keeps a number for each step, which its forward pass does not use.
    save("ho_variants", {**state(ho, torch.float16), "logvar": torch.zeros(10)})
    answer("ho_variants", ho, (1, 8, 12), [9, 0])
    of = lambda n: (lambda c: n)
    up = randomised(OpenAi(1, 1, 8, (0.5, 1), 1, {0, 1}, 2, of(2), rescale=1000 / 4000, heads_up=of(4)), torch.float16)
    save("improved_up", state(up, torch.float16))
    answer("improved_up", up, (1, 8, 4), [3999, 1])


def betas(name, start, end, steps):
    """The schedules of Ho's and DDIM's programs by their names."""
    rising = lambda n: start + (end - start) * np.arange(n) / max(n - 1, 1)
    if name == "quad":
        return (math.sqrt(start) + (math.sqrt(end) - math.sqrt(start)) * np.arange(steps) / (steps - 1)) ** 2
    if name == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))
    if name in ("warmup10", "warmup50"):
        warm = int(steps * int(name[6:]) / 100)
        return np.concatenate([rising(warm), np.full(steps - warm, end)])
    if name == "const":
        return np.full(steps, end)
    return 1 / np.arange(steps, 0, -1)  # jsd


def schedules():
    names = ("quad", "sigmoid", "warmup10", "warmup50", "const", "jsd")
    told = {name: betas(name, 2e-4, 0.03, 24).tolist() for name in names}
    (OUT / "betas.json").write_text(json.dumps(told, indent=0) + "\n")


def files():
    """Ways in which torch.save stores tensors."""
    torch.manual_seed(8)
    whole = torch.arange(24.0).reshape(2, 3, 4)
    content = {
        "plain": whole.clone(),
        "transposed": whole.clone().permute(2, 0, 1),
        "every_other": torch.arange(12.0)[1::2],
        "window": whole[1, 1:],
        "same_storage": whole,
        "parameter": nn.Parameter(torch.tensor([1.5, -2.5])),
        "half": torch.tensor([0.5, 65504.0]).half(),
        "bfloat": torch.tensor([0.5, 3e38]).bfloat16(),
        "double": torch.tensor([1e-3, 2.0], dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.25),
        "whole_numbers": torch.tensor([1, -2]),
        "truth": torch.tensor([True, False]),
    }
    save("tensors", content)
    save("tensors_old", content, _use_new_zipfile_serialization=False)
    for protocol in (3, 4, 5):
        save(f"tensors_{protocol}", content, pickle_protocol=protocol)
    # The same with its numbers the other way round, as a machine with another byte order would write it.
    with zipfile.ZipFile(OUT / "tensors.pt") as read, zipfile.ZipFile(OUT / "tensors_big.pt", "w") as write:
        item = {0: 4}
        for entry in read.infolist():
            data = read.read(entry)
            if "/data/" in entry.filename:
                # All of the same width here: the widths differ by storage, so they are told by the pickle's order.
                width = WIDTHS[int(entry.filename.rsplit("/", 1)[1])]
                data = b"".join(data[i : i + width][::-1] for i in range(0, len(data), width))
            elif entry.filename.endswith("byteorder"):
                data = b"big"
            write.writestr(entry.filename, data)


# Bytes of a number in each storage of `files`, in the order of their first use.
WIDTHS = [4, 4, 4, 4, 4, 2, 2, 8, 4, 4, 8, 1]


def folder():
    """A diffusers model saved in every way that diffusers has."""
    torch.manual_seed(9)
    network = diffusers.UNet2DModel(
        sample_size=(4, 6), in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(4, 8), norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )
    pipeline = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())
    shutil.rmtree(OUT / "folder", ignore_errors=True)
    pipeline.save_pretrained(OUT / "folder")
    unet = OUT / "folder" / "unet"
    network.save_pretrained(unet, safe_serialization=False)
    network.half().save_pretrained(unet, variant="fp16")
    network.save_pretrained(unet, variant="fp16", safe_serialization=False)
    network.float().save_pretrained(unet, max_shard_size="10KB", safe_serialization=True, variant="parts")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    layouts()
    variants()
    schedules()
    files()
    folder()
