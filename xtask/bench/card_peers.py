"""The peers of `cargo xtask bench --device cuda`: the same network, weights and inputs in PyTorch on the same card.

    python card_peers.py look    --device D [--kinds KIND ...]   the card, the driver and what is installed, or what is missing
    python card_peers.py peak    --device D --precision P        FLOP/s of a large product of matrices
    python card_peers.py count   --folder DIR                    FLOP an image of an evaluation and of a training step
    python card_peers.py watch   --uuid UUID                     the driver's word on the card's used memory, as asked
    python card_peers.py contend --kind KIND --work WORK --precision P --device D --folder DIR --output FILE [--threads N]
                                 [--steps N]

D is cuda, cuda:N, or cpu for a rehearsal, where graphs are calls. `look` answers lines `key value`. A contender writes what its
first pass gave to FILE as raw f32 (the prediction; of a training step its loss and the gradient's norm; of a walk where it is after two
steps), prints `ready`, and then answers lines: `go N` with the seconds that N passes took, the card being done with them; `rest` with
`resting` once it holds nothing of the card but weights; `wake` with `ready` once it could work again, a pass made; `quit` with
the most memory its process ever held on the host, and what PyTorch counts of the card's at the most: allocated, reserved, in
bytes. `watch` prints `ready` and answers `used` with the bytes in use, `begin` with the same, and `end` with the most that it
saw since.

| kind | |
|---|---|
| eager | PyTorch as it comes |
| channels_last | with the channels of a pixel side by side, as all that follow |
| compile | the network by torch.compile |
| graphs | the whole step, or the network's call, as a CUDA graph |
| compile_graphs | both |
| autotune | both, with max-autotune |
"""

import argparse
import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
import peers

COMPILES = {"compile": None, "compile_graphs": None, "autotune": "max-autotune-no-cudagraphs"}
GRAPHS = ["graphs", "compile_graphs", "autotune"]
KINDS = ["eager", "channels_last", "compile", "graphs", "compile_graphs", "autotune"]

# Steps whose losses nobody has read, at the most: as ddpm-train.
AHEAD = 32
EMA_RATE = 0.9999
# Steps after which the images of a walk are compared: with a network that has learnt nothing, twenty turn rounding into others.
COMPARED = 2


# ---------------------------------------------------------------- the card


def look(flags):
    """Everything that could be missing is said here, in one line, before anything is built or waited for."""
    missing = [name for name in peers.ALWAYS if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(f"{sys.executable} lacks {', '.join(missing)}: pip install {' '.join(missing)}")
    import torch

    if flags.device.startswith("cuda"):
        look_at_card(flags, torch)
    else:
        print("card none")
    if any(kind in COMPILES for kind in flags.kinds):
        check_compiler()
    for folder in library_folders(torch):
        print("libraries", folder)
    print("version python", sys.version.split()[0])
    for name in peers.ALWAYS:
        print("version", name, importlib.metadata.version(name))


def look_at_card(flags, torch):
    if torch.version.cuda is None:
        sys.exit(
            f"PyTorch {torch.__version__} of {sys.executable} is built without CUDA: install one that has it "
            "(https://pytorch.org/get-started/locally), or name another Python with --python"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        sys.exit(f"PyTorch {torch.__version__} finds no card: {first}")
    count = torch.cuda.device_count()
    number = torch.device(flags.device).index or 0
    if number >= count:
        known = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)) or "none"
        sys.exit(f"there is no {flags.device}; PyTorch finds {known}")
    card = torch.cuda.get_device_properties(number)
    print(f"card {card.name}, {card.total_memory / 2**30:.1f} GiB, compute {card.major}.{card.minor}")
    print(f"uuid {card.uuid}")
    print(f"version CUDA {torch.version.cuda}")
    print(f"version cuDNN {torch.backends.cudnn.version()}")
    try:
        print(f"version driver {Driver().version()}")
    except OSError:
        print("version driver unknown")


def check_compiler():
    if not shutil.which(os.environ.get("CC", "gcc")) and not shutil.which(os.environ.get("CXX", "g++")):
        sys.exit("torch.compile needs a C compiler: install gcc or name one in CC, or leave it out of --peers")


def library_folders(torch):
    """Where pip has put the CUDA libraries that PyTorch uses: ours is to use the same."""
    site = Path(torch.__file__).parent.parent / "nvidia"
    wanted = ["libcublas.so*", "libcudnn.so*", "libcurand.so*"]
    return [folder for folder in sorted(site.glob("*/lib")) if any(any(folder.glob(name)) for name in wanted)]


class Driver:
    """NVML, which comes with the driver: what nvidia-smi reads."""

    def __init__(self):
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self.ask("nvmlInit_v2")

    def ask(self, name, *arguments):
        status = getattr(self.nvml, name)(*arguments)
        if status:
            raise OSError(f"{name} answers {status}")

    def version(self):
        text = ctypes.create_string_buffer(96)
        self.ask("nvmlSystemGetDriverVersion", text, ctypes.c_uint(len(text)))
        return text.value.decode()

    def card(self, uuid):
        handle = ctypes.c_void_p()
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self.ask("nvmlDeviceGetHandleByUUID", name.encode(), ctypes.byref(handle))
        return handle

    def used(self, card):
        total_free_used = (ctypes.c_ulonglong * 3)()
        self.ask("nvmlDeviceGetMemoryInfo", card, ctypes.byref(total_free_used))
        return total_free_used[2]


