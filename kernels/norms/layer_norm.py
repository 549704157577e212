"""LayerNorm and RMSNorm over the last dimension.

Forward, for every row x of width C (Ba et al. 2016); RMSNorm (Zhang and Sennrich 2019) is the same
with mean = 0 and without bias:

    mean = 1/C sum x        rstd = 1 / sqrt(1/C sum (x - mean)^2 + eps)
    xhat = (x - mean) rstd  y = xhat weight + bias

Backward:

    dxhat   = dy weight
    dx      = rstd (dxhat - 1/C sum dxhat - xhat 1/C sum (dxhat xhat))
    dweight = sum over rows of dy xhat
    dbias   = sum over rows of dy

Decisions:
- A program holds whole rows in registers, several when they are short, so x and dy are read once.
- For backward only mean and rstd are kept, in fp32; xhat is computed again from x.
- Backward has a fixed number of programs, which the card holds all at once. Each visits every P-th
  tile of rows, with the next one already on its way, and adds up its share of dweight and dbias in
  registers. `kernels/norms/norm_parameter_gradients.py` adds the P shares, in the same order every time.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from kernels.common.launch import cdiv, launch, opaque
from kernels.common.row_layout import (
    accumulator,
    as_rows,
    packed_rows,
    row_pointers,
    row_tile,
    statistics_dtype,
)
from kernels.norms.norm_parameter_gradients import (
    WIDEST_IN_REGISTERS,
    complete_shares,
    empty_shares,
    parameter_gradients,
    residency,
    store_share,
)

WIDEST = 16_384  # columns: the widest row that one program holds
WIDEST_PREFETCHED = 4_096  # columns: the next tile of rows fits into every card's shared memory


@triton.jit
def normalise(
    x, column, weight_ptr, bias_ptr, C: tl.constexpr, EPS: tl.constexpr, CENTRED: tl.constexpr
):
    """y (ROWS, COLUMNS), mean and rstd (ROWS,) of x, which is 0 where column >= C."""
    mean = tl.sum(x, 1) / C
    if CENTRED:
        x = tl.where(column < C, x - mean[:, None], 0)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / C + EPS)
    y = x * rstd[:, None]
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + column, column < C, other=0).to(y.dtype)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, column < C, other=0).to(y.dtype)
    return y, mean, rstd


@triton.jit
def input_gradient(dy, xhat, rstd, weight, C: tl.constexpr, CENTRED: tl.constexpr):
    """dx (ROWS, COLUMNS), from dy and xhat, rstd (ROWS, 1), and weight or None."""
    dxhat = dy
    if weight is not None:
        dxhat *= weight
    common = xhat * (tl.sum(dxhat * xhat, 1) / C)[:, None]
    if CENTRED:
        common += (tl.sum(dxhat, 1) / C)[:, None]
    return (dxhat - common) * rstd  # of a single column exactly 0


@triton.jit(do_not_specialize=["rows", "inner", "x_outer", "x_inner"])
def layer_norm_forward_kernel(
    x_ptr,  # (outer, inner, C)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    y_ptr,  # (rows, C)
    mean_ptr,  # (rows,); None for RMSNorm
    rstd_ptr,  # (rows,)
    rows,
    inner,
    x_outer,
    x_inner,
    C: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
):
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
    mean_ptr,  # (rows,); None for RMSNorm
    rstd_ptr,  # (rows,)
    dx_ptr,  # (rows, C)
    share_ptr,  # (programs, PARAMETERS, C): of dweight, of dbias
    rows,
    inner,
    dy_outer,
    dy_inner,
    x_outer,
    x_inner,
    C: tl.constexpr,
    PARAMETERS: tl.constexpr,  # 2 with bias, 1 without, 0: leave the sums to others
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)[None, :]
    weight = None
    if weight_ptr is not None:  # for all rows, so that it lies in registers as x does
        at = tl.broadcast_to(column, (ROWS, COLUMNS))
        weight = tl.load(weight_ptr + at, at < C, other=0).to(ACC)
    dweight = tl.zeros((ROWS, COLUMNS), ACC)  # rows are added up after the loop
    dbias = tl.zeros((ROWS, COLUMNS), ACC)

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

    store_share(share_ptr, dweight, dbias, None, 0, C, PARAMETERS, False, COLUMNS)


class LayerNorm(torch.autograd.Function):
    """x (..., C), weight (C,) or None, bias (C,) or None -> (..., C); RMSNorm unless `centred`."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, centred):
        weight, bias = (p if p is None else p.contiguous() for p in (weight, bias))
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        mean, rstd = empty_statistics(x, centred)
        _launch_forward(x, weight, bias, y, mean, rstd, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.parameters = (weight is not None) + (bias is not None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, mean, rstd = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        shares = empty_shares("layer_norm_backward", x, ctx.parameters)
        _launch_backward(dy, x, weight, mean, rstd, dx, shares)
        return dx, *parameter_gradients(shares, weight), None, None


def empty_statistics(x, centred=True):
    """Room for mean (...), or None, and rstd (...) of the rows of x (..., C)."""
    like = {"dtype": statistics_dtype(x), "device": x.device}
    return torch.empty(x.shape[:-1], **like) if centred else None, torch.empty(x.shape[:-1], **like)


def _launch_forward(x, weight, bias, y, mean, rstd, eps):
    C = x.shape[-1]
    (x,), addressing, unit = as_rows(x)
    operands = (x, weight, bias, y, mean, rstd, rstd.numel(), *addressing)
    constants = {"C": C, "EPS": eps, "UNIT": unit, "ACC": accumulator(x)}
    constants |= row_tile("layer_norm", C, x.device)
    launch(
        layer_norm_forward_kernel,
        (cdiv(rstd.numel(), constants["ROWS"]),),
        *operands,
        **constants,
    )


def _launch_backward(dy, x, weight, mean, rstd, dx, shares):
    (dy, x), addressing, unit = as_rows(dy, x)
    operands = (dy, x, weight, mean, rstd, dx, shares, rstd.numel(), *addressing)
    constants = backward_constants("layer_norm_backward", shares, unit)
    launch(layer_norm_backward_kernel, (len(shares),), *operands, **constants, UNIT=unit)
    complete_shares(dy, x, mean, rstd, shares)


def backward_constants(kernel, shares, unit, others=0):
    """What backward is compiled for; `unit` is 1 where rows are read by the element.

    `others` of the shares are not of weight and bias.
    """
    C = shares.shape[-1]
    return {
        "C": C,
        "PARAMETERS": shares.shape[1] - others if C <= WIDEST_IN_REGISTERS else 0,
        "STAGES": 2 if C <= WIDEST_PREFETCHED and unit > 1 else 1,
        "ACC": accumulator(shares),
        "maxnreg": residency(kernel, C, shares.device)[1] if unit > 1 else None,
        **row_tile(kernel, C, shares.device),
    }


@opaque
def layer_norm(x, weight, bias=None, *, eps=1e-5):
    """x (..., C), weight (C,), bias (C,) or None -> (..., C)."""
    check_shapes("layer_norm", x, weight=weight, bias=bias)
    return LayerNorm.apply(x, weight, bias, eps, True)


@opaque
def rms_norm(x, weight=None, *, eps=1e-5):
    """x (..., C), weight (C,) or None -> (..., C)."""
    check_shapes("rms_norm", x, weight=weight)
    return LayerNorm.apply(x, weight, None, eps, False)


def check_shapes(operation, x, **parameters):
    """Raise ValueError unless x is (..., C) with a C that fits and every parameter is (C,)."""
    if x.ndim == 0 or not 1 <= x.shape[-1] <= WIDEST:
        raise ValueError(
            f"{operation}: x has shape {tuple(x.shape)}; its last dimension, the width of a row, "
            f"must be from 1 to {WIDEST:,}"
        )
    for name, parameter in parameters.items():
        if parameter is not None and parameter.shape != x.shape[-1:]:
            raise ValueError(
                f"{operation}: {name} has shape {tuple(parameter.shape)} and x {tuple(x.shape)}; "
                f"{name} must have shape {tuple(x.shape[-1:])}"
            )
