"""How kernels are launched: for which architecture, with which tiles, and by whom watched.

Every kernel of this package is launched by `launch`, on the device of its first tensor. Tiles
are chosen offline and stand in `TILES`: nothing is tuned at run time. `record` runs operations
on meta tensors, for an architecture that need not be there, and collects what would have been
launched: the ledger compiles exactly those launches and nothing else.
"""

import contextlib
import contextvars
import functools
from typing import Any, NamedTuple

import torch
import triton

LARGEST_CARD = {80: 108, 90: 132, 100: 148, 120: 188}  # SMs: A100, H200, B200, RTX PRO 6000

# kernel -> architecture family -> tile; a family serves every later one that has no row. A row of
# a variant ("attention_q_short") is for its own family and head size alone.
TILES: dict[str, dict[int, Any]] = {
    # elements and columns of a warp, fewest warps of a program; in backward, where the programs
    # fill the GPU once, the registers of a thread
    "layer_norm": {80: (1_024, 256, 1), 120: (512, 256, 1)},
    "layer_norm_backward": {
        80: (512, 512, 4, 168),
        90: (512, 512, 4, 128),
        100: (512, 512, 4, 168),
    },
    "add_layer_norm": {80: (512, 256, 2)},
    "add_layer_norm_backward": {
        80: (512, 512, 4, 168),
        90: (512, 512, 4, 128),
        100: (512, 512, 4, 168),
    },
    "add_layer_norm_backward_x_bias": {80: (512, 512, 4, 168)},  # a third sum takes registers
    # attention: head size -> rows, keys, warps, stages, registers of a thread at most; those of
    # family 90 are the fastest of some 20 on an H200, (16, 12, 1024, 64) to (1, 12, 16384, 64)
    "attention": {
        80: {64: (64, 64, 4, 3, 168), 128: (64, 64, 4, 2, None), 256: (64, 32, 8, 2, None)},
        90: {64: (64, 64, 4, 3, None), 128: (64, 64, 4, 3, None), 256: (128, 64, 8, 2, None)},
        100: {64: (128, 64, 8, 3, 144), 128: (128, 64, 8, 2, None), 256: (128, 64, 8, 2, None)},
        120: {64: (64, 64, 4, 3, 168), 128: (64, 64, 4, 2, None), 256: (64, 32, 8, 2, None)},
    },
    # four programs an SM; a window or dropout would spill out of 120 registers
    "attention_causal": {90: {64: (64, 64, 4, 3, 120)}},
    "attention_causal_more": {90: {64: (64, 64, 4, 3, 128)}},
    "attention_q": {
        80: {64: (64, 32, 4, 2, None), 128: (64, 64, 8, 2, None), 256: (32, 32, 8, 2, None)},
        90: {64: (64, 64, 4, 3, 128), 128: (128, 64, 8, 3, None), 256: (128, 32, 8, 2, None)},
        100: {64: (128, 64, 8, 2, 152), 128: (128, 64, 8, 2, None), 256: (128, 32, 8, 2, None)},
        120: {64: (64, 32, 4, 2, None), 128: (64, 64, 8, 2, None), 256: (32, 32, 8, 2, None)},
    },
    "attention_q_short": {90: {64: (64, 32, 4, 4, None)}},
    "attention_kv": {
        80: {64: (32, 64, 4, 2, None), 128: (64, 64, 8, 2, None), 256: (32, 32, 8, 2, None)},
        90: {64: (32, 64, 4, 4, None), 128: (32, 64, 4, 4, None), 256: (32, 64, 8, 2, None)},
        100: {64: (64, 64, 4, 2, 160), 128: (32, 64, 4, 2, None), 256: (32, 64, 4, 2, None)},
        120: {64: (32, 64, 4, 2, None), 128: (64, 64, 8, 2, None), 256: (32, 32, 8, 2, None)},
    },
    # fp32 and fp64 have no tensor cores here: IEEE products, for parity rather than speed
    "attention_fp32": {
        80: {64: (32, 32, 4, 2, None), 128: (32, 32, 4, 2, None), 256: (16, 32, 8, 1, None)}
    },
    "attention_q_fp32": {
        80: {64: (32, 32, 4, 2, None), 128: (32, 32, 4, 2, None), 256: (16, 32, 8, 1, None)}
    },
    "attention_kv_fp32": {
        80: {64: (16, 32, 4, 1, None), 128: (16, 32, 8, 1, None), 256: (16, 32, 8, 1, None)}
    },
    # bytes of a tile of short rows, of a tile of a long row, and of a tile per thread
    "cross_entropy": {80: (8_192, 16_384, 32), 90: (8_192, 16_384, 64), 100: (8_192, 16_384, 32)},
    # elements of a tile, its rows at most, warps
    "embedding": {80: (4_096, 16, 4), 90: (1_024, 16, 2), 100: (4_096, 16, 4)},
    "activation": {80: (4_096, 8)},  # elements, warps
    "rotary": {80: (1_024, 4)},  # elements of a half of its heads, warps
    "activation_backward": {80: (32, 128, 8)},  # rows, columns, warps
    "dropout": {80: (32, 128, 4)},  # rows, columns, warps
    # the feed-forward's products: M, N, K, warps, stages; by pointers, and by descriptors with
    # many columns (F of them) or few (C)
    "gemm": {80: (128, 128, 32, 8, 4)},
    "gemm_fp32": {80: (64, 32, 32, 4, 3)},
    "gemm_wide": {90: (256, 128, 64, 8, 3), 120: (128, 128, 64, 8, 3)},
    "gemm_narrow": {90: (128, 128, 64, 8, 4), 120: (128, 128, 64, 8, 3)},
    # elements of a weight's tile, programs that keep the memory busy, registers of a thread at most
    "decode_linear": {
        80: (8_192, 108, 96),  # ptxas, left alone, spills so that more programs fit
        **{family: (8_192, LARGEST_CARD[family], None) for family in (90, 100, 120)},
    },
    # elements of a tile of keys, keys of a part at least, programs with which no parts are needed
    "decode_attention": {80: (4_096, 64, 216), 90: (4_096, 64, 264), 120: (4_096, 64, 376)},
    "sample_token": {80: (4_096, 256)},  # elements of a tile of the vocabulary, and of a warp
}


