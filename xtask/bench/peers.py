"""The peers of `cargo xtask bench`: the same network, weights and inputs in PyTorch, onnxruntime and OpenVINO.

    python peers.py versions    [--kinds KIND ...]            what is installed, or which pip line is missing
    python peers.py peak        --threads N [--precision P]   GFLOP/s of PyTorch's product of 2048x2048 matrices
    python peers.py count       --folder DIR                  FLOP of an evaluation, FLOP of a training step
    python peers.py export      --folder DIR                  writes DIR/network.onnx
    python peers.py first-image --model DIR --threads N --out FILE.png
    python peers.py contend     --kind KIND --work WORK --folder DIR --threads N --output FILE [--operation OPERATION]
                                [--precision f32|bf16]

DIR is what `network_speed prepare` or `operation_speed prepare` wrote. A contender writes what its first pass gave to FILE
as raw f32 (the prediction; of a training step its loss and the gradient's norm; of an operation the gradients of weight and
bias, the output and the gradient of x), prints `ready`, and then answers lines: `go N` with the seconds that
N passes took, `quit` with the most memory it ever held, in bytes. Each process imports only what its own work needs.
"""

import argparse
import importlib.metadata
import os
import shutil
import sys
import time
from pathlib import Path

PACKAGES = {
    "eager": ["torch", "diffusers"],
    "channels_last": ["torch", "diffusers"],
    "compile": ["torch", "diffusers"],
    "onnxruntime": ["torch", "diffusers", "onnx", "onnxscript", "onnxruntime"],
    "openvino": ["torch", "diffusers", "onnx", "onnxscript", "openvino"],
}
ALWAYS = ["torch", "diffusers", "numpy", "safetensors"]


def versions(flags):
    needed = dict.fromkeys(ALWAYS + [name for kind in flags.kinds for name in PACKAGES[kind]])
    missing = []
    print("python", sys.version.split()[0])
    for name in needed:
        try:
            print(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if "compile" in flags.kinds and not shutil.which(os.environ.get("CXX", "g++")):
        sys.exit("torch.compile needs a C++ compiler: install g++ or name one in CXX, or leave it out of --peers")
    if missing:
        sys.exit(f"{sys.executable} lacks {', '.join(missing)}: pip install {' '.join(missing)}")


def peak(flags):
    import torch

    torch.set_num_threads(flags.threads)
    n = 2048
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[flags.precision]
    a, b = torch.rand(n, n).to(kind), torch.rand(n, n).to(kind)
    times = []
    for _ in range(15):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    print(2 * n**3 / min(times) / 1e9)


# ---------------------------------------------------------------- the network and its inputs


def load_network(folder):
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False)


def load_inputs(folder):
    """x_t, x_0, eps, and t as whole numbers."""
    from safetensors.torch import load_file

    inputs = load_file(folder / "inputs.safetensors")
    return inputs["x_t"], inputs["x_0"], inputs["eps"], inputs["t"].long()


def count(flags):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network, (x_t, _, eps, t) = load_network(flags.folder), load_inputs(flags.folder)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        network(x_t, t)
    with FlopCounterMode(display=False) as both:
        torch.nn.functional.mse_loss(network(x_t, t).sample, eps).backward()
    print(forward.get_total_flops(), both.get_total_flops())


def export(flags):
    import torch

    class Prediction(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x_t, t):
            return self.network(x_t, t, return_dict=False)[0]

    network, (x_t, _, _, t) = load_network(flags.folder), load_inputs(flags.folder)
    torch.onnx.export(
        Prediction(network.eval()),
        (x_t, t),
        flags.folder / "network.onnx",
        input_names=["x_t", "t"],
        output_names=["prediction"],
        dynamo=True,
        opset_version=18,
        external_data=False,
    )


# ---------------------------------------------------------------- the work: each gives its first output and a pass


def evaluate_torch(flags):
    import torch

    torch.set_num_threads(flags.threads)
    network, (x_t, _, _, t) = load_network(flags.folder).eval(), load_inputs(flags.folder)
    if flags.kind == "channels_last":
        network, x_t = (it.to(memory_format=torch.channels_last) for it in (network, x_t))
    if flags.kind == "compile":
        network = torch.compile(network)

    @torch.no_grad()
    def one_pass():
        with autocast(flags):
            return network(x_t, t, return_dict=False)[0]

    return one_pass().contiguous().float().numpy(), one_pass


