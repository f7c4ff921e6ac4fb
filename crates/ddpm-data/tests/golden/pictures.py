# Writes pictures/* and pictures.txt: one small picture in many file formats, and the values it has over a background.
#   python pictures.py     (Pillow 12.0.0)
import os
import struct
import zlib
from fractions import Fraction

from PIL import Image

H, W = 5, 6
BACKGROUND = (10, 200, 30)
os.makedirs("pictures", exist_ok=True)
rgb = [[(r * 50, c * 50, (r * c * 17 + 40) % 256) for c in range(W)] for r in range(H)]
alpha = [[(r * 60 + c * 11) % 256 for c in range(W)] for r in range(H)]
flat = [p for row in rgb for p in row]
flat_alpha = [a for row in alpha for a in row]

image = Image.new("RGB", (W, H))
image.putdata(flat)
grey = Image.new("L", (W, H))
grey.putdata([p[2] for p in flat])
rgba = image.copy()
rgba.putalpha(Image.frombytes("L", (W, H), bytes(flat_alpha)))
palette = Image.new("P", (W, H))
palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
palette.putdata([i % 4 for i in range(H * W)])
sixteen = Image.new("I;16", (W, H))
sixteen.frombytes(b"".join(struct.pack("<H", i * 2184 + 100) for i in range(H * W)))
lines = []


def over(pixel, a):
    return tuple(int(Fraction(v * a + b * (255 - a), 255) + Fraction(1, 2)) for v, b in zip(pixel, BACKGROUND))


def note(name, pixels, size=(H, W), tolerance=0):
    values = bytes(v for p in pixels for v in p)
    lines.append(f"{name} {size[0]}x{size[1]} {tolerance} {values.hex()}")


def same(image):
    return list(image.convert("RGB").getdata())


for ending in ["png", "bmp", "tiff"]:
    image.save(f"pictures/rgb.{ending}")
    note(f"rgb.{ending}", flat)
    grey.save(f"pictures/grey.{ending}")
    note(f"grey.{ending}", same(grey))
    palette.save(f"pictures/palette.{ending}") if ending != "tiff" else None
    note(f"palette.{ending}", same(palette)) if ending != "tiff" else None
image.save("pictures/rgb.webp", lossless=True)
note("rgb.webp", flat)
for ending in ["png", "tiff"]:
    rgba.save(f"pictures/rgba.{ending}")
    note(f"rgba.{ending}", [over(p, a) for p, a in zip(flat, flat_alpha)])
    sixteen.save(f"pictures/grey-16.{ending}")
    note(f"grey-16.{ending}", [(int(Fraction(i * 2184 + 100, 257) + Fraction(1, 2)),) * 3 for i in range(H * W)])
seen = [over(p, 0) if i % 4 == 2 else p for i, p in enumerate(same(palette))]
palette.save("pictures/transparent.png", transparency=2)
note("transparent.png", seen)
palette.save("pictures/transparent.gif", transparency=2, save_all=True, append_images=[grey.convert("P")])
note("transparent.gif", seen)

# 16 bits a colour, which Pillow does not write.
rows = b"".join(b"\0" + b"".join(struct.pack(">3H", *(v * 256 + 77 for v in p)) for p in row) for row in rgb)
chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
header = struct.pack(">2I5B", W, H, 16, 2, 0, 0, 0)
with open("pictures/rgb-16.png", "wb") as file:
    file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
note("rgb-16.png", [tuple(int(Fraction(v * 256 + 77, 257) + Fraction(1, 2)) for v in p) for p in flat])

# Lossy: decoders differ by a few shades.
smooth = Image.new("RGB", (16, 8))
smooth.putdata([(r * 20, c * 10, 90) for r in range(8) for c in range(16)])
exif = Image.Exif()
exif[0x0112] = 6  # the camera was held so that the picture must be turned a quarter clockwise
smooth.save("pictures/photo.jpg", quality=95, subsampling=0)
smooth.save("pictures/turned.JPEG", quality=95, subsampling=0, exif=exif)
smooth.convert("L").save("pictures/grey.jpg", quality=95)
smooth.save("pictures/photo.webp", quality=95)
note("photo.jpg", same(Image.open("pictures/photo.jpg")), (8, 16), 3)
note("turned.JPEG", same(Image.open("pictures/photo.jpg").transpose(Image.Transpose.ROTATE_270)), (16, 8), 3)
note("grey.jpg", same(Image.open("pictures/grey.jpg")), (8, 16), 3)
note("photo.webp", same(Image.open("pictures/photo.webp")), (8, 16), 3)
with open("pictures.txt", "w") as file:
    file.write("# picture size tolerance values; made by pictures.py\n" + "\n".join(lines) + "\n")
