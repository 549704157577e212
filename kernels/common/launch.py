"""Launching kernels: on which device, with which tiles, and recorded for which architecture.

Every kernel of this package is launched by `launch`, on the device of its first tensor. Tiles are
chosen offline and listed in `TILES`; nothing is tuned at run time. `record` collects the
launches of operations on meta or fake tensors, for any architecture: the ledger compiles those.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import triton

from ..ops import Unavailable

# SMs of the largest GPU of each family: A100, H200, B200, RTX PRO 6000
LARGEST_GPU = {80: 108, 90: 132, 100: 148, 120: 188}

_NORM_BACKWARD = {80: (512, 512, 4, 168), 90: (512, 512, 2, 128), 100: (512, 512, 4, 168)}
# Kernel -> architecture family -> tile. A family without a row uses that of the next older family.
# A row of a variant ("attention_q_short") is used only by its own family and head size.
TILES: dict[str, dict[int, Any]] = {
    # elements and columns per warp, fewest warps per program; for a backward kernel, whose programs
    # fill the GPU exactly once, also registers per thread, more if there is a third sum
    "layer_norm": {80: (1_024, 256, 1), 90: (1_024, 512, 1), 120: (512, 256, 1)},
    "layer_norm_backward": _NORM_BACKWARD,
    "add_layer_norm": {80: (512, 256, 2)},
    "add_layer_norm_backward": _NORM_BACKWARD,
    "add_layer_norm_backward_x_bias": {80: (512, 512, 4, 168), 90: (512, 512, 2, 168)},
    # attention: head size -> rows, keys, warps, stages, limit of registers per thread. Those of
    # family 90 were the fastest of about 20 on an H200, (16, 12, 1024, 64) to (1, 12, 16384, 64)
    "attention": {
        80: {64: (64, 64, 4, 3, 168), 128: (64, 64, 4, 2, None), 256: (64, 32, 8, 2, None)},
        90: {64: (64, 64, 4, 3, None), 128: (64, 64, 4, 3, None), 256: (128, 64, 8, 2, None)},
        100: {64: (128, 64, 8, 3, 160), 128: (128, 64, 8, 2, None), 256: (128, 64, 8, 2, None)},
        120: {64: (64, 64, 4, 3, 184), 128: (64, 64, 4, 2, None), 256: (64, 32, 8, 2, None)},
    },
    # four programs per SM; with a window or dropout 120 registers would spill
    "attention_causal": {90: {64: (64, 64, 4, 3, 120)}},
    "attention_causal_more": {90: {64: (64, 64, 4, 3, 128)}},
    "attention_q": {
        80: {64: (64, 32, 4, 2, None), 128: (64, 64, 8, 2, None), 256: (32, 32, 8, 2, None)},
        90: {64: (64, 64, 4, 3, 128), 128: (128, 64, 8, 3, None), 256: (128, 32, 8, 2, None)},
        100: {64: (128, 64, 8, 2, 160), 128: (128, 64, 8, 2, None), 256: (128, 32, 8, 2, None)},
        120: {64: (64, 32, 4, 2, None), 128: (64, 64, 8, 2, None), 256: (32, 32, 8, 2, None)},
    },
    "attention_q_short": {90: {64: (64, 32, 4, 4, None)}},
    "attention_kv": {
        80: {64: (32, 64, 4, 2, None), 128: (64, 64, 8, 2, None), 256: (32, 32, 8, 2, None)},
        90: {64: (32, 64, 4, 4, None), 128: (32, 64, 4, 4, None), 256: (32, 64, 8, 2, None)},
        100: {64: (64, 64, 4, 2, None), 128: (32, 64, 4, 2, None), 256: (32, 64, 4, 2, None)},
        120: {64: (32, 64, 4, 2, None), 128: (64, 64, 8, 2, None), 256: (32, 32, 8, 2, 168)},
    },
    # head size -> log2 of the fewest keys (for dK and dV, rows) that are read through descriptors:
    # by the ledger they save 3 to 10% of a program's instructions; not measured
    "attention_described": {80: {}, 90: {64: 11, 128: 9}, 100: {}},
    # fp32 and fp64 use IEEE products without tensor cores, for parity rather than speed
    "attention_fp32": {
        80: {64: (32, 32, 4, 2, None), 128: (32, 32, 4, 2, None), 256: (16, 32, 8, 1, None)}
    },
    "attention_q_fp32": {
        80: {64: (32, 32, 4, 2, None), 128: (32, 32, 4, 2, None), 256: (16, 32, 8, 1, None)}
    },
    "attention_kv_fp32": {
        80: {64: (16, 32, 4, 1, 128), 128: (16, 32, 8, 1, None), 256: (16, 32, 8, 1, None)}
    },
    # bytes of a tile of short rows, of a tile of a long row, and per thread
    "cross_entropy": {80: (8_192, 16_384, 32), 90: (8_192, 16_384, 64), 100: (8_192, 16_384, 32)},
    # elements of a tile, its largest number of rows, warps
    "embedding": {80: (4_096, 16, 4), 90: (1_024, 16, 2), 100: (4_096, 16, 4)},
    # tokens, rows of dy, columns, warps
    "embedding_one_hot": {80: (128, 64, 64, 8)},
    "embedding_one_hot_fp32": {80: (128, 32, 64, 8)},  # more rows would spill
    "activation": {80: (4_096, 8)},  # elements, warps
    "rotary": {80: (1_024, 4)},  # elements of one half of the heads, warps
    "activation_backward": {80: (32, 128, 8)},  # rows, columns, warps
    # products of the feed-forward: M, N, K, warps, stages; through pointers or descriptors
    "gemm": {80: (128, 128, 32, 8, 4)},
    "gemm_fp32": {80: (64, 32, 32, 4, 3)},
    "gemm_described": {90: (256, 128, 64, 8, 3), 120: (128, 128, 64, 8, 3)},
    # elements of a tile of the weight, programs that saturate the memory, limit of registers
    "decode_linear": {
        80: (8_192, 108, 96),  # without a limit ptxas spills to fit more programs
        **{family: (8_192, LARGEST_GPU[family], None) for family in (90, 100, 120)},
    },
    "decode_linear_one_row": {80: (8_192, 108, 96), 90: (4_096, 264, None)},
    # elements of a tile of keys, fewest keys per part, programs from which on no parts are needed
    "decode_attention": {80: (4_096, 64, 216), 90: (4_096, 64, 264), 120: (4_096, 64, 376)},
    # elements of a tile of the vocabulary, and per warp; elements of a program's noise
    "sample_token": {80: (4_096, 256, 1_024), 90: (8_192, 512, 1_024)},
}


class Route(NamedTuple):
    """How the two products of the feed-forward that have an epilogue are computed.

    "gemm" applies the epilogue to each tile in `kernels.matmul.gemm`; "cublas" runs PyTorch's
    product and then one pass over memory.
    """

    up: str
    gradient: str


CUBLAS = Route("cublas", "cublas")
GEMM = Route("gemm", "gemm")

# Family -> (bytes per element, C, F, activation) -> route; everything else uses `CUBLAS`. A product
# of our own is chosen unless it loses more than 3% of both passes: on an H200 these were faster by
# 4% (ReLU) and 8% (squared ReLU) than `CUBLAS`, and slower by 2.7% (GELU).
ROUTES: dict[int, dict[tuple[int, int, int, str], Route]] = {
    90: {
        (2, 384, 1_536, "relu"): Route("cublas", "gemm"),
        (2, 384, 1_536, "relu_squared"): GEMM,
        (2, 384, 1_536, "gelu"): Route("cublas", "gemm"),
    }
}

FAMILIES = (80, 90, 100, 120)  # Ampere and Ada, Hopper, Blackwell (data centre), Blackwell (RTX)
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
DESCRIBED_BYTES = 16  # alignment of the rows and of the first element of a described tensor
DEFAULT = 80  # the family whose tiles are used without a GPU, unless `target` sets another


INTERPRETED: bool = triton.knobs.runtime.interpret  # Triton decides when it decorates a kernel
if INTERPRETED:
    from . import interpreter

    interpreter.install()


class Launch(NamedTuple):
    """One recorded kernel launch, with everything needed to compile it ahead of time."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    options: dict[str, Any]  # constexprs by name, num_warps, num_stages


