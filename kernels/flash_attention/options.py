"""The options of attention: checked, and as constexprs and tiles of its kernels."""

import functools
import math

import torch

from ..common.dtypes import triton_accumulator
from ..common.launch import cdiv, describable, head_tile, next_power_of_2, tile
from ..common.philox import threshold_and_scale
from .scores import BOTTOM_RIGHT

OPTIONS = "str causal, int window, float softcap, float dropout_p, float? scale"
LARGEST_HEAD = 256  # rows of Q, K, V and the accumulator must fit on chip
SHORT = 1024  # keys up to which dQ uses narrow tiles, because most tiles are on the diagonal
FEW = 512  # keys that at most eight programs read
TOGETHER = 2**24  # bytes that concurrent programs read repeatedly: a third of an L2 cache
LARGEST_GRID = 65_535  # programs in the second and third direction


def checked_ranges(operation, ranges, B, Tq, Tk):
    """`of_rows` and `of_keys` with B batches of whole rows, or None twice."""
    if ranges is None:
        return None, None
    for x, name, T in ((ranges.of_rows, "of_rows", Tq), (ranges.of_keys, "of_keys", Tk)):
        if x.dtype != torch.int32 or x.shape not in ((B, T, 2), (1, T, 2)):
            raise ValueError(
                f"{operation}: {name} of the ranges is {x.dtype} {tuple(x.shape)}; give int32 "
                f"({B} or 1, {T}, 2)"
            )
    return (x.contiguous().expand(B, x.shape[1], 2) for x in ranges)


def grouped(x, pairs, tiles):
    """The grid for `pairs` of batch and head, in groups, of which each program reads tiles of x.

    The larger a group, the longer the SMs are all busy; L2 can hold what a group reads repeatedly.
    Groups of few keys, which few programs read, are twice as large.
    """
    _, _, T, D = x.shape
    bytes_of_a_head = 2 * T * D * x.element_size()  # keys and values, or queries and dout
    limit = TOGETHER if T > FEW else 2 * TOGETHER
    groups = _groups(pairs, cdiv(pairs, max(1, limit // max(bytes_of_a_head, 1))))
    return (pairs // groups, tiles, groups)


@functools.lru_cache(maxsize=4096)
def _groups(pairs, fewest):
    """The smallest number of groups, at least `fewest`, that all have the same number of pairs."""
    counts = range(max(fewest, 1), min(pairs, LARGEST_GRID) + 1)
    return next((count for count in counts if pairs % count == 0), 1)


def check_options(causal, window, softcap, dropout_p, scale, D, Dv):
    """The options as those of the operators; ValueError if one is wrong."""
    if causal not in (True, False, "top_left", "bottom_right"):
        raise ValueError(
            f"attention: causal is {causal!r}; give True or 'top_left', 'bottom_right', or False"
        )
    if window < 0 or (window and not causal):
        raise ValueError(
            f"attention: window is {window} with causal={causal}; give at least 1 key with "
            "causal=True, or 0 for all keys"
        )
    for name, size in (("D", D), ("Dv", Dv)):
        if not 1 <= size <= LARGEST_HEAD:
            raise ValueError(
                f"attention: {name} is {size}; give heads of 1 to {LARGEST_HEAD} channels"
            )
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"attention: scale is {scale}; give a positive number")
    if not 0 <= softcap < math.inf:
        raise ValueError(f"attention: softcap is {softcap}; give a positive number, or 0 for none")
    alignment = causal if isinstance(causal, str) else "top_left" if causal else ""
    return alignment, window, softcap, dropout_p, scale


@functools.lru_cache(maxsize=4096)  # every call of attention asks three times
def constants(
    dtype: torch.dtype,
    heads: tuple[int, int],  # H, Hkv
    sizes: tuple[int, int, int, int],  # Tq, Tk, D, Dv
    causal: str,
    window: int,
    softcap: float,
    dropout_p: float,
    scale: float | None,
    has_ranges: bool,
) -> dict:
    """The constexprs of the kernels except those of the tile."""
    (H, Hkv), (Tq, Tk, D, Dv) = heads, sizes
    scale = D**-0.5 if scale is None else scale
    offset = Tk - Tq if causal == "bottom_right" else 0
    window = window if window < Tq + offset else 0  # else the last row sees every key before it
    alignment = BOTTOM_RIGHT.value if offset else int(bool(causal))
    threshold, keep_scale = threshold_and_scale(dropout_p)
    return {
        **{"SCALE": float(scale), "SOFTCAP": float(softcap)},
        **{"CAUSAL": alignment, "WINDOW": window},
        # whether rows may see no key: before the diagonal, past the last window, by their range
        "UNSEEING": has_ranges or offset < 0 or Tk == 0 or 0 < window <= Tq + offset - Tk,
        **{"THRESHOLD": threshold, "KEEP_SCALE": keep_scale, "GROUP": H // Hkv},
        # a tensor core multiplies 16 at a time
        **{"D": D, "BLOCK_D": max(16, next_power_of_2(D))},
        **{"DV": Dv, "BLOCK_DV": max(16, next_power_of_2(Dv)), "ACC": triton_accumulator(dtype)},
    }


def batch_stride(ranges):
    """The stride of the batch of ranges (B, T, 2), or of None."""
    return 0 if ranges is None else ranges.stride(0)


def tiled(kernel, q, k, v, of_rows, options, visited):
    """The constexprs, tile and options of a launch of `kernel`, by its row of `launch.TILES`.

    visited: the two tensors of which each program reads many tiles.
    """
    H, Tq, D = q.shape[1:]
    Hkv, Tk, Dv = v.shape[1:]
    chosen = constants(q.dtype, (H, Hkv), (Tq, Tk, D, Dv), *options, of_rows is not None)
    variant = "short" if kernel == "attention_q" and Tk <= SHORT else ""
    if kernel == "attention" and chosen["CAUSAL"]:
        variant = "causal_more" if chosen["WINDOW"] or chosen["THRESHOLD"] else "causal"
    kernel += "" if q.element_size() == 2 else "_fp32"
    head_size = max(64, chosen["BLOCK_D"])
    if chosen["BLOCK_DV"] != chosen["BLOCK_D"]:
        head_size = 256  # the smallest tiles: with two head sizes others spill on sm_80 and sm_120
    M, N, warps, stages, registers = head_tile(kernel, variant, head_size, q.device)
    if warps < 8 and (chosen["SOFTCAP"] or of_rows is not None):
        registers = None  # the limit is for kernels that hold less per score
    whole = all(chosen[d] == chosen[f"BLOCK_{d}"] for d in ("D", "DV"))
    even = whole and Tq % M == Tk % N == 0
    resources = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    fewest = tile("attention_described", q.device).get(head_size)
    described = fewest is not None and visited[0].shape[2] >= 2**fewest and describable(*visited)
    return chosen | {"M": M, "N": N, "EVEN": even, "DESCRIBED": described} | resources
