"""lucidrains' networks, version by version: small files of theirs, what the networks answer, and whole walks.

Run from the root of the clone:  python tests/golden/lucidrains.py
Made with Python 3.12, PyTorch 2.15.0 (CPU), safetensors 0.8.

The network is stated here anew, as functions of a dict of tensors, from what names, shapes and papers say; nothing of the
original program is in it. Weights are random, widths tiny and unequal. Files go to crates/ddpm-checkpoint/tests/golden/:
lucidrains*.pt in the layout, lucidrains*.safetensors with `x`, `time` and the outputs, `y` or `y.VERSION` where versions
of the same names compute differently, and for walks `noise`, `step_noise` and where they end (`end`), and where PyTorch's seed 5 does (`seeded`).
`lucidrains_package.py` holds the original program to the same numbers.
"""

import math
import pathlib
from collections import OrderedDict

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

OUT = pathlib.Path(__file__).parents[2] / "crates/ddpm-checkpoint/tests/golden"
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)


class Era:
    """What versions differ in."""

    def __init__(self, version):
        at = tuple(int(part) for part in version.split("."))
        self.grouped = at < (2, 0, 0)
        self.memory = at >= (1, 9, 0)
        self.wrapped = at < (1, 8, 0)
        self.rms = at >= (1, 7, 0)
        self.biased = at < (0, 26, 5)
        self.pixels = at >= (0, 32, 0)
        self.standardised = "plus" if (0, 27, 3) <= at < (1, 7, 1) else "clamp" if at == (1, 7, 1) else None
        self.cosine = 16 if (0, 26, 0) <= at < (0, 27, 3) else 10 if (0, 27, 3) <= at < (0, 28, 0) else None
        self.mean = (0, 26, 4) <= at < (1, 7, 4)


class Shape:
    """A network's sizes."""

    def __init__(self, dim, widths, full, heads, sizes, channels=3, first=None, groups=None, self_condition=False, learned=False, fourier=None):
        self.dim, self.widths, self.full, self.heads, self.sizes = dim, widths, full, heads, sizes
        self.channels, self.first, self.groups = channels, first or dim, groups
        self.self_condition, self.learned, self.fourier = self_condition, learned, fourier

    def pairs(self):
        return list(zip([self.first, *self.widths[:-1]], self.widths))