def autocast(flags):
    """Products in bf16, if that is what is asked for."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=flags.precision == "bf16")


def train_torch(flags):
    import numpy
    import torch
    from diffusers import DDPMScheduler

    torch.set_num_threads(flags.threads)
    network, (_, x_0, eps, t) = load_network(flags.folder).train(), load_inputs(flags.folder)
    scheduler = DDPMScheduler.from_pretrained(flags.folder, subfolder="scheduler")
    if flags.kind == "channels_last":
        network, x_0, eps = (it.to(memory_format=torch.channels_last) for it in (network, x_0, eps))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    predict = torch.compile(network) if flags.kind == "compile" else network

    def one_pass():
        x_t = scheduler.add_noise(x_0, eps, t)
        with autocast(flags):
            loss = torch.nn.functional.mse_loss(predict(x_t, t, return_dict=False)[0].float(), eps)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.item(), norm.item()

    return numpy.array(one_pass()), one_pass


def operation_torch(flags):
    import numpy
    import torch
    from torch.nn import functional

    torch.set_num_threads(flags.threads)
    kind, sizes, pixels, *stride = flags.operation.split("-")
    batch, channels = map(int, sizes.split("x"))
    height, width = map(int, pixels.split("x"))
    stride = int(stride[0].removeprefix("s")) if stride else 1

    def read(name, *shape):
        tensor = torch.from_numpy(numpy.fromfile(flags.folder / name, "<f4")).reshape(shape)
        if flags.kind == "channels_last" and len(shape) == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        return tensor

    kernel = (channels, channels, 3, 3) if kind == "conv" else (channels,)
    x, weight, bias = read("x", batch, channels, height, width), read("weight", *kernel), read("bias", channels)
    inputs = [it.requires_grad_() for it in (x, weight, bias)]

    def operation(x, weight, bias):
        if kind == "norm":
            return functional.silu(functional.group_norm(x, 32, weight, bias, 1e-6))
        if stride == 2:
            return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), weight, bias, 2)
        return functional.conv2d(x, weight, bias, 1, 1)

    if flags.kind == "compile":
        operation = torch.compile(operation)
    gradient = read("gradient", batch, channels, height // stride, width // stride)

    def backward(gradient=None):
        for it in inputs:
            it.grad = None
        y = operation(*inputs)
        # Ones each time, as candle's `y.backward()` fills them.
        y.backward(torch.ones_like(y) if gradient is None else gradient)
        return y

    y = backward(gradient).detach()
    first = [it.contiguous().numpy().ravel() for it in (weight.grad, bias.grad, y, x.grad)]
    return numpy.concatenate(first), backward


def evaluate_onnxruntime(flags):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = flags.threads, 1
    session = onnxruntime.InferenceSession(flags.folder / "network.onnx", options, providers=["CPUExecutionProvider"])
    inputs = numpy_inputs(flags.folder)

    def one_pass():
        return session.run(None, inputs)[0]

    return one_pass(), one_pass


def evaluate_openvino(flags):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": flags.precision, "INFERENCE_NUM_THREADS": flags.threads, "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(flags.folder / "network.onnx", "CPU", settings)
    inputs = numpy_inputs(flags.folder)

    def one_pass():
        return model(inputs)[0]

    return one_pass(), one_pass


def numpy_inputs(folder):
    from safetensors.numpy import load_file

    inputs = load_file(folder / "inputs.safetensors")
    return {"x_t": inputs["x_t"], "t": inputs["t"].astype("int64")}


# ---------------------------------------------------------------- the conversation


def contend(flags):
    # Whatever a library prints goes to the standard error: the standard output belongs to the conversation.
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if flags.work == "train":
        begin = train_torch
    elif flags.work == "operations":
        begin = operation_torch
    else:
        begin = {"onnxruntime": evaluate_onnxruntime, "openvino": evaluate_openvino}.get(flags.kind, evaluate_torch)
    first, one_pass = begin(flags)
    first.astype("<f4").tofile(flags.output)
    print("ready", file=say)
    for line in sys.stdin:
        if line.strip() == "quit":
            print(most_memory(), file=say)
            return
        started = time.perf_counter()
        for _ in range(int(line.removeprefix("go "))):
            one_pass()
        print(time.perf_counter() - started, file=say)


def most_memory():
    """The most memory this process ever held, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def first_image(flags):
    import torch
    from diffusers import DDIMPipeline

    torch.set_num_threads(flags.threads)
    pipeline = DDIMPipeline.from_pretrained(flags.model, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    pipeline(batch_size=1, generator=generator, num_inference_steps=50).images[0].save(flags.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["versions", "peak", "count", "export", "first-image", "contend"])
    parser.add_argument("--kinds", nargs="*", choices=PACKAGES, default=[])
    parser.add_argument("--kind", choices=PACKAGES)
    parser.add_argument("--work", choices=["train", "evaluate", "operations"])
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--operation")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    for name in ["folder", "model", "out", "output"]:
        parser.add_argument(f"--{name}", type=Path)
    flags = parser.parse_args()
    globals()[flags.task.replace("-", "_")](flags)


if __name__ == "__main__":
    main()
