"""Small parquet files of pictures, as the libraries around the Hub write them, in tests/golden/parquet/.

    pip install pyarrow==26.0.1 pillow==13.0.0 && python parquet.py

Picture i has height 5, width 4, and the value (31 i + 7 y + 3 x + 50 c) mod 256 at row y, column x, channel c, as PNG.
Its label is 3 i mod 4. Seven rows; where `nulls` is set, row 2 has no picture and row 5 no label.
The cifar10 files hold three pictures of 32x32 each whose red is the row, whose green is 100 + the column, and whose blue
is ten times the number of the picture (from 1 in train, from 11 in test); the label is that number mod 10.
"""

import io
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HERE = pathlib.Path(__file__).parent / "parquet"


def png(height, width, value):
    data = bytes(value(y, x, c) % 256 for y in range(height) for x in range(width) for c in range(3))
    out = io.BytesIO()
    Image.frombytes("RGB", (width, height), data).save(out, "PNG")
    return out.getvalue()


def small(i):
    return png(5, 4, lambda y, x, c: 31 * i + 7 * y + 3 * x + 50 * c)


def slope(i):
    return png(32, 32, lambda y, x, c: (y, 100 + x, 10 * i)[c])


def features(names, column):
    label = {"names": names, "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": {column: {"_type": "Image"}, "label": label}}})}


def write(name, pictures, labels, *, column="image", plain=False, names=None, **options):
    if plain:
        column_of_pictures = pa.array(pictures, pa.binary())
    else:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = [None if p is None else {"bytes": p, "path": f"{i}.png"} for i, p in enumerate(pictures)]
        column_of_pictures = pa.array(rows, kind)
    columns = {"before": pa.array([[i] * i for i in range(len(pictures))]), column: column_of_pictures}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if names:
        table = table.replace_schema_metadata(features(names, column))
    pq.write_table(table, HERE / f"{name}.parquet", **options)


HERE.mkdir(exist_ok=True)
pictures, labels = [small(i) for i in range(7)], [3 * i % 4 for i in range(7)]
names = ["ant", "bee", "cat", "dog"]
write("snappy", pictures, labels, names=names, compression="snappy")
write("zstd-2", pictures, labels, names=names, compression="zstd", data_page_version="2.0", row_group_size=3)
write("gzip", pictures, labels, compression="gzip", row_group_size=2, use_dictionary=False)
write("none", pictures, labels, compression="none", plain=True, data_page_size=200, write_batch_size=1)
write("none-2", pictures, None, compression="none", plain=True, data_page_version="2.0", use_dictionary=False)
holes = [p if i != 2 else None for i, p in enumerate(pictures)]
gaps = [label if i != 5 else None for i, label in enumerate(labels)]
write("nulls", holes, gaps, compression="snappy")
write("nulls-2", holes, gaps, compression="zstd", data_page_version="2.0")
write("brotli", pictures, labels, compression="brotli")
write("delta", pictures, labels, use_dictionary=False, column_encoding={"label": "DELTA_BINARY_PACKED"})
# Three hundred labels in a dictionary of four: runs and groups of bits, one picture in a dictionary of one.
write("many", [pictures[0]] * 300, [i // 7 % 3 if i < 150 else i * i % 4 for i in range(300)], compression="zstd")
pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), HERE / "no-picture.parquet")
pq.write_table(pa.table({"a": pictures, "b": pictures}), HERE / "two-columns.parquet")
CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()
for part, first in [("train", 1), ("test", 11)]:
    numbers = range(first, first + 3)
    (HERE / "cifar10").mkdir(exist_ok=True)
    write(f"cifar10/{part}-00000-of-00001", [slope(i) for i in numbers], [i % 10 for i in numbers],
          column="img", names=CIFAR)