class Route(NamedTuple):
    """Who computes the three products of the feed-forward behind which there is more to do."""

    up: str  # "gemm": kernels.matmul.gemm does it tile by tile; "cublas": one pass over memory behind
    down: str
    gradient: str


CUBLAS = Route("cublas", "cublas", "cublas")
GEMM = Route("gemm", "gemm", "gemm")

# family -> (bytes of an element, C, F) -> route. A row serves its own family alone. What has no row
# goes by `CUBLAS`: PyTorch's products and a pass behind each. On an H200 this one was the fastest
# of all eight, by 5% of both passes with ReLU; at 768 channels, with GELU, none beat `CUBLAS`.
ROUTES: dict[int, dict[tuple[int, int, int], Route]] = {
    90: {(2, 384, 1_536): Route("cublas", "cublas", "gemm")},
}

# linear_cross_entropy holds so many bytes of logits, up to a multiple of 128 rows: 5,376 rows of
# 50,304 in bf16, a third of 16 k tokens' logits, with 0.4 TFLOP in each of their three products.
LOGITS_BYTES = 2**29

FAMILIES = (80, 90, 100, 120)  # Ampere and Ada, Hopper, Blackwell (data centre), Blackwell (RTX)
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
INTERPRETED = 80  # the family whose tiles the interpreter uses, unless `target` names another


if triton.knobs.runtime.interpret:
    from kernels.common import interpreter

    interpreter.install()


