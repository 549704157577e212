"""CUDA graphs: many kernel launches, captured once and replayed as one."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from .. import hardware

WARM_UP = 3  # eager calls before a capture: they load every kernel and allocate every buffer

Result = TypeVar("Result")


class CaptureError(RuntimeError):
    """A function could not be captured. It can still be called eagerly."""


def print_failure(message: str) -> None:
    print(f"{message}; it runs eagerly")


class GraphedFunction(Generic[Result]):
    """`function` as a CUDA graph: eager for `warm_up` calls, then captured, then replayed.

    The function takes no arguments and must do the same work at every call: what changes lies in
    tensors at fixed addresses. Each replay overwrites the tensors that the call before returned.
    If the capture fails, `on_failure` is called with a message about `name`, and unless it raises,
    all calls are eager. `before` is called before the capture and before every replay: it writes
    what the host knows to the device.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        name: str,
        on_failure: Callable[[str], None] = print_failure,
        warm_up: int = WARM_UP,
        before: Callable[[], None] = lambda: None,
    ):
        self.function, self.name, self.on_failure, self.before = function, name, on_failure, before
        self.warm_up_left = warm_up
        self.captured: tuple[torch.cuda.CUDAGraph, Result] | None = None
        self.is_eager = self.is_capturing = False

    def __call__(self) -> Result:
        if self.warm_up_left > 0:
            self.warm_up_left -= 1
            stream = torch.cuda.Stream()  # not the default one, as in a capture
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                result = self.function()
            torch.cuda.current_stream().wait_stream(stream)
            return result
        if self.captured is None and not self.is_eager:
            self._capture()
        if self.captured is None:
            return self.function()
        graph, result = self.captured
        self.before()
        graph.replay()
        return result

    def _capture(self) -> None:
        self.before()
        self.is_capturing = True
        try:
            self.captured = capture(self.function)
        except CaptureError as error:
            self.is_eager = True
            self.on_failure(f"{self.name} cannot be captured as a CUDA graph ({error})")
        finally:
            self.is_capturing = False


def capture(function: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture `function()`. Return the graph, and the result that each replay overwrites.

    Raises CaptureError, or the error of an allocation that failed. The current stream and the
    default generator are then restored.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    state = torch.cuda.get_rng_state()
    try:
        with torch.cuda.graph(graph):
            result = function()
    except RuntimeError as error:
        _failed.append(graph)
        torch.cuda.set_stream(stream)  # `torch.cuda.graph` does not restore it after an error
        # its state still counts as captured: replace it by a copy that does not
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        torch.cuda.set_rng_state(state)
        cause = error.__context__ or error  # ending a failed capture raises a second error
        if hardware.out_of_memory(cause):
            raise cause from None
        reason = str(cause).strip().partition("\n")[0]
        raise CaptureError(f"{type(cause).__name__}: {reason}") from error
    return graph, result


_failed: list[torch.cuda.CUDAGraph] = []  # kept: PyTorch's allocator may still refer to them