_target: contextvars.ContextVar[int | None] = contextvars.ContextVar("target", default=None)
_routed: contextvars.ContextVar[Route | None] = contextvars.ContextVar("routed", default=None)
_handler: contextvars.ContextVar[Callable[[Launch], None] | None] = contextvars.ContextVar(
    "handler", default=None
)


def is_recording() -> bool:
    """Whether launches are handed to a function instead of the GPU."""
    return _handler.get() is not None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch `kernel[grid](*arguments, **options)` on the device of the first argument.

    A kernel with the constexpr DESCRIBED makes descriptors, for which it needs memory.
    """
    options.setdefault("enable_fp_fusion", True)  # explicit: Triton is changing its default
    handler = _handler.get()
    if handler is not None:
        handler(Launch(kernel, grid, arguments, options))
        return
    if 0 in grid:
        return  # CUDA rejects an empty grid
    if arguments[0].is_meta:
        return  # shapes and dtypes are all that is asked for
    if not (INTERPRETED or arguments[0].is_cuda):
        raise Unavailable(f"a tensor is on {arguments[0].device}, and the interpreter is off")
    with torch.cuda.device_of(arguments[0]):
        if options.get("DESCRIBED"):
            context = contextvars.copy_context()  # the allocator is set for this launch only
            context.run(triton.set_allocator, _allocate)
            context.run(kernel[grid], *arguments, **options)
        else:
            kernel[grid](*arguments, **options)


def _allocate(size, alignment, stream):
    return torch.empty(size, dtype=torch.int8, device="cuda")


# The host spends 3 us per call of `triton.cdiv` and `triton.next_power_of_2`.


def cdiv(a: int, b: int) -> int:
    """The number of tiles of size b that cover a."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()


