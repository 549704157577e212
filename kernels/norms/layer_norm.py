"""LayerNorm and RMSNorm over the last dimension.

Forward, for every row x of width C (Ba et al. 2016); RMSNorm (Zhang and Sennrich 2019) has mean = 0
and no bias:

    mean = 1/C sum x        rstd = 1 / sqrt(1/C sum (x - mean)^2 + eps)
    xhat = (x - mean) rstd  y = xhat weight + bias

Backward:

    dxhat   = dy weight
    dx      = rstd (dxhat - 1/C sum dxhat - xhat 1/C sum (dxhat xhat))
    dweight = sum over rows of dy xhat
    dbias   = sum over rows of dy

Decisions:
- A program holds whole rows in registers, several if they are short, so x and dy are read once.
- Only mean and rstd are saved for backward, in fp32; xhat is recomputed from x.
- Backward launches P programs, as many as the GPU holds at once. Each visits every P-th tile of
  rows, prefetching the next one, and accumulates its share of dweight and dbias in registers.
  `norm_parameter_gradients.py` adds the P shares in a fixed order.
"""

import torch
import triton
import triton.language as tl

from ..common.dtypes import accumulator, triton_accumulator
from ..common.launch import cdiv, launch
from ..common.operands import check_operands
from ..common.operator import Operation
from ..common.row_layout import as_rows, packed_rows, row_pointers, row_tile
from ..common.sums import sum_of_products
from .norm_parameter_gradients import (
    count_parameters,
    empty_shares,
    parameter_gradients,
    residency,
    store_share,
)

WIDEST = 8_192  # columns: the widest row that a program holds together with its share of dweight
WIDEST_PREFETCHED = 4_096  # columns: the next tile of rows fits into the shared memory of every GPU


@triton.jit
def normalise(
    x,  # (ROWS, COLUMNS), 0 where column >= C
    column,  # (1, COLUMNS)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    C: tl.constexpr, EPS: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """Return y (ROWS, COLUMNS), mean (ROWS,) and rstd (ROWS,)."""
    mean = tl.sum(x, 1) / C
    if CENTRED:
        x = tl.where(column < C, x - mean[:, None], 0)
        rounding = tl.sum(x, 1) / C  # of the mean, which may be much larger than the deviation
        x = tl.where(column < C, x - rounding[:, None], 0)
        mean += rounding
    rstd = tl.rsqrt(sum_of_products(x, x, 1) / C + EPS)
    y = x * rstd[:, None]
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + column, column < C, other=0).to(y.dtype)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, column < C, other=0).to(y.dtype)
    return y, mean, rstd


@triton.jit
def input_gradient(
    dy,  # (ROWS, COLUMNS)
    xhat,  # (ROWS, COLUMNS)
    rstd,  # (ROWS, 1)
    weight,  # (ROWS, COLUMNS) or None
    C: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """Return dx (ROWS, COLUMNS)."""
    dxhat = dy
    if weight is not None:
        dxhat *= weight
    common = xhat * (sum_of_products(dxhat, xhat, 1) / C)[:, None]
    if CENTRED:
        common += (tl.sum(dxhat, 1) / C)[:, None]
    return (dxhat - common) * rstd  # exactly 0 for a single column


@triton.jit(do_not_specialize=["rows", "inner", "x_outer", "x_inner"])
def layer_norm_forward_kernel(
    x_ptr,  # (outer, inner, C)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    y_ptr,  # (rows, C)
    mean_ptr,  # (rows,), or None for RMSNorm
    rstd_ptr,  # (rows,)
    rows, inner, x_outer, x_inner,
    C: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows)[:, None] & (column < C)

    x_row = row_pointers(x_ptr, first, inner, x_outer, x_inner, ROWS, UNIT)
    x = tl.load(x_row + column, inside, other=0).to(ACC)  # (ROWS, COLUMNS)
    y, mean, rstd = normalise(x, column, weight_ptr, bias_ptr, C, EPS, mean_ptr is not None)
    tl.store(packed_rows(y_ptr, first, C, ROWS) + column, y, inside)
    if mean_ptr is not None:
        tl.store(mean_ptr + row, mean, row < rows)
    tl.store(rstd_ptr + row, rstd, row < rows)


@triton.jit(do_not_specialize=["rows", "inner", "dy_outer", "dy_inner", "x_outer", "x_inner"])
def layer_norm_backward_kernel(
    dy_ptr,  # (outer, inner, C)
    x_ptr,  # (outer, inner, C)
    weight_ptr,  # (C,) or None
    mean_ptr,  # (rows,), or None for RMSNorm
    rstd_ptr,  # (rows,)
    dx_ptr,  # (rows, C)
    share_ptr,  # (programs, PARAMETERS, C): shares of dweight and dbias
    rows, inner, dy_outer, dy_inner, x_outer, x_inner,
    C: tl.constexpr,
    PARAMETERS: tl.constexpr,  # 2: weight and bias, 1: weight, 0: neither
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr, STAGES: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)[None, :]
    weight = None
    if weight_ptr is not None:  # broadcast, so that it has the layout of x in registers
        at = tl.broadcast_to(column, (ROWS, COLUMNS))
        weight = tl.load(weight_ptr + at, at < C, other=0).to(ACC)
    dweight = tl.zeros((ROWS, COLUMNS), ACC)  # rows are summed after the loop
    dbias = tl.zeros((ROWS, COLUMNS), ACC)

    # --- every P-th tile of rows ---
    for number in tl.range(program, tl.cdiv(rows, ROWS), programs, num_stages=STAGES):
        first = number * ROWS
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < C)
        x_row = row_pointers(x_ptr, first, inner, x_outer, x_inner, ROWS, UNIT)
        dy_row = row_pointers(dy_ptr, first, inner, dy_outer, dy_inner, ROWS, UNIT)
        x = tl.load(x_row + column, inside, other=0).to(ACC)  # (ROWS, COLUMNS)
        dy = tl.load(dy_row + column, inside, other=0).to(ACC)
        rstd = tl.load(rstd_ptr + row, row < rows, other=0)[:, None]
        if mean_ptr is not None:
            x -= tl.load(mean_ptr + row, row < rows, other=0)[:, None]
        xhat = x * rstd  # not 0 where column >= C, but dy is

        dx = input_gradient(dy, xhat, rstd, weight, C, mean_ptr is not None)
        tl.store(packed_rows(dx_ptr, first, C, ROWS) + column, dx, inside)
        if PARAMETERS > 0:
            dweight += dy * xhat
        if PARAMETERS > 1:
            dbias += dy

    store_share(share_ptr, dweight, dbias, None, C, PARAMETERS, False, COLUMNS)