def watch(flags):
    try:
        driver = Driver()
        card = driver.card(flags.uuid)
        driver.used(card)
    except OSError as error:
        sys.exit(f"Error: the driver does not say how much of the card's memory is used: {error}")
    most, watching = [0], threading.Event()

    def look_on():
        while True:
            watching.wait()
            most[0] = max(most[0], driver.used(card))
            time.sleep(0.001)

    threading.Thread(target=look_on, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        used = driver.used(card)
        if line.strip() == "begin":
            most[0] = used
            watching.set()
        elif line.strip() == "end":
            watching.clear()
            used = max(used, most[0])
        elif line.strip() != "used":
            return
        print(used, flush=True)


# ---------------------------------------------------------------- what it can do, what it has to do


def products(flags):
    """Sets what products may be rounded to; algorithms are searched for. bf16 has little beside it that is f32."""
    import torch

    torch.set_num_threads(flags.threads)
    rough = flags.precision != "f32"
    torch.backends.cuda.matmul.allow_tf32 = rough
    torch.backends.cudnn.allow_tf32 = rough
    torch.backends.cudnn.benchmark = True


def peak(flags):
    import torch

    products(flags)
    n = 8192 if flags.device.startswith("cuda") else 512
    kind = torch.bfloat16 if flags.precision == "bf16" else torch.float32
    a, b = (torch.rand(n, n, device=flags.device).to(kind) for _ in range(2))
    times = []
    for _ in range(30):
        synchronize(flags)
        started = time.perf_counter()
        a @ b
        synchronize(flags)
        times.append(time.perf_counter() - started)
    print(2 * n**3 / min(times))


def count(flags):
    """By the first image alone, on the host: each image costs the same."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network, (x_t, _, eps, t) = peers.load_network(flags.folder), peers.load_inputs(flags.folder)
    x_t, eps, t = x_t[:1], eps[:1], t[:1]
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        network(x_t, t)
    with FlopCounterMode(display=False) as both:
        torch.nn.functional.mse_loss(network(x_t, t).sample, eps).backward()
    print(forward.get_total_flops(), both.get_total_flops())


def synchronize(flags):
    import torch

    if flags.device.startswith("cuda"):
        torch.cuda.synchronize(flags.device)


# ---------------------------------------------------------------- the work


class Captured:
    """A function without arguments as a CUDA graph; on the CPU the function itself."""

    def __init__(self, flags, function):
        import torch

        self.function = function
        self.graph = None
        if not flags.device.startswith("cuda"):
            return
        # As PyTorch's notes on CUDA graphs have it: on another stream first, so that nothing is set up while it is captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function()

    def __call__(self):
        if self.graph is None:
            return self.function()
        self.graph.replay()
        return self.result


class Work:
    """A network on the device, and inputs beside it. A pass goes through `self.call`, which `wake` makes and `rest` gives up."""

    def __init__(self, flags, network):
        import torch

        self.flags = flags
        self.layout = torch.contiguous_format if flags.kind == "eager" else torch.channels_last
        self.network = network.to(flags.device, memory_format=self.layout)
        self.predict = self.network
        if flags.kind in COMPILES:
            self.predict = torch.compile(self.network, mode=COMPILES[flags.kind])

    def on_device(self, tensor):
        layout = {"memory_format": self.layout} if tensor.dim() == 4 else {}
        return tensor.to(self.flags.device).contiguous(**layout)

    def from_host(self, tensor):
        """As it would come from a loader: in the layout of the device, in memory that uploads need not wait for."""
        layout = {"memory_format": self.layout} if tensor.dim() == 4 else {}
        tensor = tensor.contiguous(**layout)
        return tensor.pin_memory() if self.flags.device.startswith("cuda") else tensor

    def autocast(self):
        import torch

        kind = self.flags.device.split(":")[0]
        # A graph must not find weights that were cast before it.
        kept = self.flags.kind not in GRAPHS
        return torch.autocast(kind, torch.bfloat16, enabled=self.flags.precision == "bf16", cache_enabled=kept)

    def rest(self):
        import torch

        self.call = None
        gc.collect()
        if self.flags.device.startswith("cuda"):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def wake(self):
        self.call = Captured(self.flags, self.work) if self.flags.kind in GRAPHS else self.work
        self.passes(1)


class Training(Work):
    """Forward, squared error, backward, clipping to norm 1, AdamW, an average of the weights. The batch comes from the host."""

    def __init__(self, flags):
        import torch
        from diffusers import DDPMScheduler

        super().__init__(flags, peers.load_network(flags.folder).train())
        _, *batch = peers.load_inputs(flags.folder)
        self.host = [self.from_host(it) for it in batch]
        self.batch = [self.on_device(it) for it in batch]
        self.scheduler = DDPMScheduler.from_pretrained(flags.folder, subfolder="scheduler")
        self.parameters = list(self.network.parameters())
        graphs = flags.kind in GRAPHS
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True, capturable=graphs)
        self.averages = [it.detach().clone() for it in self.parameters]

    def work(self):
        import torch

        x_0, eps, t = self.batch
        self.optimizer.zero_grad(set_to_none=True)
        x_t = self.scheduler.add_noise(x_0, eps, t)
        with self.autocast():
            prediction = self.predict(x_t, t, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), eps)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.averages, [it.detach() for it in self.parameters], 1 - EMA_RATE)
        return loss.detach(), norm

    def first(self):
        import torch

        return torch.stack(self.work()).cpu()

    def passes(self, count):
        for made in range(1, count + 1):
            for here, there in zip(self.host, self.batch):
                there.copy_(here, non_blocking=True)
            loss, _ = self.call()
            if made % AHEAD == 0 or made == count:
                loss.item()
        synchronize(self.flags)

    def rest(self):
        self.optimizer.zero_grad(set_to_none=True)
        super().rest()


class Evaluation(Work):
    """One call of the network. In bf16: by autocast as it comes, otherwise with weights in bf16, which is faster."""

    def __init__(self, flags):
        import torch

        network = peers.load_network(flags.folder).eval().requires_grad_(False)
        self.cast = flags.precision == "bf16" and flags.kind not in ["eager", "channels_last"]
        super().__init__(flags, network.to(torch.bfloat16) if self.cast else network)
        x_t, _, _, t = peers.load_inputs(flags.folder)
        self.x, self.t = self.on_device(x_t), self.on_device(t)

    def work(self):
        import torch

        with torch.no_grad(), self.autocast():
            x = self.x.to(torch.bfloat16) if self.cast else self.x
            return self.predict(x, self.t, return_dict=False)[0].float()

    def first(self):
        return self.work().cpu()

    def passes(self, count):
        for _ in range(count):
            self.call()
        synchronize(self.flags)


class Walk(Evaluation):
    """diffusers' DDIM from x_T, which comes from the host, to images that go there."""

    def __init__(self, flags):
        from diffusers import DDIMScheduler
        from safetensors.torch import load_file

        super().__init__(flags)
        start = load_file(flags.folder / "inputs.safetensors")["x_last"]
        self.start = self.from_host(start)
        self.x = self.on_device(start)
        self.scheduler = DDIMScheduler.from_pretrained(flags.folder, subfolder="scheduler")
        self.scheduler.set_timesteps(flags.steps)
        # The scheduler computes with times of the host, so that nobody waits for the card; the network has its own.
        self.times = self.scheduler.timesteps.tolist()
        self.on_card = [self.on_device(it.expand(len(start))) for it in self.scheduler.timesteps]
        self.t = self.on_card[0].clone()

    def walk(self, call, steps):
        self.x.copy_(self.start, non_blocking=True)
        for time, t in zip(self.times[:steps], self.on_card):
            self.t.copy_(t)
            self.x.copy_(self.scheduler.step(call(), time, self.x, return_dict=False)[0])
        return self.x.cpu()

    def first(self):
        return self.walk(self.work, COMPARED)

    def passes(self, count):
        for _ in range(count):
            self.walk(self.call, self.flags.steps)
        synchronize(self.flags)


# ---------------------------------------------------------------- the conversation


def contend(flags):
    # Whatever a library prints goes to the standard error: the standard output belongs to the conversation.
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch

    products(flags)
    if flags.device.startswith("cuda"):
        torch.cuda.set_device(flags.device)
    work = {"train": Training, "evaluate": Evaluation, "sample": Walk}[flags.work](flags)
    work.first().contiguous().float().numpy().astype("<f4").tofile(flags.output)
    work.wake()
    print("ready", file=say)
    for line in sys.stdin:
        word = line.split()[0]
        if word == "quit":
            print(peers.most_memory(), *counted_by_torch(flags), file=say)
            return
        if word == "rest":
            work.rest()
            if flags.device.startswith("cuda"):
                # What setting up took, searching for algorithms among it, is no part of a pass.
                torch.cuda.reset_peak_memory_stats()
            print("resting", file=say)
        elif word == "wake":
            work.wake()
            print("ready", file=say)
        else:
            started = time.perf_counter()
            work.passes(int(line.removeprefix("go ")))
            print(time.perf_counter() - started, file=say)


def counted_by_torch(flags):
    import torch

    if not flags.device.startswith("cuda"):
        return []
    return [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["look", "peak", "count", "watch", "contend"])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=[])
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--work", choices=["train", "evaluate", "sample"])
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--uuid")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    for name in ["folder", "output"]:
        parser.add_argument(f"--{name}", type=Path)
    flags = parser.parse_args()
    globals()[flags.task](flags)


if __name__ == "__main__":
    main()
