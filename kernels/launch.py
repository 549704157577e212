"""How kernels are launched: for which architecture, with which tiles, and by whom watched.

Every kernel of this package is launched by `launch`, on the device of its first tensor. Tiles
are chosen offline and stand in `TILES`: nothing is tuned at run time. `record` runs operations
on meta tensors, for an architecture that need not be there, and collects what would have been
launched: the ledger compiles exactly those launches and nothing else.
"""

import contextlib
import contextvars
from typing import Any, NamedTuple

import torch

# kernel -> architecture family -> tile; a family serves every later one that has no row.
TILES: dict[str, dict[int, Any]] = {
    # bytes of a tile of short rows, of a tile of a long row, and of a tile per thread
    "cross_entropy": {80: (8_192, 16_384, 32)},
    "attention": {80: {D: (64, 64, 4, 2, None) for D in (64, 128, 256)}},
    "attention_short": {80: {D: (64, 64, 4, 2, None) for D in (64, 128, 256)}},
    "attention_q": {80: {D: (64, 64, 4, 2, None) for D in (64, 128, 256)}},
    "attention_kv": {80: {D: (64, 64, 4, 2, None) for D in (64, 128, 256)}},
    "attention_fp32": {80: {D: (32, 32, 4, 2, None) for D in (64, 128, 256)}},
    "attention_short_fp32": {80: {D: (32, 32, 4, 2, None) for D in (64, 128, 256)}},
    "attention_q_fp32": {80: {D: (32, 32, 4, 2, None) for D in (64, 128, 256)}},
    "attention_kv_fp32": {80: {D: (32, 32, 4, 2, None) for D in (64, 128, 256)}},
    "embedding": {80: (4_096, 16, 4)},  # elements of a tile, its rows at most, warps
}

# linear_cross_entropy holds so many bytes of logits, up to a multiple of 128 rows: 2,688 rows of
# 50,304 in bf16, a sixth of 16 k tokens' logits, with 0.2 TFLOP in each of their three products.
LOGITS_BYTES = 2**28

FAMILIES = (80, 90, 100, 120)  # Ampere and Ada, Hopper, Blackwell (data centre), Blackwell (RTX)
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
INTERPRETED = 80  # the family whose tiles the interpreter uses, unless `target` names another


class Launch(NamedTuple):
    """One kernel launch as it reached `launch`; enough to compile it ahead of time."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    options: dict[str, Any]  # constexprs by name, num_warps, num_stages


_target: contextvars.ContextVar[int | None] = contextvars.ContextVar("target", default=None)
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


def architecture(device: torch.device) -> int:
    """90 for a card of compute capability 9.0; `target`'s, or Ampere's, where there is no card."""
    target = _target.get()
    if target is not None:
        return target
    if device.type != "cuda":
        return INTERPRETED
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tile(kernel: str, device: torch.device):
    """The row of `TILES` for `kernel` on `device`'s architecture."""
    rows = TILES[kernel]
    return rows[max(family for family in rows if family <= architecture(device))]


@contextlib.contextmanager
def target(architecture: int):
    """Choose tiles as on `architecture` (say 90), whatever the device is."""
    token = _target.set(architecture)
    try:
        yield
    finally:
        _target.reset(token)


@contextlib.contextmanager
def record(architecture: int):
    """Collect launches instead of running them; operations are called on meta tensors."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        with target(architecture):
            yield launches
    finally:
        _recorded.reset(token)
