"""Runs the launches of operations on the CPU: kernels are compiled, and their PTX is executed.

    with executing(architecture=80) as keys:
        y = triton_ops.OPS.layer_norm(x, weight, bias)  # tensors on the CPU

Programs run in a shuffled order, several at once; that every order gives the same bits is checked.
"""

import contextlib
import functools
import gc
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from bench.ledger import compiled
from kernels.common import launch

from .machine import Machine, fewest_bytes
from .memory import GlobalMemory
from .parser import Kernel

LANES = 4_096  # at once: with fewer NumPy's calls dominate, more do not fit into a cache
ALIGNED = 128  # bytes: scratch memory, for descriptors

_parsed = functools.lru_cache(Kernel)


@contextlib.contextmanager
def executing(architecture: int, change: Callable[[str], str] = str) -> Iterator[list[str]]:
    """Execute the launches inside; yields the list of their kernels' keys in the ledger.

    change: a function of the PTX, to plant a fault.
    """
    compiled.set_offline_driver(str(architecture))
    keys: list[str] = []

    def handle(one: launch.Launch) -> None:
        kernel = compiled.compile_launch(one)
        execute(one, kernel, change(kernel.asm["ptx"]), range(math.prod(one.grid)))
        keys.append(compiled.describe(one, kernel))

    with launch.handled(handle, architecture):
        yield keys


def execute(
    one: launch.Launch, kernel, ptx: str, programs: Iterable[int], counts: Counter | None = None
) -> None:
    """Execute some programs of a launch of `kernel`, which Triton has compiled."""
    named = dict(zip(one.kernel.arg_names, one.arguments, strict=False)) | one.options
    values = [named[name] for name, kind in kernel.src.signature.items() if kind != "constexpr"]
    size = kernel.metadata.global_scratch_size * math.prod(one.grid)
    scratch = torch.zeros(size + ALIGNED, dtype=torch.int8)
    values += [scratch[-scratch.data_ptr() % ALIGNED :], 0]
    run(ptx, one.grid, values, kernel.metadata.shared, programs, counts)


def run(
    ptx: str,
    grid: Sequence[int],
    values: Iterable,
    shared_bytes: int,
    programs: Iterable[int],
    counts: Counter | None = None,
) -> None:
    """Execute some programs of a grid, and count in `counts` what they do.

    values: numbers, and tensors for addresses, one for each parameter of the kernel. Only their
    memory may be touched, and that to which a table of addresses among them points.
    """
    kernel, parameters, buffers = _parsed(ptx), {}, []
    for (name, type_), value in zip(kernel.parameters, values, strict=True):
        if isinstance(value, torch.Tensor):
            buffers += [extent(value), *addressed(value)]
            value = value.data_ptr()
        elif isinstance(value, float):
            value = int.from_bytes(struct.pack({"f32": "f", "f64": "d"}[type_], value), "little")
        parameters[name] = np.uint64(value % 2**64)
    memory = GlobalMemory(buffers, fewest_bytes(kernel, "global"))
    order, some = np.random.default_rng(0).permutation(programs), max(1, LANES // kernel.threads)
    with np.errstate(all="ignore"):
        for first in range(0, len(order), some):
            batch, sizes = order[first : first + some], (*grid, 1, 1)[:3]
            Machine(kernel, sizes, batch, parameters, memory, shared_bytes, counts).run()
    memory.check_order()


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and of the byte after its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((length - 1) * stride for length, stride in steps)
    size = tensor.element_size() * (last + 1) if tensor.numel() else 0
    return tensor.data_ptr(), tensor.data_ptr() + size


def addressed(table: torch.Tensor) -> Iterator[tuple[int, int]]:
    """The extents of the tensors of this process that start at the addresses in a table."""
    if table.dtype == torch.int64 and table.ndim == 2:
        addresses = set(table.flatten().tolist())
        for tensor in gc.get_objects():
            if issubclass(type(tensor), torch.Tensor) and tensor.data_ptr() in addresses:
                yield extent(tensor)
