"""What the kernels of attention share: the order of programs, reads, and the weights P.

With fp32 or fp64 operands the weights are computed as accurately as PyTorch's, however large the
logits are. The maximum m and the sum z of a row are kept apart, because rounding m + log2 z changes
P by up to |m| 2^-24; every kernel adds up S and dP in the same order; and delta is the sum of P dP,
so that dS is exactly 0 where one key has all the weight. With 16-bit operands one number per row
and one fused multiply-add per weight are enough: rounding the operands changes P far more.
"""

import functools
import math
from typing import Literal

import torch
import triton
import triton.language as tl

from ..common.dtypes import triton_accumulator
from ..common.launch import head_tile, next_power_of_2
from ..common.philox import threshold_and_scale

LARGEST_HEAD = 256  # rows of Q, K, V and the accumulator must fit on chip
LOG2_E = tl.constexpr(1.4426950408889634)
BOTTOM_RIGHT = tl.constexpr(2)  # a value of CAUSAL; 1 is top-left, and 0 not causal
TOGETHER = 2**24  # bytes that concurrent programs read repeatedly: a third of an L2 cache


@triton.jit
def scheduled(tiles, H, together):
    """The index of this program's tile, its head, and its batch.

    Programs process `together` heads at a time: first the first tile of each, then the second, ...
    """
    pairs = tl.num_programs(0) // tiles  # of batch and head
    first = tl.program_id(0) // (together * tiles) * together
    here = tl.minimum(together, pairs - first)
    place = tl.program_id(0) - first * tiles
    pair = (first + place % here).to(tl.int64)
    return place // here, pair % H, pair // H


@triton.jit
def tile_pointers(ptr, stride, ROWS: tl.constexpr, d):
    """Pointers (ROWS, D) to the first rows at `ptr`, `stride` elements apart."""
    return ptr + tl.arange(0, ROWS).to(tl.int64)[:, None] * stride + d[None, :]


@triton.jit
def read(pointers, inside, other: tl.constexpr = 0.0):
    """Load a tile, `other` where it is not `inside`; None means that all of it is."""
    return tl.load(pointers) if inside is None else tl.load(pointers, inside, other=other)


@triton.jit
def read_ranges(ptr, at):
    """The ranges [first, end) of the tokens `at`."""
    return tl.load(ptr + 2 * at), tl.load(ptr + 2 * at + 1)


