"""Tensors (..., C) as rows of C: where they lie, and how many of them a program takes.

Rows are addressed as (outer, inner, C) with two strides. That takes the heads of a packed
projection and a transposed batch as they are; other layouts are copied.
"""

import math

import torch
import triton
import triton.language as tl

from kernels.common.launch import next_power_of_2, tile

VECTOR_BYTES = 16  # what a thread reads at a time, where all rows begin at multiples of it
MOST_WARPS = 16


def as_rows(*tensors):
    """Tensors of one shape (..., C) as (outer, inner, C), copied only where they must be.

    Returns the tensors, their addressing (inner, then both strides of each tensor in units), and
    the unit in elements. Where all rows of a tensor have one stride, inner is None.
    """
    *outer, inner, C = (1, *tensors[0].shape)
    tensors = [x.reshape(math.prod(outer), inner, C) for x in tensors]
    tensors = [x if x.stride(2) == 1 else x.contiguous() for x in tensors]
    strides = [stride for x in tensors for stride in x.stride()[:2]]
    vector = VECTOR_BYTES // min(x.element_size() for x in tensors)
    unit = vector if all(size % vector == 0 for size in (C, *strides)) else 1
    flat = all(len(x) == 1 or x.stride(0) == inner * x.stride(1) for x in tensors)
    return tensors, (None if flat else inner, *(stride // unit for stride in strides)), unit


@triton.jit
def row_pointers(
    ptr, first, inner, outer_stride, inner_stride, ROWS: tl.constexpr, UNIT: tl.constexpr
):
    """Pointers (ROWS, 1) to the rows first + [0, ROWS) of a tensor that `as_rows` described."""
    row = tl.arange(0, ROWS)[:, None]
    if inner is None:  # one multiplication for all
        at = ptr + first.to(tl.int64) * inner_stride * UNIT + row * (inner_stride * UNIT)
    else:
        row += first
        at = ptr + (row // inner).to(tl.int64) * outer_stride * UNIT
        at += (row % inner).to(tl.int64) * inner_stride * UNIT
    return at


@triton.jit
def packed_rows(ptr, first, C: tl.constexpr, ROWS: tl.constexpr):
    """Pointers (ROWS, 1) to the rows first + [0, ROWS) of a contiguous (rows, C)."""
    return ptr + first.to(tl.int64) * C + tl.arange(0, ROWS)[:, None] * C


def row_tile(kernel, C, device):
    """ROWS, COLUMNS and warps of `kernel` for rows of C: warps lie along a row, then across."""
    warp_elements, warp_columns, fewest_warps = tile(kernel, device)[:3]
    columns = max(8, next_power_of_2(C))
    warps = max(fewest_warps, min(MOST_WARPS, columns // warp_columns))
    rows = max(1, warp_elements * warps // columns)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}


def statistics_dtype(x: torch.Tensor):
    """What statistics and sums over rows are kept in: fp32, or fp64 for fp64."""
    return torch.promote_types(x.dtype, torch.float32)


def accumulator(x: torch.Tensor):
    """The same, as a kernel's ACC."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32
