"""The residual sum with dropout and its LayerNorm, in one pass.

Forward, with the mask of `kernels/common/philox.py` and dropout probability p:

    total = residual + (x + x_bias) mask / (1 - p)        y = layer_norm(total)

Backward, where dtotal' is the gradient that arrives at total itself and dy the one that arrives at
y:

    dtotal = dtotal' + layer_norm_backward(dy)    dresidual = dtotal    dx = dtotal mask / (1 - p)
    dx_bias = sum over rows of dx

Decisions:
- y is the norm of total as it is returned, rounded to its dtype. Backward starts from that tensor,
  and the residual stream holds the same numbers.
- x_bias is the bias of the linear layer that made x. Its gradient is a sum of values that are in
  registers here, where PyTorch needs another pass over dx.
- Without dropout dx is dresidual, one tensor, unless the dtypes differ (autocast: fp32 residual,
  bf16 branch).
- Without a residual the total is dropout(x + x_bias): the embedding and the first norm of a model.
- The mask is recomputed, and programs, tiles and sums are those of `kernels/norms/layer_norm.py`.
"""

import torch
import triton
import triton.language as tl

from ..common.dtypes import triton_accumulator
from ..common.launch import cdiv, launch
from ..common.operands import check_operands
from ..common.operator import Operation
from ..common.philox import keep_in_rows, seed_of_call, threshold_and_scale
from ..common.row_layout import as_rows, packed_rows, row_tile
from .layer_norm import backward_constants, check_width, empty_statistics, input_gradient, normalise
from .norm_parameter_gradients import (
    count_parameters,
    empty_shares,
    parameter_gradients,
    store_share,
)

STREAM = tl.constexpr(0)  # of the mask; a seed is used for one call


@triton.jit(do_not_specialize=["rows", "threshold", "scale"])
def add_layer_norm_forward_kernel(
    x_ptr,  # (rows, C)
    residual_ptr,  # (rows, C) or None
    x_bias_ptr,  # (C,) or None
    weight_ptr,  # (C,)
    bias_ptr,  # (C,) or None
    seed_ptr,  # () or None
    total_ptr,  # (rows, C)
    y_ptr,  # (rows, C)
    mean_ptr,  # (rows,)
    rstd_ptr,  # (rows,)
    rows, threshold, scale,
    C: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows)[:, None] & (column < C)

    # --- total ---
    x = tl.load(packed_rows(x_ptr, first, C, ROWS) + column, inside, other=0)
    residual = 0.0
    if residual_ptr is not None:
        residual = tl.load(packed_rows(residual_ptr, first, C, ROWS) + column, inside, other=0)
        residual = residual.to(ACC)
    x = x.to(ACC)
    if x_bias_ptr is not None:
        at = tl.broadcast_to(column, (ROWS, COLUMNS))  # the layout of x in registers
        x += tl.load(x_bias_ptr + at, at < C, other=0).to(ACC)
    if seed_ptr is not None:
        keep = keep_in_rows(tl.load(seed_ptr), STREAM, row, threshold, COLUMNS)
        x = tl.where(keep, x * scale, 0)
    total = (residual + x).to(total_ptr.dtype.element_ty)
    tl.store(packed_rows(total_ptr, first, C, ROWS) + column, total, inside)

    # --- norm ---
    y, mean, rstd = normalise(total.to(ACC), column, weight_ptr, bias_ptr, C, EPS, True)
    tl.store(packed_rows(y_ptr, first, C, ROWS) + column, y, inside)
    tl.store(mean_ptr + row, mean, row < rows)
    tl.store(rstd_ptr + row, rstd, row < rows)


@triton.jit(do_not_specialize=["rows", "threshold", "scale"])
def add_layer_norm_backward_kernel(
    dy_ptr,  # (rows, C)
    dtotal_ptr,  # (rows, C) or None
    total_ptr,  # (rows, C)
    weight_ptr,  # (C,)
    mean_ptr,  # (rows,)
    rstd_ptr,  # (rows,)
    seed_ptr,  # () or None
    dresidual_ptr,  # (rows, C), or None without a residual
    dx_ptr,  # (rows, C), or None if it is dresidual
    share_ptr,  # (programs, PARAMETERS + X_BIAS, C): shares of dweight, dbias and dx_bias
    rows, threshold, scale,
    C: tl.constexpr,
    PARAMETERS: tl.constexpr,  # 2: weight and bias, 1: weight, 0: neither
    X_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)[None, :]
    at = tl.broadcast_to(column, (ROWS, COLUMNS))
    weight = tl.load(weight_ptr + at, at < C, other=0).to(ACC)
    dweight = tl.zeros((ROWS, COLUMNS), ACC)
    dbias = tl.zeros((ROWS, COLUMNS), ACC)
    dx = tl.zeros((ROWS, COLUMNS), ACC)

    # --- every P-th tile of rows ---
    for number in tl.range(program, tl.cdiv(rows, ROWS), programs, num_stages=STAGES):
        first = number * ROWS
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < C)
        dy = tl.load(packed_rows(dy_ptr, first, C, ROWS) + column, inside, other=0).to(ACC)
        total = tl.load(packed_rows(total_ptr, first, C, ROWS) + column, inside, other=0).to(ACC)
        mean = tl.load(mean_ptr + row, row < rows, other=0)[:, None]
        rstd = tl.load(rstd_ptr + row, row < rows, other=0)[:, None]
        xhat = (total - mean) * rstd

        dtotal = input_gradient(dy, xhat, rstd, weight, C, True)
        if dtotal_ptr is not None:
            arrived = packed_rows(dtotal_ptr, first, C, ROWS) + column
            dtotal += tl.load(arrived, inside, other=0).to(ACC)
        if dresidual_ptr is not None:
            tl.store(packed_rows(dresidual_ptr, first, C, ROWS) + column, dtotal, inside)
        if seed_ptr is not None:
            keep = keep_in_rows(tl.load(seed_ptr), STREAM, row, threshold, COLUMNS)
            dtotal = tl.where(keep, dtotal * scale, 0)
        if dx_ptr is not None:
            tl.store(packed_rows(dx_ptr, first, C, ROWS) + column, dtotal, inside)
        if X_BIAS:
            dx += dtotal  # 0 in rows past the last one, because their rstd is 0
        dweight += dy * xhat
        if PARAMETERS > 1:
            dbias += dy

    store_share(share_ptr, dweight, dbias, dx, C, PARAMETERS, X_BIAS, COLUMNS)


