# Writes resize.txt: what Pillow makes of images given by a formula.  python resize.py > resize.txt   (Pillow 12.0.0: before 13, columns always come first)
from PIL import Image

PATTERNS = {
    "mixed": lambda i: (i * i * 7 + i * 13 + 5) % 256,
    "harsh": lambda i: 255 * ((i * i // 5) % 2),  # bicubic goes below 0 and above 255 here
}
CASES = [  # pattern, channels, (height, width) -> (height, width)
    ("mixed", 1, (7, 5), (3, 4)),
    ("mixed", 3, (7, 5), (16, 11)),
    ("mixed", 3, (9, 12), (9, 5)),
    ("mixed", 3, (9, 12), (4, 12)),
    ("mixed", 1, (64, 48), (8, 6)),
    ("mixed", 3, (61, 47), (7, 9)),
    ("mixed", 1, (1, 1), (3, 2)),
    ("mixed", 1, (300, 2), (5, 3)),
    ("harsh", 1, (13, 11), (10, 10)),
    ("harsh", 3, (13, 11), (17, 5)),
    ("harsh", 3, (6, 6), (6, 6)),
]
print("# pattern channels from to filter values; made by resize.py with Pillow", Image.__version__)
for pattern, channels, (h, w), to in CASES:
    values = bytes(PATTERNS[pattern](i) for i in range(h * w * channels))
    image = Image.frombytes({1: "L", 3: "RGB"}[channels], (w, h), values)
    for name, resample in [("area", Image.Resampling.BOX), ("bicubic", Image.Resampling.BICUBIC)]:
        out = image.resize((to[1], to[0]), resample).tobytes()
        print(pattern, channels, f"{h}x{w}", f"{to[0]}x{to[1]}", name, out.hex())