class Launch(NamedTuple):
    """One kernel launch as it reached `launch`; enough to compile it ahead of time."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    options: dict[str, Any]  # constexprs by name, num_warps, num_stages


_target: contextvars.ContextVar[int | None] = contextvars.ContextVar("target", default=None)
_routed: contextvars.ContextVar[Route | None] = contextvars.ContextVar("routed", default=None)
_recorded: contextvars.ContextVar[list[Launch] | None] = contextvars.ContextVar(
    "recorded", default=None
)


def launch(kernel, grid: tuple[int, ...], *arguments, **options) -> None:
    """Launch `kernel[grid](*arguments, **options)` on the device of the first argument."""
    options.setdefault("enable_fp_fusion", True)  # said, because triton's default is to change
    recorded = _recorded.get()
    if recorded is not None:
        recorded.append(Launch(kernel, grid, arguments, options))
        return
    if 0 in grid:
        return  # nothing to do, and CUDA refuses an empty grid
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **options)


# `triton.cdiv` and `triton.next_power_of_2`, which take the host 3 us a call


def cdiv(a: int, b: int) -> int:
    """How many tiles of b cover a."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is at least n, of n >= 1."""
    return 1 << (n - 1).bit_length()


def opaque(operation):
    """`operation`, which `torch.compile` calls as it is instead of looking for its launches inside.

    What is compiled ends before it and begins again behind it.
    """

    @functools.wraps(operation)
    def call(*operands, **options):
        if torch.compiler.is_compiling():
            return torch.compiler.disable(operation)(*operands, **options)
        return operation(*operands, **options)

    return call


def architecture(device: torch.device) -> int:
    """90 for a card of compute capability 9.0; `target`'s, or Ampere's, where there is no card."""
    target = _target.get()
    if target is not None:
        return target
    if device.type != "cuda":
        return INTERPRETED
    properties = _properties(device)
    return 10 * properties.major + properties.minor


def multiprocessors(device: torch.device) -> int:
    """The GPU's SMs; of the architecture's largest GPU where there is none."""
    if device.type == "cuda" and _target.get() is None:
        return _properties(device).multi_processor_count
    return LARGEST_CARD[_family(FAMILIES, device)]


def _properties(device: torch.device):
    return _properties_of(torch.cuda.current_device() if device.index is None else device.index)


# asked by every operation, several times
_properties_of = functools.cache(torch.cuda.get_device_properties)


def tile(kernel: str, device: torch.device):
    """The row of `TILES` for `kernel` on `device`'s architecture."""
    return TILES[kernel][_family(TILES[kernel], device)]


def head_tile(kernel: str, variant: str, head_size: int, device: torch.device):
    """The tile of an attention kernel: that of its variant where there is one, else its own."""
    of_variant = TILES.get(f"{kernel}_{variant}", {}).get(_family(FAMILIES, device), {})
    return of_variant.get(head_size) or tile(kernel, device)[head_size]


def _family(families, device: torch.device) -> int:
    of_device = architecture(device)
    return max(family for family in families if family <= of_device)


def route(x: torch.Tensor, F: int) -> Route:
    """How the feed-forward of x (..., C) with F channels inside is computed."""
    chosen = _routed.get()
    if chosen is not None:
        return chosen
    return ROUTES.get(_family(FAMILIES, x.device), {}).get(
        (x.element_size(), x.shape[-1], F), CUBLAS
    )


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value):
    """Give `variable` a value, for backward too: a GPU's would run in a thread of its own."""
    token = variable.set(value)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        variable.reset(token)


def target(architecture: int):
    """Choose tiles as on `architecture` (say 90), whatever the device is."""
    return _set(_target, architecture)


def routed(route: Route | None):
    """Let the feed-forward go this way, whatever `ROUTES` says."""
    return _set(_routed, route)


@contextlib.contextmanager
def record(architecture: int):
    """Collect launches instead of running them; operations are called on meta tensors."""
    launches: list[Launch] = []
    with _set(_recorded, launches), target(architecture):
        yield launches
