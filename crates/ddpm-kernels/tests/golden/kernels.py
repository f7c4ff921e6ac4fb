"""Golden values for ddpm-kernels, made by PyTorch 2.x: python kernels.py > kernels.txt

Each line is a name, the shape and the values. Inputs are sin(0.37 i + phase), i counting elements, so that the tests
can make them again.
"""
import math
import torch

torch.set_default_dtype(torch.float64)


def wave(shape, phase):
    n = math.prod(shape)
    return torch.sin(0.37 * torch.arange(n, dtype=torch.float64) + phase).reshape(shape).requires_grad_()


def show(name, x):
    print(name, "x".join(map(str, x.shape)), *(f"{v:.9g}" for v in x.detach().flatten().tolist()))


def grads(name, y, inputs):
    show(f"{name}.y", y)
    weight = wave(y.shape, 0.5).detach()
    for i, g in enumerate(torch.autograd.grad((y * weight).sum(), inputs)):
        show(f"{name}.d{i}", g)


x, w, b = wave((2, 3, 7, 5), 0.1), wave((4, 3, 3, 3), 0.2), wave((4,), 0.3)
grads("conv", torch.nn.functional.conv2d(torch.nn.functional.pad(x, (0, 1, 0, 1)), w, b, stride=2), (x, w, b))

x, gamma, beta = wave((2, 6, 3, 2), 0.1), wave((6,), 0.2), wave((6,), 0.3)
grads("norm", torch.nn.functional.silu(torch.nn.functional.group_norm(x, 3, gamma, beta, 1e-5)), (x, gamma, beta))

q, k, v = wave((2, 2, 5, 3), 0.1), wave((2, 2, 4, 3), 0.2), wave((2, 2, 4, 2), 0.3)
grads("attention", torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.7), (q, k, v))

for name, decay in (("adam", 0.0), ("adamw", 0.1)):
    p = wave((7,), 0.1)
    optimiser = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.99), eps=1e-3, weight_decay=decay)
    for step in range(3):
        p.grad = wave((7,), 0.2 + step).detach()
        optimiser.step()
    show(f"{name}.p", p)
    show(f"{name}.m", optimiser.state[p]["exp_avg"])
    show(f"{name}.v", optimiser.state[p]["exp_avg_sq"])

x = wave((2, 3, 4, 6), 0.1)
grads("pool", torch.nn.functional.avg_pool2d(x, 2), (x,))
for name in ("relu", "gelu", "mish"):
    x = wave((2, 3, 4, 6), 0.1)
    grads(name, getattr(torch.nn.functional, name)(4 * x), (x,))


def filtered(x, up):
    """diffusers' upfirdn2d: the filter of StyleGAN 2, flipped as there (it is symmetric)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    kernel = (kernel / kernel.sum() * (4 if up else 1)).expand(x.shape[1], 1, 4, 4)
    if up:
        batch, channels, height, width = x.shape
        spread = torch.nn.functional.pad(x.view(batch, channels, height, 1, width, 1), (0, 1, 0, 0, 0, 1))
        spread = torch.nn.functional.pad(spread.view(batch, channels, 2 * height, 2 * width), (2, 1, 2, 1))
        return torch.nn.functional.conv2d(spread, kernel, groups=channels)
    return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1)), kernel, stride=2, groups=x.shape[1])


for name, up in (("fir_down", False), ("fir_up", True)):
    x = wave((2, 3, 4, 6), 0.1)
    grads(name, filtered(x, up), (x,))

table = wave((5, 3), 0.1)
grads("embedding", torch.nn.functional.embedding(torch.tensor([4, 0, 4, 2]), table), (table,))
