"""The records of an event file as TensorBoard's own writer makes them.

Run with tensorboard 2.21.0 (any 2.x has the same protocol buffers):
    python tests/golden/event_file.py > crates/ddpm-train/src/event_file/golden.txt
"""

import io

import tensorboard
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


class Kept(io.BytesIO):
    def close(self):
        pass


def event(**fields):
    return event_pb2.Event(wall_time=1.7e9 + 0.25, **fields)


def summary(step, *values):
    return event(step=step, summary=summary_pb2.Summary(value=values))


Value, Image = summary_pb2.Summary.Value, summary_pb2.Summary.Image
numbers = [-1, 0.0625, 0.53125, 2]
bucket = [0] * 30
for place in (0, 10, 15, 29):  # of thirty parts from -1 to 2
    bucket[place] = 1
histogram = summary_pb2.HistogramProto(
    min=-1, max=2, num=4, sum=sum(numbers), sum_squares=sum(x * x for x in numbers),
    bucket_limit=[-1 + 0.1 * k for k in range(1, 31)], bucket=bucket,
)
events = [
    event(file_version="brain.Event:2"),
    event(step=301, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)),
    summary(301, Value(tag="loss", simple_value=0.125), Value(tag="learning_rate", simple_value=2e-4)),
    summary(1000, Value(tag="samples", image=Image(height=4, width=6, colorspace=3, encoded_image_string=bytes(range(200))))),
    summary(1000, Value(tag="weights/conv_in.weight", histo=histogram)),
]
print(f"# tests/golden/event_file.py, tensorboard {tensorboard.__version__}: one record a line, hexadecimal")
for one in events:
    kept = Kept()
    RecordWriter(kept).write(one.SerializeToString(deterministic=True))
    print(kept.getvalue().hex())