@triton.jit
def keys_seen(
    first,  # position of the first of M rows
    Tk,
    row_begin, row_end,  # (M,): the ranges of the rows, or None
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The keys that a tile of rows sees, from the beginning of a tile of N; those that all see."""
    begin, end, begin_of_all, end_of_all = 0, Tk, 0, Tk
    if CAUSAL:
        end, end_of_all = tl.minimum(first + M, Tk), tl.minimum(first + 1, Tk)
    if WINDOW > 0:
        begin, begin_of_all = tl.maximum(first - WINDOW + 1, 0) // N * N, first + M - WINDOW
    if row_begin is not None:
        begin = tl.maximum(begin, tl.min(row_begin, 0) // N * N)
        begin_of_all = tl.maximum(begin_of_all, tl.max(row_begin, 0))
        end = tl.minimum(end, tl.max(row_end, 0))
        end_of_all = tl.minimum(end_of_all, tl.min(row_end, 0))
    return begin, end, begin_of_all, end_of_all


@triton.jit
def is_seen(
    position,  # (M,), of the rows
    key,  # (N,)
    row_begin, row_end,  # (M,) or None
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    KEYS: tl.constexpr,  # the dimension of the keys in the result: 1 for (M, N), 0 for (N, M)
):  # fmt: skip
    """Whether the rows see the keys, by the diagonal, their window and their range."""
    position, key = tl.expand_dims(position, KEYS), tl.expand_dims(key, 1 - KEYS)
    seen = position >= key if CAUSAL else True
    if WINDOW > 0:
        seen &= position - key < WINDOW
    if row_begin is not None:
        in_range = key >= tl.expand_dims(row_begin, KEYS)
        in_range &= key < tl.expand_dims(row_end, KEYS)
        seen = seen & in_range if CAUSAL else in_range
    return seen


@triton.jit
def products(a, b, ACC: tl.constexpr, TRANSPOSED: tl.constexpr = False):
    """a b^T (M, N); if TRANSPOSED, the transpose of b a^T, with its order of sums."""
    if TRANSPOSED:
        return tl.trans(tl.dot(b, tl.trans(a), input_precision="ieee", out_dtype=ACC))
    return tl.dot(a, tl.trans(b), input_precision="ieee", out_dtype=ACC)


@triton.jit
def weights(s, m, rz, FACTOR: tl.constexpr, WIDE: tl.constexpr):
    """P from S and, of its rows, m and rz = 1 / z; if not WIDE, m is the log-sum-exp in base 2."""
    if WIDE:  # S > m only if it was added up in another order
        return tl.exp2(tl.minimum(s - m, 0.0) * FACTOR) * rz
    return tl.exp2(s * FACTOR - m)


def together(x):
    """The number of heads of x (B, H, T, D) to process together, so that L2 can hold them."""
    B, H, T, D = x.shape
    bytes_of_a_head = 2 * T * D * x.element_size()  # keys and values, or queries and dout
    return max(1, min(B * H, TOGETHER // max(bytes_of_a_head, 1)))


@functools.lru_cache(maxsize=4096)  # every call of attention asks three times
def constants(
    dtype: torch.dtype,
    heads: tuple[int, int],  # H, Hkv
    sizes: tuple[int, int, int],  # Tq, Tk, D
    causal: bool | Literal["top_left", "bottom_right"],
    window: int,
    dropout_p: float,
    scale: float | None,
    has_ranges: bool,
) -> dict:
    """The constexprs of the kernels except those of the tile."""
    (H, Hkv), (Tq, Tk, D) = heads, sizes
    if causal not in (True, False, "top_left", "bottom_right"):
        raise ValueError(
            f"attention: causal is {causal!r}; give True or 'top_left', 'bottom_right', or False"
        )
    if window < 0 or (window and not causal):
        raise ValueError(
            f"attention: window is {window} with causal={causal}; give at least 1 key with "
            "causal=True, or 0 for all keys"
        )
    if not 1 <= D <= LARGEST_HEAD:
        raise ValueError(f"attention: D is {D}; give heads of 1 to {LARGEST_HEAD} channels")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"attention: dtype is {dtype}; give fp16, bf16, fp32 or fp64")
    scale = D**-0.5 if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(f"attention: scale is {scale}; give a positive number")
    offset = Tk - Tq if causal == "bottom_right" else 0
    window = window if window < Tq + offset else 0  # else the last row sees every key before it
    alignment = BOTTOM_RIGHT.value if offset else int(bool(causal))
    threshold, keep_scale = threshold_and_scale(dropout_p)
    return {
        **{"SCALE": float(scale), "CAUSAL": alignment, "WINDOW": window},
        # whether rows may see no key: before the diagonal, past the last window, by their range
        "UNSEEING": has_ranges or offset < 0 or Tk == 0 or 0 < window <= Tq + offset - Tk,
        **{"THRESHOLD": threshold, "KEEP_SCALE": keep_scale, "GROUP": H // Hkv},
        # a tensor core multiplies 16 at a time
        **{"D": D, "BLOCK_D": max(16, next_power_of_2(D)), "ACC": triton_accumulator(dtype)},
    }


def batch_stride(ranges):
    """The stride of the batch of ranges (B, T, 2), or of None."""
    return 0 if ranges is None else ranges.stride(0)


def constants_of(q, k, of_rows, options):
    """The constants of a call with these operands and options (from `causal` on)."""
    H, Tq, D = q.shape[1:]
    sizes = Tq, k.shape[2], D
    return constants(q.dtype, (H, k.shape[1]), sizes, *options, of_rows is not None)


def tiled(kernel, variant, q, k, constants):
    """The constexprs, tile and options of a launch of `kernel`, by its row of `launch.TILES`."""
    kernel += "" if q.element_size() == 2 else "_fp32"
    head_size = max(64, constants["BLOCK_D"])
    M, N, warps, stages, registers = head_tile(kernel, variant, head_size, q.device)
    even = constants["D"] == constants["BLOCK_D"] and q.shape[2] % M == k.shape[2] % N == 0
    resources = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    return constants | {"M": M, "N": N, "EVEN": even} | resources
