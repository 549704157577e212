"""A fake GPU for a rehearsal of `make prove`, whose tensors are on the CPU.

`install` replaces PyTorch's functions that access a GPU; kernels are interpreted. CUDA graphs are
those of `tests/graphs.py`. `shrink` reduces the work.
"""

import os
import time
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from kernels.common import launch
from tests import graphs

NAME = "Fake H200"
FAULT = "FAKE_GPU_FAULT"  # an environment variable: "part=dies;other part=hangs"
FAULTS = dict(one.split("=") for one in os.environ.get(FAULT, "").split(";") if one)
CPU = torch.device("cpu")
QUICK = "tests/rehearsal/test_sample.py"


class _Event:
    """Records the host's time; the device never starts before all is enqueued."""

    def __init__(self, **options):
        self.time = 0.0

    def record(self, stream=None):
        self.time = time.perf_counter()

    def query(self):
        return False

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return max(1e-3, 1e3 * (end.time - self.time))


class _OnCpu(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.pin_memory, torch.Tensor.cuda):
            return args[0]
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = _pytree.tree_map(_cpu, (args, kwargs or {}))
        return func(*args, **kwargs)


def _cpu(value):
    is_cuda = isinstance(value, torch.device) and value.type == "cuda"
    return CPU if is_cuda or (isinstance(value, str) and value.startswith("cuda")) else value


class _Generator(torch.Generator):
    def __new__(cls, device=None):
        return super().__new__(cls, _cpu(device) or CPU)


class _Autocast(torch.autocast):
    def __init__(self, device_type, *arguments, **options):
        super().__init__(device_type.replace("cuda", "cpu"), *arguments, **options)


def install() -> None:
    properties = SimpleNamespace(
        name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=2**37
    )
    values = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "mem_get_info": (2**36, 2**37),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "is_current_stream_capturing": False,
    }
    nothing = ("set_device", "reset_peak_memory_stats", "empty_cache", "synchronize")
    for name, value in (values | dict.fromkeys(nothing)).items():
        setattr(torch.cuda, name, lambda *arguments, value=value: value)
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda._sleep = lambda cycles: time.sleep(1e-4)
    torch.cuda.Event = _Event
    torch.Generator, torch.autocast, torch.amp.autocast = _Generator, _Autocast, _Autocast
    profile = torch.profiler.profile
    torch.profiler.profile = lambda **options: profile()  # of the CPU
    torch.compile = lambda function, **options: function  # no compiler is needed
    launch._properties_of = torch.cuda.get_device_properties
    for mode in (graphs.on_the_cpu(), _OnCpu()):
        mode.__enter__()
        _kept.append(mode)


_kept = []  # contexts that stay entered


def shrink() -> None:
    """Reduce models, operands and times so that an interpreter needs seconds."""
    from dataclasses import replace
    from functools import partial

    import kernels
    from bench import baselines, timer, training
    from bench.ledger import compiled
    from bench.workloads import timed
    from bench.workloads.operations import Sizes
    from gpt.config import presets
    from gpt.data.batches import TokenDataset

    TokenDataset.source = property(lambda data: torch.device(data.device))
    sizes = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
    for name, config in presets.PRESETS.items():
        model = replace(config.model, **sizes, source_size=0)
        presets.PRESETS[name] = replace(config, model=model, batch_size=2)
    training.SIZES = {"lecture": {"batch_size": 2}}
    training.VARIANTS = tuple(one for one in training.VARIANTS if one.step == "graph")
    training.TOKENS, training.WARM_UP, training.GROUP, training.MIN_GROUPS = 1000, 4, 1, 1
    timer.CACHE_BYTES, timer.COPY_ELEMENTS, timer.PRODUCT_SIZE = 2**10, 2**12, 2**6
    timer.MIN_ROUNDS, timer.MAX_ROUNDS = 2, 3
    baselines.compiled = lambda function: function  # importing the compiler takes seconds
    tiny = Sizes("tiny", B=1, T=16, C=32, H=2, V=48)
    norms = [case for case in timed.TRAINING if case.operation == "layer_norm"]
    timed.GPU = timed.TRAINING = (norms[0]._replace(sizes=tiny),)

    from bench.prove.stages import loss, parity, profile, step, tune

    profile.STEPS, profile.PARTS = 5, ("lecture",)
    parity.PARTS, parity.WORKERS = (QUICK,), 0
    step.MAX_SECONDS = 0.1
    neighbours, tiles_used_by = tune.neighbours, tune.tiles_used_by
    tune.tiles_used_by = lambda case, device: tiles_used_by(case, device)[:1]
    tune.neighbours = lambda tile: neighbours(tile)[:1]
    loss.TARGET_LOSS = 10.0
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    options += ["--preset=quickstart", "--kernels=torch", "--max-iters=2"]
    loss.RUNS, loss.PARTS = {"speedrun": options}, ("speedrun",)

    # only one operation and AdamW by our kernels; all of them would take minutes
    load_all = kernels.load

    def load(name, device=None):
        ops, by_pytorch = load_all(name, device), load_all("torch")
        if "triton" not in name:
            return by_pytorch._replace(adamw=partial(torch.optim.AdamW, fused=True))
        return by_pytorch._replace(layer_norm=ops.layer_norm, adamw=ops.adamw)

    kernels.load = load

    step.work = partial(_or_fault, step.work)
    compiled.compile_launch = partial(_or_fault, compiled.compile_launch)


def _or_fault(work, part, *arguments):
    """Work, unless the part, or the launch to compile, shall hang or die."""
    fault = FAULTS.get(part if isinstance(part, str) else "compile")
    if fault == "dies":
        os._exit(7)
    if fault == "hangs":
        time.sleep(3600)
    return work(part, *arguments)
