"""A GPU that is not there, for a rehearsal of `make prove`: its tensors lie on the CPU.

`install` replaces what asks PyTorch for a GPU; what asks a tensor where it lies takes the CPU's
way, and kernels are interpreted. Graphs are those of `tests/graphs.py`. `shrink` makes the work
small.
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
CPU = torch.device("cpu")
QUICK = "tests/rehearsal/test_sample.py"


class _Event:
    """Told by the host's clock; the device has never begun before all is enqueued."""

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


class _OnTheCpu(TorchFunctionMode):
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
        name=NAME,
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=2**37,
    )
    replacements = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
        "mem_get_info": lambda device=None: (2**36, 2**37),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "manual_seed": torch.manual_seed,
        "is_current_stream_capturing": lambda: False,
        "_sleep": lambda cycles: time.sleep(1e-4),
        "Event": _Event,
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    torch.Generator, torch.autocast, torch.amp.autocast = _Generator, _Autocast, _Autocast
    profile = torch.profiler.profile
    torch.profiler.profile = lambda **options: profile()  # of the CPU
    torch.compile = lambda function, **options: function  # no compiler is needed
    launch._properties_of = torch.cuda.get_device_properties
    for mode in (graphs.on_the_cpu(), _OnTheCpu()):
        mode.__enter__()
        _kept.append(mode)


_kept = []  # contexts that last as long as the process


def shrink() -> None:
    """Models, operands and times that an interpreter has done with in seconds."""
    from dataclasses import replace
    from functools import partial

    import kernels
    from bench import timer, training, workloads
    from bench.cases import Sizes
    from bench.prove import stages
    from bench.prove.stages import loss, parity, profile, tune
    from gpt.config import presets
    from gpt.data.batches import Data

    Data.source = property(lambda data: torch.device(data.device))
    sizes = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
    for name, config in presets.PRESETS.items():
        model = replace(config.model, **sizes)
        presets.PRESETS[name] = replace(config, model=model, batch_size=2)
    training.SIZES = {"lecture": {"batch_size": 2}}
    training.WAYS = tuple(way for way in training.WAYS if way.step == "graph")
    from bench.prove.stages import step

    training.TOKENS, training.WARM_UP, training.GROUP, training.LEAST_GROUPS = 1000, 4, 1, 1
    timer.CACHE_BYTES, timer.COPY_ELEMENTS, timer.PRODUCT_SIZE = 2**10, 2**12, 2**6
    timer.LEAST_ROUNDS, timer.MOST_ROUNDS = 2, 3
    tiny = Sizes("tiny", B=1, T=16, C=32, H=2, V=48)
    workloads.CARD = tuple(
        case._replace(sizes=tiny) for case in workloads.STEPS if case.operation == "layer_norm"
    )[:1]
    workloads.STEPS = workloads.CARD
    profile.STEPS, profile.PARTS = 5, ("lecture",)
    parity.TESTS = {part: (QUICK, share) for part, (_, share) in parity.TESTS.items()}
    parity.FIRST, parity.WORKERS = parity.FIRST[:1], 0
    step.MOST_SECONDS = 0.1
    tune.STEPS, neighbours, asked_by = 1, tune.neighbours, tune.asked_by
    tune.asked_by = lambda case, device: asked_by(case, device)[:1]
    tune.neighbours = lambda tile: neighbours(tile)[:1]
    loss.MARK = 10.0
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    loss.RUNS = {
        "speedrun, seed 1": ["--preset=quickstart", "--kernels=torch", "--max-iters=2", *options]
    }

    # one operation and AdamW by kernels; all by them would take minutes
    whole = kernels.load

    def load(name, device=None):
        ops, by_pytorch = whole(name, device), whole("torch")
        if "triton" not in name:
            return by_pytorch._replace(adamw=partial(torch.optim.AdamW, fused=True))
        return by_pytorch._replace(layer_norm=ops.layer_norm, adamw=ops.adamw)

    kernels.load = load

    begin = stages.Report.begin

    def faulty(report, part):
        begin(report, part)
        fault = dict(one.split("=") for one in os.environ.get(FAULT, "").split(";") if one)
        if fault.get(part) == "dies":
            os._exit(7)
        if fault.get(part) == "hangs":
            time.sleep(3600)

    stages.Report.begin = faulty
