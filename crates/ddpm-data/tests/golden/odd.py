"""Pictures that are odd, in tests/golden/odd/: python odd.py (Pillow 13.0.0)."""

import pathlib

from PIL import Image

HERE = pathlib.Path(__file__).parent / "odd"
HERE.mkdir(exist_ok=True)
Image.new("CMYK", (8, 8), (10, 200, 30, 5)).save(HERE / "cmyk.jpg")
frames = [Image.new("RGB", (5, 4), color) for color in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
frames[0].save(HERE / "animated.gif", save_all=True, append_images=frames[1:], duration=100)
Image.new("RGB", (1, 1), (7, 8, 9)).save(HERE / "one.png")
Image.new("L", (3, 40), 200).save(HERE / "long.png")
progressive = Image.new("RGB", (16, 16))
progressive.putdata([(x * 16, y * 16, 128) for y in range(16) for x in range(16)])
progressive.save(HERE / "progressive.jpg", progressive=True)
Image.new("F", (3, 2), 0.5).save(HERE / "float.tif")
