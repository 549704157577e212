"""Tensors (..., C) addressed as rows of C elements, and the number of rows per program.

Rows are addressed as (outer, inner, C) with two strides. This covers the heads of a packed
projection and a transposed batch without a copy; other layouts are copied.
"""

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl

from .launch import next_power_of_2, tile

VECTOR_BYTES = 16  # the load of a thread, if all rows begin at multiples of it
MOST_WARPS = 16


def as_rows(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], tuple[int | None, ...], int]:
    """Address tensors of one shape (..., C) as (outer, inner, C), copying only if necessary.

    Returns the tensors, their addressing (inner, then both strides of each tensor in units), and
    the unit in elements. If all rows of each tensor have one stride, inner is None.
    """
    *outer, inner, C = (1, *tensors[0].shape)
    if all(x.is_contiguous() for x in tensors):  # views would take the host longer than a launch
        views, strides, flat = list(tensors), [inner * C, C] * len(tensors), True
    else:
        views = [x.reshape(math.prod(outer), inner, C) for x in tensors]
        views = [x if x.stride(2) == 1 else x.contiguous() for x in views]
        strides = [stride for x in views for stride in x.stride()[:2]]
        flat = all(len(x) == 1 or x.stride(0) == inner * x.stride(1) for x in views)
    vector = VECTOR_BYTES // min(x.element_size() for x in views)
    unit = vector if all(size % vector == 0 for size in (C, *strides)) else 1
    return views, (None if flat else inner, *(stride // unit for stride in strides)), unit


@triton.jit
def row_pointers(
    ptr,  # (outer, inner, C)
    first, inner, outer_stride, inner_stride,
    ROWS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Pointers (ROWS, 1) to the rows first + [0, ROWS) of a tensor with addressing by `as_rows`."""
    row = tl.arange(0, ROWS)[:, None]
    if inner is None:  # one stride for all rows
        at = ptr + first.to(tl.int64) * inner_stride * UNIT + row * (inner_stride * UNIT)
    else:
        row += first
        at = ptr + (row // inner).to(tl.int64) * outer_stride * UNIT
        at += (row % inner).to(tl.int64) * inner_stride * UNIT
    return at


@triton.jit
def packed_rows(ptr, first, C: tl.constexpr, ROWS: tl.constexpr):
    """Pointers (ROWS, 1) to the rows first + [0, ROWS) of a contiguous tensor (rows, C)."""
    return ptr + first.to(tl.int64) * C + tl.arange(0, ROWS)[:, None] * C


def row_tile(kernel: str, C: int, device: torch.device) -> dict[str, Any]:
    """ROWS, COLUMNS and num_warps of `kernel` for rows of C: warps lie along a row, then across."""
    return _row_tile(C, *tile(kernel, device)[:3])


@functools.cache  # a call of a norm and its backward asks five times
def _row_tile(C, warp_elements, warp_columns, fewest_warps):
    columns = max(8, next_power_of_2(C))
    warps = max(fewest_warps, min(MOST_WARPS, columns // warp_columns))
    rows = max(1, warp_elements * warps // columns)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
