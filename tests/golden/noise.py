"""The numbers that crates/ddpm-random/tests/streams.rs pins, from plain Python and its mathematics.

python3 tests/golden/noise.py
"""
import math
import struct

MASK = 0xFFFFFFFF


def philox(key, counter):
    """Philox4x32-10, Salmon et al. 2011."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def block(seed, stream, image, step, number):
    high = (image >> 32) | (step >> 32) << 12 | stream << 24
    return philox((seed & MASK, seed >> 32), (number, image & MASK, step & MASK, high))


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def shortest(x):
    """The fewest digits that are this f32."""
    return next(s for s in (f"{x:.{digits}g}" for digits in range(1, 18)) if f32(float(s)) == x)


def normals(seed, stream, image, step):
    out = []
    for number in range(2):
        words = block(seed, stream, image, step, number)
        for n, m in (words[:2], words[2:]):
            u, v = (n + 0.5) / 2**32, (m + 0.5) / 2**32
            radius = math.sqrt(-2 * math.log(u))
            out += [f32(radius * math.cos(math.tau * v)), f32(radius * math.sin(math.tau * v))]
    return out


def below(seed, stream, image, step, n):
    number = 0
    while True:
        a, b, c, d = block(seed, stream, image, step, number)
        for word in (a | b << 32, c | d << 32):
            if word * n % 2**64 >= 2**64 % n:
                return word * n >> 64
        number += 1


def permutation(seed, epoch, n):
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = below(seed, 4, i, epoch, i + 1)
        order[i], order[j] = order[j], order[i]
    return order


SEED, IMAGE, STEP = 0x0123_4567_89AB_CDEF, 2**40 + 3, 5
for stream in range(10):
    print(stream, ", ".join(shortest(z) for z in normals(SEED, stream, IMAGE, STEP)))
words = [word for number in range(2) for word in block(SEED, 3, IMAGE, STEP, number)]
print("uniforms", ", ".join(shortest((word >> 8) / 2**24) for word in words))
a, b, _, _ = block(SEED, 1, IMAGE, STEP, 0)
print("uniform_f64", repr(((a | b << 32) >> 11) / 2**53))
print("below", [below(SEED, 1, IMAGE, STEP, n) for n in (1, 2, 10, 1000, 2**32, 3 * 2**62, 2**64 - 1)])
print("below 3 * 2^62, images 0..8", [below(SEED, 1, image, 0, 3 * 2**62) for image in range(8)])
print("permutation", permutation(SEED, 2, 12))
