"""CUDA graphs: many launches, captured once and replayed as one."""

from collections.abc import Callable
from typing import TypeVar

import torch

from gpt import hardware

Result = TypeVar("Result")


class CaptureError(RuntimeError):
    """A function could not be captured; eager work can go on."""


def on_side_stream(function: Callable[[], Result]) -> Result:
    """Call `function` on a stream other than the default one, as a capture does.

    Before a capture this loads every kernel and lets the allocator see every size.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def capture(function: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture `function()`; returns the graph, and the result that each replay rewrites.

    Raises CaptureError, or what says that memory is short; the current stream and the default
    generator are then as they were before.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    state = torch.cuda.get_rng_state()
    try:
        with torch.cuda.graph(graph):
            result = function()
    except RuntimeError as error:
        _failed.append(graph)
        torch.cuda.set_stream(stream)  # `torch.cuda.graph` leaves its own after such an error
        _restore_generator(state)
        cause = error.__context__ or error  # ending a capture that failed raises a second time
        if hardware.out_of_memory(cause):
            raise cause from None
        reason = str(cause).strip().partition("\n")[0]
        raise CaptureError(f"{type(cause).__name__}: {reason}") from error
    return graph, result


_failed: list[torch.cuda.CUDAGraph] = []  # kept: PyTorch's allocator may still refer to them


def _restore_generator(state: torch.Tensor) -> None:
    """Replace the generator's state, which still counts as captured, by a copy that does not."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())
    torch.cuda.set_rng_state(state)
