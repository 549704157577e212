"""Queries and keys before attention: RMS-normalised, and rotated by their positions.

For a query or key x (D,) at position t, with cos and sin (T, D), where `roll` swaps the halves of
x:

    xhat = x rstd                    rstd = 1 / sqrt(1/D sum x^2 + eps)      (QK norm)
    y    = xhat cos_t + roll(xhat) sin_t                 (Su et al. 2021; sin is -s, then s)

Backward:

    dxhat = dy cos_t + roll(dy sin_t)       dx = rstd (dxhat - xhat 1/D sum dxhat xhat)

Decisions:
- Queries and keys are read from the packed projection, and dx is written to its packed gradient:
  nothing is split or joined, and the values are not touched.
- A program holds whole heads as two halves, so that the roll is a choice of registers.
- Nothing is saved for backward: x is saved anyway, and recomputing rstd costs one sum.
"""

import torch
import triton
import triton.language as tl

from ..common.dtypes import triton_accumulator
from ..common.launch import cdiv, launch, next_power_of_2, tile
from ..common.sums import sum_of_products


@triton.jit
def _halves(
    ptr,
    first,  # (ROWS,): where each head begins
    d,  # (BLOCK,)
    row_inside,  # (ROWS, 1)
    D: tl.constexpr, HALF: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Both halves (ROWS, BLOCK) of heads, 0 past their end."""
    at = first[:, None] + d[None, :]
    in_a, in_b = _inside(d, row_inside, D, HALF)
    a = tl.load(ptr + at, in_a, other=0).to(ACC)
    return a, tl.load(ptr + at + HALF, in_b, other=0).to(ACC)


@triton.jit
def _inside(d, row_inside, D: tl.constexpr, HALF: tl.constexpr):
    """The masks (ROWS, BLOCK) of both halves; the second is shorter if D is odd."""
    return row_inside & (d < HALF)[None, :], row_inside & (d < D - HALF)[None, :]


@triton.jit
def _rstd(a, b, D: tl.constexpr, EPS: tl.constexpr):
    """rstd (ROWS, 1) of heads with the halves a and b."""
    return tl.rsqrt((sum_of_products(a, a, 1) + sum_of_products(b, b, 1)) / D + EPS)[:, None]


@triton.jit
def rotary_forward_kernel(
    x_ptr,  # (B, T, H + 2 Hkv, D)
    cos_ptr,  # (>= T, D) or None
    sin_ptr,  # (>= T, D) or None
    y_ptr,  # (B * T, H + Hkv, D)
    stride_xb, stride_xt, rows, T,
    HEADS: tl.constexpr,  # H + Hkv
    D: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = (D + 1) // 2
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # a head of a token
    d, inside = tl.arange(0, BLOCK), (row < rows)[:, None]
    token, head = row // HEADS, row % HEADS
    begin = token // T * stride_xb + token % T * stride_xt
    a, b = _halves(x_ptr, begin + head * D, d, inside, D, HALF, ACC)  # (ROWS, BLOCK)
    if NORM:
        rstd = _rstd(a, b, D, EPS)
        a, b = a * rstd, b * rstd
    if cos_ptr is not None:
        at = token % T * D
        cos_a, cos_b = _halves(cos_ptr, at, d, inside, D, HALF, ACC)
        sin_a, sin_b = _halves(sin_ptr, at, d, inside, D, HALF, ACC)
        a, b = a * cos_a + b * sin_a, b * cos_b + a * sin_b
    at = (row * D)[:, None] + d[None, :]
    in_a, in_b = _inside(d, inside, D, HALF)
    tl.store(y_ptr + at, a.to(y_ptr.dtype.element_ty), in_a)
    tl.store(y_ptr + at + HALF, b.to(y_ptr.dtype.element_ty), in_b)


@triton.jit
def rotary_backward_kernel(
    dy_ptr,  # (B * T, H + Hkv, D)
    x_ptr,  # (B, T, H + 2 Hkv, D)
    cos_ptr,  # (>= T, D) or None
    sin_ptr,  # (>= T, D) or None
    dx_ptr,  # (B * T, H + 2 Hkv, D) with rows `dx_stride` apart
    stride_xb, stride_xt, dx_stride, rows, T,
    HEADS: tl.constexpr,  # H + Hkv
    D: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = (D + 1) // 2
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d, inside = tl.arange(0, BLOCK), (row < rows)[:, None]
    token, head = row // HEADS, row % HEADS
    da, db = _halves(dy_ptr, row * D, d, inside, D, HALF, ACC)  # (ROWS, BLOCK)
    if cos_ptr is not None:
        at = token % T * D
        cos_a, cos_b = _halves(cos_ptr, at, d, inside, D, HALF, ACC)
        sin_a, sin_b = _halves(sin_ptr, at, d, inside, D, HALF, ACC)
        da, db = da * cos_a + db * sin_b, db * cos_b + da * sin_a
    if NORM:
        begin = token // T * stride_xb + token % T * stride_xt
        a, b = _halves(x_ptr, begin + head * D, d, inside, D, HALF, ACC)
        rstd = _rstd(a, b, D, EPS)
        a, b = a * rstd, b * rstd
        common = ((sum_of_products(da, a, 1) + sum_of_products(db, b, 1)) / D)[:, None]
        da, db = (da - a * common) * rstd, (db - b * common) * rstd
    at = (token * dx_stride + head * D)[:, None] + d[None, :]
    in_a, in_b = _inside(d, inside, D, HALF)
    tl.store(dx_ptr + at, da.to(dx_ptr.dtype.element_ty), in_a)
    tl.store(dx_ptr + at + HALF, db.to(dx_ptr.dtype.element_ty), in_b)


def rotary_forward(
    qkv: torch.Tensor, y: torch.Tensor, counts: tuple[int, int, int], positions: tuple
) -> None:
    """Fill y (B, T, (H + Hkv) D) from qkv (B, T, (H + 2 Hkv) D).

    counts: the numbers of heads of queries, keys and values.
    positions: whether queries and keys are RMS-normalised, eps, cos and sin (>= T, D) or None.
    """
    tensors = qkv, *positions[2:], y
    _launch(rotary_forward_kernel, tensors, qkv.stride()[:2], qkv, counts, positions)


def rotary_backward(
    dy: torch.Tensor, qkv: torch.Tensor, dqkv: torch.Tensor, counts: tuple[int, int, int],
    positions: tuple,
) -> None:  # fmt: skip
    """Fill the queries and keys of dqkv, the gradient of qkv, from dy, the gradient of y."""
    tensors, strides = (dy, qkv, *positions[2:], dqkv), (*qkv.stride()[:2], dqkv.stride(1))
    _launch(rotary_backward_kernel, tensors, strides, qkv, counts, positions)


def _launch(kernel, tensors, strides, qkv, counts, positions):
    B, T, C = qkv.shape
    heads, D = counts[0] + counts[1], C // sum(counts)
    elements, num_warps = tile("rotary", qkv.device)
    BLOCK = next_power_of_2((D + 1) // 2)
    ROWS = max(1, elements // BLOCK)
    constants = {"HEADS": heads, "D": D, "NORM": positions[0], "EPS": positions[1]}
    constants |= {"ROWS": ROWS, "BLOCK": BLOCK, "ACC": triton_accumulator(qkv.dtype)}
    rows = B * T * heads
    grid = (cdiv(rows, ROWS),)
    launch(kernel, grid, *tensors, *strides, rows, T, **constants, num_warps=num_warps)
