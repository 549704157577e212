"""A stand-in for CUDA graphs on a CPU, so that code that uses graphs is tested everywhere.

A capture records every PyTorch operation and Triton launch with its tensors, then restores the
tensors, because a capture computes nothing. A replay repeats the operations on the same memory.
What a real capture rejects raises an error: reading a value on the host, using numbers that come
from the host, and results whose size depends on values.
"""

import contextlib
import gc
from unittest import mock

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import InterpretedFunction

from kernels.optimizer.multi_tensor import Sent

aten = torch.ops.aten
REJECTED = {aten._local_scalar_dense.default: "reads a value on the host"} | dict.fromkeys(
    (aten.nonzero.default, aten.masked_select.default, aten._unique2.default),
    "has a size that depends on values",
)


class Graph:
    """Replaces `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.entries = []  # the functions that a replay calls, in order

    @torch.no_grad()
    def replay(self) -> None:
        for entry in self.entries:
            entry()


class _Recorder(TorchDispatchMode):
    def __init__(self, entries):
        super().__init__()
        self.entries = entries
        self.host = {}  # tensors created from Python numbers, by storage

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in REJECTED:
            raise RuntimeError(f"a graph cannot be captured: {func} {REJECTED[func]}")
        if func is not aten.fill_.Tensor:  # passes its number as a kernel argument
            self.reject_host_data(func, (args, kwargs))
        out = func(*args, **kwargs)
        if func is aten.lift_fresh.default:
            self.host[out.untyped_storage().data_ptr()] = out
        schema = func._schema
        aliases = [one.alias_info for one in schema.returns if one.alias_info is not None]
        if any(one.alias_info and one.alias_info.is_write for one in schema.arguments):
            self.entries.append(lambda: func(*args, **kwargs))
        elif not aliases and "empty" not in schema.name:  # views need no replay
            self.entries.append(lambda: _copy(out, func(*args, **kwargs)))
        return out

    def reject_host_data(self, what, operands) -> None:
        for one in _pytree.tree_leaves(operands):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() in self.host:
                raise RuntimeError(f"a graph cannot be captured: {what} brings host data along")


def _copy(targets, sources) -> None:
    """Copy the results of a replay to the memory of the captured results."""
    pairs = zip(_pytree.tree_leaves(targets), _pytree.tree_leaves(sources), strict=True)
    for target, source in pairs:
        if isinstance(target, torch.Tensor):
            target.copy_(source)


@contextlib.contextmanager
def _capture(graph: Graph):
    run = InterpretedFunction.run

    def recorded(kernel, *arguments, **options):
        recorder.reject_host_data(kernel.fn.__name__, arguments)
        with _disable_current_modes():
            run(kernel, *arguments, **options)
        graph.entries.append(lambda: run(kernel, *arguments, **options))

    recorder = _Recorder(graph.entries)
    capturing = mock.patch.object(Sent, "_is_capturing", return_value=True)
    launching = mock.patch.object(InterpretedFunction, "run", recorded)
    with _undone(), recorder, capturing, launching:
        yield


@contextlib.contextmanager
def _undone():
    """Restore every existing tensor; and the generator, unless an exception is raised."""
    live = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in live}
    before = [(storage, storage.clone()) for storage in storages.values()]
    state = torch.get_rng_state()
    try:
        yield
        torch.set_rng_state(state)
    finally:
        for storage, numbers in before:
            storage.copy_(numbers)


class Device:
    """The state other than memory that a capture changes, and a failed capture leaves changed."""

    def __init__(self):
        self.stream = self.default_stream = mock.Mock()
        self.is_generator_captured = False

    @contextlib.contextmanager
    def capture(self, graph: Graph):
        before, self.stream = self.stream, mock.Mock()
        self.is_generator_captured = True
        try:
            with _capture(graph):
                yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        self.stream, self.is_generator_captured = before, False

    def set_stream(self, stream) -> None:
        self.stream = stream

    # methods of the default generator
    def clone_state(self) -> "Device":
        return Device()

    def graphsafe_set_state(self, other: "Device") -> None:
        self.is_generator_captured = other.is_generator_captured

    def set_rng_state(self, state: torch.Tensor, device=None) -> None:
        if self.is_generator_captured:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        torch.set_rng_state(state)


@contextlib.contextmanager
def on_the_cpu():
    """Make `torch.cuda.graph` capture on the CPU; yields the device that replaces the GPU."""
    device = Device()
    replacements = {
        "CUDAGraph": Graph,
        "graph": device.capture,
        "Stream": mock.Mock,
        "current_stream": lambda: device.stream,
        "set_stream": device.set_stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_device": lambda: 0,
        "default_generators": [device],
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": device.set_rng_state,
    }
    with contextlib.ExitStack() as stack:
        for name, replacement in replacements.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        yield device