def weights(shape, era, seed):
    """A dict of tensors under the names of that version."""
    torch.manual_seed(seed)
    w = OrderedDict()

    def layer(name, *sides):
        fan_in = math.prod(sides[1:])
        w[f"{name}.weight"] = torch.randn(sides) * (1.5 / fan_in) ** 0.5
        w[f"{name}.bias"] = torch.randn(sides[0]) * 0.2

    def pixel_norm(name, width):
        w[f"{name}.g"] = 1 + 0.3 * torch.randn(1, width, 1, 1)
        if era.biased:
            w[f"{name}.b"] = 0.2 * torch.randn(1, width, 1, 1)

    def block(name, a, b, time):
        layer(f"{name}.mlp.1", 2 * b, time)
        for number, width in ((1, a), (2, b)):
            layer(f"{name}.block{number}.proj", b, width, 3, 3)
            if era.grouped:
                w[f"{name}.block{number}.norm.weight"] = 1 + 0.3 * torch.randn(b)
                w[f"{name}.block{number}.norm.bias"] = 0.2 * torch.randn(b)
            else:
                w[f"{name}.block{number}.norm.g"] = 1 + 0.3 * torch.randn(1, b, 1, 1)
        if a != b:
            layer(f"{name}.res_conv", b, a, 1, 1)

    def attention(name, width, full, heads, size):
        pixel_norm(f"{name}.fn.norm" if era.wrapped else f"{name}.norm", width)
        inner = f"{name}.fn.fn" if era.wrapped else name
        if era.memory:
            w[f"{inner}.mem_kv"] = torch.randn(2, heads, *((3, size) if full else (size, 3)))
        w[f"{inner}.to_qkv.weight"] = torch.randn(3 * heads * size, width, 1, 1) * (2 / width) ** 0.5
        if full:
            layer(f"{inner}.to_out", width, heads * size, 1, 1)
        else:
            layer(f"{inner}.to_out.0", width, heads * size, 1, 1)
            pixel_norm(f"{inner}.to_out.1", width)

    time, last = 4 * shape.dim, len(shape.widths) - 1
    layer("init_conv", shape.first, shape.channels * (2 if shape.self_condition else 1), 7, 7)
    if shape.fourier:
        w["time_mlp.0.weights"] = torch.randn(shape.fourier // 2)
    layer("time_mlp.1", time, shape.fourier + 1 if shape.fourier else shape.dim)
    layer("time_mlp.3", time, time)
    for i, (a, b) in enumerate(shape.pairs()):
        block(f"downs.{i}.0", a, a, time)
        block(f"downs.{i}.1", a, a, time)
        attention(f"downs.{i}.2", a, shape.full[i], shape.heads[i], shape.sizes[i])
        if i == last:
            layer(f"downs.{i}.3", b, a, 3, 3)
        elif era.pixels:
            layer(f"downs.{i}.3.1", b, 4 * a, 1, 1)
        else:
            layer(f"downs.{i}.3", b, a, 4, 4)
    for i, (a, b) in enumerate(reversed(shape.pairs())):
        level = last - i
        block(f"ups.{i}.0", a + b, b, time)
        block(f"ups.{i}.1", a + b, b, time)
        attention(f"ups.{i}.2", b, shape.full[level], shape.heads[level], shape.sizes[level])
        layer(f"ups.{i}.3" if i == last else f"ups.{i}.3.1", a, b, 3, 3)
    width = shape.widths[-1]
    block("mid_block1", width, width, time)
    attention("mid_attn", width, True, shape.heads[-1], shape.sizes[-1])
    block("mid_block2", width, width, time)
    block("final_res_block", 2 * shape.first, shape.first, time)
    layer("final_conv", shape.channels * (2 if shape.learned else 1), shape.first, 1, 1)
    w["final_conv.weight"] *= 0.3  # so that walks do not end in clipped pixels alone
    return w


class Network:
    """The network over a dict of tensors."""

    def __init__(self, w, shape, era):
        self.w, self.shape, self.era = w, shape, era

    def layer(self, name, x, **how):
        weight, bias = self.w[f"{name}.weight"], self.w.get(f"{name}.bias")
        return F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, **how)

    def pixel_norm(self, name, x):
        gain, bias = self.w[f"{name}.g"], self.w.get(f"{name}.b", 0)
        if self.era.rms:
            return x / x.pow(2).mean(1, keepdim=True).sqrt() * gain
        normal = F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=1e-5).movedim(-1, 1)
        return normal * gain + bias

    def half(self, name, x, scale, shift):
        kernel = self.w[f"{name}.proj.weight"]
        if self.era.standardised:
            rows = kernel.flatten(1)
            variance = rows.var(1, unbiased=False)
            variance = variance + 1e-5 if self.era.standardised == "plus" else variance.clamp(min=1e-5)
            kernel = ((rows - rows.mean(1)[:, None]) / variance.sqrt()[:, None]).view_as(kernel)
        x = F.conv2d(x, kernel, self.w[f"{name}.proj.bias"], padding=1)
        if self.era.grouped:
            x = F.group_norm(x, self.shape.groups, self.w[f"{name}.norm.weight"], self.w[f"{name}.norm.bias"])
        else:
            x = x / x.pow(2).mean(1, keepdim=True).sqrt() * self.w[f"{name}.norm.g"]
        return F.silu(x * (1 + scale) + shift)

    def block(self, name, x, t):
        told = self.layer(f"{name}.mlp.1", F.silu(t))[:, :, None, None]
        width = told.shape[1] // 2
        h = self.half(f"{name}.block1", x, told[:, :width], told[:, width:])
        h = self.half(f"{name}.block2", h, 0, 0)
        return h + (self.layer(f"{name}.res_conv", x) if f"{name}.res_conv.weight" in self.w else x)

    def attention(self, name, x, full, heads):
        outer = f"{name}.fn.norm" if self.era.wrapped else f"{name}.norm"
        inner = f"{name}.fn.fn" if self.era.wrapped else name
        b, _, height, width = x.shape
        qkv = self.layer(f"{inner}.to_qkv", self.pixel_norm(outer, x))
        q, k, v = qkv.view(b, 3, heads, -1, height * width).unbind(1)  # b, heads, size, pixels
        if self.era.mean and not full:
            v = v / (height * width)
        memory = self.w.get(f"{inner}.mem_kv")
        if memory is not None:
            own = memory.transpose(-1, -2) if full else memory  # 2, heads, size, memories
            k, v = (torch.cat([m.expand(b, *m.shape), x], -1) for m, x in zip(own, (k, v)))
        size = q.shape[2]
        if full:
            if self.era.cosine:
                q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
                table = self.era.cosine * torch.einsum("bhdi,bhdj->bhij", q, k)
            else:
                table = torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(size)
            out = torch.einsum("bhij,bhdj->bhdi", table.softmax(-1), v)
            out = self.layer(f"{inner}.to_out", out.reshape(b, -1, height, width))
        else:
            q, k = q.softmax(2) / math.sqrt(size), k.softmax(3)
            # Every query sees every key: the product over channels first would be slower and the same.
            out = torch.einsum("bhdi,bhdj,bhej->bhei", q, k, v)
            out = self.layer(f"{inner}.to_out.0", out.reshape(b, -1, height, width))
            out = self.pixel_norm(f"{inner}.to_out.1", out)
        return out + x

    def time(self, time):
        time = time.float()
        if self.shape.fourier:
            angles = time[:, None] * self.w["time_mlp.0.weights"][None] * 2 * math.pi
            told = torch.cat([time[:, None], angles.sin(), angles.cos()], 1)
        else:
            half = self.shape.dim // 2
            angles = time[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))[None]
            told = torch.cat([angles.sin(), angles.cos()], 1)
        return self.layer("time_mlp.3", F.gelu(self.layer("time_mlp.1", told)))

    def __call__(self, x, time, last=None):
        shape, t = self.shape, self.time(time)
        if shape.self_condition:
            x = torch.cat([torch.zeros_like(x) if last is None else last, x], 1)
        x = first = self.layer("init_conv", x, padding=3)
        skips, end = [], len(shape.widths) - 1
        for i in range(end + 1):
            x = self.block(f"downs.{i}.0", x, t)
            skips.append(x)
            x = self.attention(f"downs.{i}.2", self.block(f"downs.{i}.1", x, t), shape.full[i], shape.heads[i])
            skips.append(x)
            if i == end:
                x = self.layer(f"downs.{i}.3", x, padding=1)
            elif self.era.pixels:
                x = self.layer(f"downs.{i}.3.1", F.pixel_unshuffle(x, 2))
            else:
                x = self.layer(f"downs.{i}.3", x, padding=1, stride=2)
        x = self.attention("mid_attn", self.block("mid_block1", x, t), True, shape.heads[-1])
        x = self.block("mid_block2", x, t)
        for i in range(end + 1):
            for j in range(2):
                x = self.block(f"ups.{i}.{j}", torch.cat([x, skips.pop()], 1), t)
            x = self.attention(f"ups.{i}.2", x, shape.full[end - i], shape.heads[end - i])
            if i < end:
                x = self.layer(f"ups.{i}.3.1", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
            else:
                x = self.layer(f"ups.{i}.3", x, padding=1)
        x = self.block("final_res_block", torch.cat([x, first], 1), t)
        return self.layer("final_conv", x)


# ---------------------------------------------------------------- the diffusion around it


def betas_of(name, steps):
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if name == "linear":
        return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    if name == "cosine":
        bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    else:
        bar = torch.sigmoid(torch.tensor(3.0)).double() - torch.sigmoid(6 * u - 3)
    return (1 - bar[1:] / bar[:-1]).clamp(0, 0.999)


class Diffusion:
    """Betas, what the network tells, and the walks."""

    def __init__(self, name, steps, objective, bound=math.inf):
        self.betas, self.objective = betas_of(name, steps), objective
        self.bar = (1 - self.betas).cumprod(0)
        self.before = torch.cat([torch.ones(1, dtype=torch.float64), self.bar[:-1]])
        snr = self.bar / (1 - self.bar)
        least = snr.clamp(max=bound)
        self.loss_weight = {"pred_noise": least / snr, "pred_x0": least, "pred_v": least / (snr + 1)}[objective]

    def buffers(self):
        """Those that are read, and one that is not."""
        tilde = self.betas * (1 - self.before) / (1 - self.bar)
        named = {"betas": self.betas, "alphas_cumprod": self.bar, "posterior_variance": tilde, "loss_weight": self.loss_weight}
        return OrderedDict((k, v.float()) for k, v in named.items())

    def clean(self, out, x, t):
        a, s = self.bar[t].sqrt().float(), (1 - self.bar[t]).sqrt().float()
        x_0 = {"pred_noise": lambda: (x - s * out) / a, "pred_x0": lambda: out, "pred_v": lambda: a * x - s * out}[self.objective]()
        return x_0.clamp(-1, 1)

    def ancestral(self, network, x, step_noise):
        """Algorithm 2 of Ho et al. with the smaller variance; the last step draws nothing."""
        last = None
        for z, t in zip([*step_noise, 0], reversed(range(len(self.betas)))):
            out = network(x, torch.full((len(x),), t), last)
            told = None
            if network.shape.learned:
                out, told = out.chunk(2, 1)
            last = self.clean(out, x, t)
            beta, bar, before = (float(v[t]) for v in (self.betas, self.bar, self.before))
            tilde = beta * (1 - before) / (1 - bar)
            x = beta * before**0.5 / (1 - bar) * last + (1 - before) * (1 - beta) ** 0.5 / (1 - bar) * x
            if t > 0:
                share = 0 if told is None else (told + 1) / 2
                x = x + torch.exp(torch.as_tensor(share * math.log(beta) + (1 - share) * math.log(tilde)) / 2) * z
            last = last if network.shape.self_condition else None
        return x


# ---------------------------------------------------------------- files


def answers(name, networks, size, times, extra=None):
    torch.manual_seed(99)
    channels = next(iter(networks.values())).shape.channels
    x = torch.randn(len(times), channels, *size)
    kept = {"x": x, "time": torch.tensor(times, dtype=torch.float32)}
    for key, network in networks.items():
        kept[key] = network(x, kept["time"])
    if next(iter(networks.values())).shape.self_condition:
        kept["x_0_hat"] = torch.randn_like(x).clamp(-1, 1)
        kept["y_after"] = networks["y"](x, kept["time"], kept["x_0_hat"])
    save_file({k: v.contiguous() for k, v in {**kept, **(extra or {})}.items()}, OUT / f"{name}.safetensors")


def walk(network, diffusion, images, size):
    torch.manual_seed(7)
    noise = torch.randn(images, network.shape.channels, *size)
    step_noise = torch.randn(len(diffusion.betas) - 1, *noise.shape)
    end = diffusion.ancestral(network, noise, step_noise)
    # The program draws x_T, then the noise of each step but the last.
    torch.manual_seed(5)
    drawn = [torch.randn(noise.shape) for _ in range(len(step_noise) + 1)]
    seeded = diffusion.ancestral(network, drawn[0], drawn[1:])
    return {"noise": noise, "step_noise": step_noise, "end": end, "seeded": seeded}


def within(prefix, tensors):
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def trained(network, diffusion, version, average):
    """As the trainer saves: the model, its average beside it, and what is no tensor."""
    model = {**diffusion.buffers(), **within("model", network)}
    ema = {"initted": torch.tensor(True), "step": torch.tensor(11), **within("online_model", model)}
    ema.update(within("ema_model", {**diffusion.buffers(), **within("model", average)}))
    return {"step": 11, "model": model, "opt": {"state": {}, "param_groups": []}, "ema": ema, "scaler": None, "version": version}


def current():
    """Version 2 as the trainer saves it: sigmoid, v, an average that is not the model."""
    era = Era("2.3.4")
    shape = Shape(4, [4, 8], [False, True], [2, 3], [3, 2], channels=3)
    raw, average = weights(shape, era, 1), weights(shape, era, 2)
    diffusion = Diffusion("sigmoid", 12, "pred_v")
    torch.save(trained(raw, diffusion, "2.3.4", average), OUT / "lucidrains.pt")
    network = Network(average, shape, era)
    answers("lucidrains", {"y": network, "y_raw": Network(raw, shape, era)}, (6, 4), [11, 3], walk(network, diffusion, 2, (6, 4)))


def self_conditioned():
    """A bare GaussianDiffusion: told what it last took for the image; the image itself, cosine, weights bounded at 5."""
    era = Era("2.0.12")
    shape = Shape(4, [4, 12, 8], [False, True, False], [1, 2, 2], [4, 3, 5], channels=1, first=6, self_condition=True)
    w, diffusion = weights(shape, era, 3), Diffusion("cosine", 9, "pred_x0", bound=5)
    torch.save({**diffusion.buffers(), **within("model", w)}, OUT / "lucidrains_self.pt")
    network = Network(w, shape, era)
    answers("lucidrains_self", {"y": network}, (4, 8), [8, 0], walk(network, diffusion, 2, (4, 8)))


def learned():
    """A bare network that tells the variance, with frequencies that are a tensor."""
    era = Era("2.1.1")
    shape = Shape(4, [8, 4], [True, False], [2, 1], [2, 3], learned=True, fourier=6)
    w, diffusion = weights(shape, era, 4), Diffusion("linear", 40, "pred_noise")
    torch.save(w, OUT / "lucidrains_learned.pt")
    network = Network(w, shape, era)
    answers("lucidrains_learned", {"y": network}, (6, 4), [39, 2], walk(network, diffusion, 1, (6, 4)))


def grouped():
    """Groups in residual blocks, learned keys: 1.9; and without learned keys: 1.8."""
    shape = Shape(4, [4, 8], [False, True], [2, 2], [3, 2], groups=2)
    for name, version in (("lucidrains_1_9", "1.9.6"), ("lucidrains_1_8", "1.8.9")):
        era = Era(version)
        w, diffusion = weights(shape, era, 5), Diffusion("linear", 30, "pred_noise", bound=5)
        torch.save({"model": {**diffusion.buffers(), **within("model", w)}, "version": version}, OUT / f"{name}.pt")
        answers(name, {"y": Network(w, shape, era)}, (4, 6), [29, 4])


def wrapped():
    """Names that versions share which compute differently."""
    shape = Shape(4, [4, 8], [False, False], [4, 4], [32, 32], channels=1, groups=2)
    for name, versions in (
        ("lucidrains_pixels", ["1.5.4", "1.7.0", "1.7.1", "1.7.2", "1.7.7"]),
        ("lucidrains_strided", ["0.26.5", "0.27.3", "0.28.0"]),
        ("lucidrains_biased", ["0.22.0", "0.26.0", "0.26.4"]),
    ):
        w = weights(shape, Era(versions[0]), 6)
        w["downs.0.0.block1.proj.weight"] *= 0.02  # so small that what is added to its variance counts
        torch.save(OrderedDict((k, v.half()) for k, v in w.items()), OUT / f"{name}.pt")
        w = OrderedDict((k, v.half().float()) for k, v in w.items())
        networks = {f"y.{version}": Network(w, shape, Era(version)) for version in versions}
        answers(name, networks, (4, 6), [17, 4])


if __name__ == "__main__":
    current()
    self_conditioned()
    learned()
    grouped()
    wrapped()