def architecture(device: torch.device) -> int:
    """90 for compute capability 9.0; without a GPU, the architecture of `target` or Ampere."""
    target = _target.get()
    if target is not None:
        return target
    if device.type != "cuda":
        return DEFAULT
    properties = _properties(device)
    return 10 * properties.major + properties.minor


def multiprocessors(device: torch.device) -> int:
    """The number of SMs of the GPU or, without a GPU, of the largest one of the architecture."""
    if device.type == "cuda" and _target.get() is None:
        return _properties(device).multi_processor_count
    return LARGEST_GPU[_family(FAMILIES, device)]


def _properties(device: torch.device) -> Any:
    return _properties_of(torch.cuda.current_device() if device.index is None else device.index)


def logits_bytes(device: torch.device) -> int:
    """Bytes of logits that `linear_cross_entropy` holds: up to a 64th of the memory of the GPU.

    With 2^29 its products have 5,376 rows of 50,304 in bf16, 0.4 TFLOP each; with fewer, larger
    ones the gradient of the weight is read and written less often.
    """
    if device.type != "cuda" or _target.get() is not None:
        return 2**29
    of_memory = _properties(device).total_memory // 64
    return min(max(1 << of_memory.bit_length() - 1, 2**28), 2**30)


# cached, because every operation calls it several times
_properties_of = functools.cache(torch.cuda.get_device_properties)


def tile(kernel: str, device: torch.device) -> Any:
    """The row of `TILES` for `kernel` on the architecture of `device`."""
    return TILES[kernel][_family(TILES[kernel], device)]


def head_tile(kernel: str, variant: str, head_size: int, device: torch.device) -> Any:
    """The tile of an attention kernel: that of its variant if there is one, else its own."""
    row, family = f"{kernel}_{variant}", _family(FAMILIES, device)
    if head_size in TILES.get(row, {}).get(family, {}):
        return TILES[row][family][head_size]
    return tile(kernel, device)[head_size]


def _family(families: Iterable[int], device: torch.device) -> int:
    of_device = architecture(device)
    return max(family for family in families if family <= of_device)


def route(x: torch.Tensor, F: int, activation: str) -> Route:
    """The route of the feed-forward of x (..., C) with F hidden channels."""
    key = x.element_size(), x.shape[-1], F, activation
    return _routed.get() or ROUTES.get(_family(FAMILIES, x.device), {}).get(key, CUBLAS)


def describable(*tensors: torch.Tensor) -> bool:
    """Whether all tensors can have descriptors (TMA): 16 bits, aligned rows, sm_90 or newer."""
    return architecture(tensors[0].device) >= 90 and all(
        x.element_size() == 2
        and not any(2 * step % DESCRIBED_BYTES for step in (x.storage_offset(), *x.stride()[:-1]))
        for x in tensors
    )


def overlapped(device: torch.device, allowed: bool = True) -> dict[str, bool]:
    """The options of a kernel that, if allowed, starts while the previous one is still running.

    From sm_90 on (programmatic dependent launch), such a kernel waits by `gdc_wait` before it reads
    what other kernels write, and before it writes; `OVERLAPPED` is its constexpr.
    """
    if (INTERPRETED and not is_recording()) or architecture(device) < 90 or not allowed:
        return {"OVERLAPPED": False}
    return {"OVERLAPPED": True, "launch_pdl": True}


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    """Set `variable` inside, also for backward, which on a GPU would run in another thread."""
    token = variable.set(value)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        variable.reset(token)


def target(architecture: int) -> contextlib.AbstractContextManager[None]:
    """Choose tiles as on `architecture` (90, for example) on any device."""
    return _set(_target, architecture)


def routed(route: Route | None) -> contextlib.AbstractContextManager[None]:
    """Compute the feed-forward by `route` instead of the one in `ROUTES`; None changes nothing."""
    return _set(_routed, route)


@contextlib.contextmanager
def record(architecture: int) -> Iterator[list[Launch]]:
    """Collect launches instead of running them; the tensors are meta or fake ones."""
    launches: list[Launch] = []
    with handled(launches.append, architecture):
        yield launches


@contextlib.contextmanager
def handled(handler: Callable[[Launch], None], architecture: int) -> Iterator[None]:
    """Hand launches to `handler` instead of a GPU, with the tiles of `architecture`."""
    with _set(_handler, handler), target(architecture):
        yield