class AddLayerNorm(Operation):
    """residual (..., C) or None, x (..., C), x_bias (C,) or None, weight (C,), bias (C,) or None
    -> total, y (..., C).
    """

    schema = (
        "add_layer_norm(Tensor? residual, Tensor x, Tensor? x_bias, Tensor weight, Tensor? bias, "
        "Tensor? seed, float dropout_p, float eps, ScalarType residual_dtype, ScalarType x_dtype)"
    )
    results = 2

    @staticmethod
    def empty(residual, x, *others):
        dtype = torch.promote_types(*others[-2:])
        total = torch.empty(x.shape, dtype=dtype, device=x.device)
        return total, torch.empty_like(total), *empty_statistics(total)

    @staticmethod
    def forward(residual, x, x_bias, weight, bias, seed, dropout_p, eps, *dtypes):
        operands = [p if p is None else p.contiguous() for p in (x, residual, x_bias, weight, bias)]
        outputs = total, _, _, rstd = AddLayerNorm.empty(residual, x, *dtypes)
        C, rows = x.shape[-1], rstd.numel()
        constants = {"C": C, "EPS": eps, "ACC": triton_accumulator(total.dtype)}
        constants |= row_tile("add_layer_norm", C, x.device)
        operands += [seed, *outputs, rows, *threshold_and_scale(dropout_p)]
        grid = (cdiv(rows, constants["ROWS"]),)
        launch(add_layer_norm_forward_kernel, grid, *operands, **constants)
        return outputs

    @staticmethod
    def saved(residual, x, x_bias, weight, bias, seed, *others):
        *_, total, _, mean, rstd = others
        return total, x_bias, weight, bias, seed, mean, rstd

    @staticmethod
    def empty_gradients(gradients, saved, needs, dropout_p, eps, residual_dtype, x_dtype):
        total, *parameters = saved[:5]
        inputs = (torch.empty_like(total, dtype=dtype) for dtype in (residual_dtype, x_dtype))
        return *inputs, *(p if p is None else torch.empty_like(p) for p in parameters)

    @staticmethod
    def backward(gradients, saved, needs, dropout_p, eps, residual_dtype, x_dtype):
        (dtotal, dy), (total, x_bias, weight, bias, seed, mean, rstd) = gradients, saved
        dy = torch.zeros_like(total) if dy is None else dy.contiguous()
        dtotal = dtotal if dtotal is None else dtotal.contiguous()
        dresidual = torch.empty_like(total, dtype=residual_dtype) if needs[0] else None
        one_tensor = seed is None and residual_dtype == x_dtype and needs[0]
        dx = None if one_tensor else torch.empty_like(total, dtype=x_dtype)
        X_BIAS, *needs_parameters = needs[2:5]
        tile = "add_layer_norm_backward_x_bias" if X_BIAS else "add_layer_norm_backward"
        shares = empty_shares(tile, total, count_parameters(*needs_parameters) + X_BIAS)
        *_, unit = as_rows(dy, total)
        constants = backward_constants(tile, shares, unit, X_BIAS)
        operands = dy, dtotal, total, weight.contiguous(), mean, rstd, seed, dresidual, dx, shares
        operands += (rstd.numel(), *threshold_and_scale(dropout_p))
        grid = (len(shares),)
        launch(add_layer_norm_backward_kernel, grid, *operands, X_BIAS=int(X_BIAS), **constants)
        dweight, dbias, dx_bias = parameter_gradients(
            shares, (weight, bias, x_bias), (*needs_parameters, X_BIAS)
        )
        return dresidual, dresidual if one_tensor else dx, dx_bias, dweight, dbias, None


def add_layer_norm(
    residual: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    seed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual sum and its LayerNorm, (total, y): both (..., C) in the wider of the dtypes.

    total = residual + dropout(x + x_bias), y = layer_norm(total). residual (..., C), or None for 0;
    x (..., C); weight, bias and x_bias (C,). Elements that are kept are scaled by 1 / (1 -
    dropout_p); seed is an int64 tensor () on the device, drawn from the device's generator if it is
    None. Raises ValueError if shapes do not fit, a dtype is not floating-point, or C is more than
    8,192.
    """
    form = "residual (..., C), x (..., C), weight (C,), bias (C,), x_bias (C,)"
    check_operands("add_layer_norm", form, residual, x, weight, bias, x_bias)
    check_width("add_layer_norm", x)
    seed = seed_of_call(seed, dropout_p, x.device)
    residual_dtype = x.dtype if residual is None else residual.dtype
    options = dropout_p, eps, residual_dtype, x.dtype
    return AddLayerNorm.apply(residual, x, x_bias, weight, bias, seed, *options)
