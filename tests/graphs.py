"""A stand-in for CUDA graphs on a CPU, so that the host's part of them is tested everywhere.

A capture notes every PyTorch operation and Triton launch with the tensors that they touch, and
undoes what they did, for a capture computes nothing. A replay does the same again in the same
memory. What a capture refuses is refused: to read a value on the host, to compute with numbers
that come from there, or a result whose size depends on values.
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
REFUSED = {
    aten._local_scalar_dense.default: "reads a value on the host",
    aten.nonzero.default: "has a size that depends on values",
    aten.masked_select.default: "has a size that depends on values",
    aten._unique2.default: "has a size that depends on values",
}


class Graph:
    """In the place of `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.entries = []  # what to do at a replay, in order

    @torch.no_grad()
    def replay(self) -> None:
        for again in self.entries:
            again()


class _Noting(TorchDispatchMode):
    def __init__(self, entries):
        super().__init__()
        self.entries = entries
        self.host = {}  # tensors that were made of Python's numbers, by their storage

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in REFUSED:
            raise RuntimeError(f"a graph cannot be captured: {func} {REFUSED[func]}")
        if func is not aten.fill_.Tensor:  # of a number, which a launch takes along
            self.refuse_host_data(func, (args, kwargs))
        out = func(*args, **kwargs)
        if func is aten.lift_fresh.default:
            self.host[out.untyped_storage().data_ptr()] = out
        schema = func._schema
        aliases = [one.alias_info for one in schema.returns if one.alias_info is not None]
        if any(one.alias_info and one.alias_info.is_write for one in schema.arguments):
            self.entries.append(lambda: func(*args, **kwargs))
        elif not aliases and "empty" not in schema.name:  # a view is there already
            self.entries.append(lambda: _copy(out, func(*args, **kwargs)))
        return out

    def refuse_host_data(self, what, operands) -> None:
        for one in _pytree.tree_leaves(operands):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() in self.host:
                raise RuntimeError(f"a graph cannot be captured: {what} brings host data along")


def _copy(targets, sources) -> None:
    """The results of a replay, into the memory of the capture's."""
    pairs = zip(_pytree.tree_leaves(targets), _pytree.tree_leaves(sources), strict=True)
    for target, source in pairs:
        if isinstance(target, torch.Tensor):
            target.copy_(source)


@contextlib.contextmanager
def _capture(graph: Graph):
    run = InterpretedFunction.run

    def noted(kernel, *arguments, **options):
        noting.refuse_host_data(kernel.fn.__name__, arguments)
        with _disable_current_modes():
            run(kernel, *arguments, **options)
        graph.entries.append(lambda: run(kernel, *arguments, **options))

    noting = _Noting(graph.entries)
    capturing = mock.patch.object(Sent, "_is_capturing", return_value=True)
    launching = mock.patch.object(InterpretedFunction, "run", noted)
    with _undone(), noting, capturing, launching:
        yield


@contextlib.contextmanager
def _undone():
    """Give every tensor that is there its numbers back; and the generator its state, if it ends."""
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


class _Stream:
    def wait_stream(self, other) -> None:
        pass


class Device:
    """What a capture changes besides memory, and a failed one leaves changed, as on a GPU."""

    def __init__(self):
        self.stream = self.default_stream = _Stream()
        self.is_generator_captured = False

    @contextlib.contextmanager
    def capture(self, graph: Graph):
        before, self.stream = self.stream, _Stream()
        self.is_generator_captured = True
        try:
            with _capture(graph):
                yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        self.stream, self.is_generator_captured = before, False

    def set_stream(self, stream: _Stream) -> None:
        self.stream = stream

    # of the default generator
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
    """Have `torch.cuda.graph` capture here; gives the device that stands for a GPU."""
    device = Device()
    replacements = {
        "CUDAGraph": Graph,
        "graph": device.capture,
        "Stream": _Stream,
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