class LayerNorm(Operation):
    """x (..., C), weight and bias (C,) or None -> y (..., C); RMSNorm unless `centred`."""

    schema = "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, bool centred)"

    @staticmethod
    def empty(x, weight, bias, eps, centred):
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return y, *empty_statistics(x, centred)

    @staticmethod
    def forward(x, weight, bias, eps, centred):
        weight, bias = (p if p is None else p.contiguous() for p in (weight, bias))
        y, mean, rstd = LayerNorm.empty(x, weight, bias, eps, centred)
        C, rows = x.shape[-1], rstd.numel()
        (seen,), addressing, unit = as_rows(x)
        operands = (seen, weight, bias, y, mean, rstd, rows, *addressing)
        constants = {"C": C, "EPS": eps, "UNIT": unit, "ACC": triton_accumulator(x.dtype)}
        constants |= row_tile("layer_norm", C, x.device)
        launch(layer_norm_forward_kernel, (cdiv(rows, constants["ROWS"]),), *operands, **constants)
        return y, mean, rstd

    @staticmethod
    def saved(x, weight, bias, eps, centred, y, mean, rstd):
        return x, weight, bias, mean, rstd

    @staticmethod
    def backward(gradients, saved, needs, eps, centred):
        (dy,), (x, weight, bias, mean, rstd) = gradients, saved
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        shares = empty_shares("layer_norm_backward", x, count_parameters(*needs[1:]))
        (dy, x), addressing, unit = as_rows(dy, x)
        weight = weight if weight is None else weight.contiguous()
        operands = (dy, x, weight, mean, rstd, dx, shares, rstd.numel(), *addressing)
        constants = backward_constants("layer_norm_backward", shares, unit)
        launch(layer_norm_backward_kernel, (len(shares),), *operands, **constants, UNIT=unit)
        return dx, *parameter_gradients(shares, (weight, bias), needs[1:])


class RMSNorm(LayerNorm):
    schema = LayerNorm.schema.replace("layer_norm", "rms_norm")  # the name in graphs and errors


def empty_statistics(x, centred=True):
    """Allocate mean (...), or None unless `centred`, and rstd (...) for the rows of x (..., C)."""
    like = {"dtype": accumulator(x.dtype), "device": x.device}
    return torch.empty(x.shape[:-1], **like) if centred else None, torch.empty(x.shape[:-1], **like)


def backward_constants(kernel, shares, unit, others=0):
    """The constexprs and options of a backward kernel; `unit` is that of `as_rows`.

    `others` is the number of shares besides those of weight and bias.
    """
    C = shares.shape[-1]
    return {
        "C": C,
        "PARAMETERS": shares.shape[1] - others,
        "STAGES": 2 if C <= WIDEST_PREFETCHED and unit > 1 else 1,
        "ACC": triton_accumulator(shares.dtype),
        "maxnreg": residency(kernel, C, shares.device)[1] if unit > 1 else None,
        **row_tile(kernel, C, shares.device),
    }


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> torch.Tensor:
    """LayerNorm over the last dimension (Ba et al. 2016): x (..., C) -> (..., C), dtype of x.

    weight and bias (C,) may be None. Statistics are fp32. Raises ValueError if shapes do not fit, a
    dtype is not floating-point, or C is more than 8,192.
    """
    check_operands("layer_norm", "x (..., C), weight (C,), bias (C,)", x, weight, bias)
    check_width("layer_norm", x)
    return LayerNorm.apply(x, weight, bias, eps, True)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, *, eps: float = 1e-5
) -> torch.Tensor:
    """RMSNorm over the last dimension (Zhang and Sennrich 2019): x (..., C) -> (..., C).

    weight (C,) may be None. Statistics are fp32. Raises ValueError if shapes do not fit, a dtype is
    not floating-point, or C is more than 8,192.
    """
    check_operands("rms_norm", "x (..., C), weight (C,)", x, weight)
    check_width("rms_norm", x)
    return RMSNorm.apply(x, weight, None, eps, False)


def check_width(operation: str, x: torch.Tensor) -> None:
    """Raise ValueError if the rows of x (..., C) are too wide."""
    if x.shape[-1] > WIDEST:
        raise ValueError(
            f"{operation}: the rows of x {tuple(x.shape)} are too wide; give at most {WIDEST:,} "
            "columns"
        )
