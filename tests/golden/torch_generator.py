"""Golden values of crates/ddpm-random's TorchGenerator from PyTorch's CPU generator.

    pip install torch numpy
    python tests/golden/torch_generator.py          # made with torch 2.15.0 on x86-64 with AVX2

Writes crates/ddpm-random/tests/golden/torch.txt. A line `seed S` is torch.manual_seed(S); every line after it is one call
on that generator: its name, its count, a digest of all its numbers, and up to four of them from the end.
The digest is FNV-1a (64 bits) over the bits of the numbers, each as one 64-bit word. Normals of float64 depend on the
system's libm in the last bit: their digest is left out (-), and the four numbers are compared closely instead.
"""

import pathlib

import torch

FILE = pathlib.Path(__file__).parents[2] / "crates/ddpm-random/tests/golden/torch.txt"
SEEDS = [0, 1, 42, 2**32 - 1, 2**32, 2**40 + 5, 2**63 - 1, -1]
F64 = torch.float64
CALLS = {
    "normal": lambda n: torch.randn(n),
    "normal_f64": lambda n: torch.randn(n, dtype=F64),
    "uniform": lambda n: torch.rand(n),
    "uniform_f64": lambda n: torch.rand(n, dtype=F64),
    "integers_10": lambda n: torch.randint(0, 10, (n,)),
    "integers_wide": lambda n: torch.randint(-(2**60), 2**60, (n,)),
    "integers_below_2_28": lambda n: torch.randint(-5, 2**28 - 6, (n,)),
    "integers_from_2_28": lambda n: torch.randint(0, 2**28, (n,)),
    "permutation": lambda n: torch.randperm(n),
}
# An odd count below 16 leaves a normal waiting, which the next such call takes, whatever its type and whatever lies between.
PROGRAM = [
    ("normal", 1), ("normal_f64", 1), ("normal", 3), ("uniform", 5), ("normal_f64", 2), ("normal", 15), ("normal", 16),
    ("normal", 17), ("normal_f64", 17), ("normal", 31), ("normal", 100), ("normal", 3 * 32 * 32), ("normal_f64", 100),
    ("uniform", 625), ("uniform_f64", 7), ("integers_10", 9), ("integers_wide", 9), ("integers_below_2_28", 9),
    ("integers_from_2_28", 9), ("permutation", 1), ("permutation", 300), ("normal", 2), ("normal", 10_007),
]


def bits(x):
    width = {4: torch.int32, 8: torch.int64}[x.element_size()]
    mask = 2 ** (8 * x.element_size()) - 1
    return [b & mask for b in x.view(width).tolist()]


def digest(x):
    h = 0xCBF29CE484222325
    for b in bits(x):
        h = (h ^ b) * 0x100000001B3 % 2**64
    return f"{h:016x}"


def line(name, n):
    x = CALLS[name](n)
    end = " ".join(str(v) for v in x[-4:].numpy())
    return f"{name} {n} {'-' if name == 'normal_f64' else digest(x)} {end}"


def main():
    lines = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        lines.append(f"seed {seed % 2**64}")
        lines += [line(name, n) for name, n in PROGRAM]
    torch.manual_seed(3)
    lines += ["seed 3", line("normal", 1_000_003)]
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text("\n".join(lines) + "\n")
    print(FILE, FILE.stat().st_size)


main()
