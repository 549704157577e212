"""A linear layer for one token of each row, with its norm, activation and residual in one launch.

For every row x of width K, with a weight W in floating point (scale = 1) or int8:

    y = residual + f(scale * (W norm(x)) + bias)

There is no backward, because text is generated without gradients.

Decisions:
- A token reads every weight once and uses it for two operations, so only the bytes matter. A
  program holds whole rows of W in registers, all loaded at once. Each program recomputes the norm
  from a row x that L2 holds, which costs no launch and no pass over memory.
- int8 weights stay bytes until they are in registers; the scale multiplies the sum, not the
  weights.
- There are as many programs as saturate the memory, and each has whole rows: no sum is divided, so
  its order depends only on the shapes and the architecture.
- A kernel of a decode step takes little longer than its launch. From sm_90 on, the programs of the
  next kernel are therefore launched as soon as all of this one are resident
  (`gdc_launch_dependents`), load their weights, and only then wait for the end of the previous
  kernel (`gdc_wait`). The caller promises by `constant_weights` that it does not write them.
- For more than `MOST_ROWS` rows a product on tensor cores is faster, so PyTorch's is used; but not
  for int8, which PyTorch would first convert to 16 bits in memory.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .. import torch_ops
from ..common.dtypes import triton_accumulator
from ..common.launch import cdiv, launch, next_power_of_2, overlapped, tile
from ..common.operands import check_operands
from ..common.operator import is_traced, register
from ..common.sums import sum_of_products
from ..matmul.activation import activate

MOST_ROWS = 4  # one after the other; with 8, GPT-2 was slower than by PyTorch on an H200
WIDEST = 16_384  # columns: one row of the weight in the registers of one program
FORM = (
    "x (B, K), weight (N, K) or int8, scale (N,), bias (N,), norm_weight (K,), norm_bias (K,), "
    "residual (B, N)"
)
WARP = 1_024  # elements of the weight per warp, 32 per thread


@triton.jit
def decode_linear_kernel(
    x_ptr,  # (B, K)
    weight_ptr,  # (N, K)
    y_ptr,  # (B, N)
    scale_ptr,  # (N,) or None
    bias_ptr,  # (N,) or None
    norm_weight_ptr,  # (K,) or None
    norm_bias_ptr,  # (K,) or None
    residual_ptr,  # (B, N) or None
    B, N,
    K: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    FEATURES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    if OVERLAPPED:
        gdc_launch_dependents()
    # --- what no kernel of a decode step writes ---
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    column = tl.arange(0, COLUMNS)
    at = feature.to(tl.int64)[:, None] * K + column[None, :]
    inside = (feature < N)[:, None] & (column < K)[None, :]
    w = tl.load(weight_ptr + at, inside, other=0).to(ACC)  # (FEATURES, COLUMNS)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + feature, feature < N, other=0).to(ACC)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + feature, feature < N, other=0).to(ACC)
    if NORM is not None:
        gain = tl.load(norm_weight_ptr + column, column < K, other=0).to(ACC)
        if norm_bias_ptr is not None:
            shift = tl.load(norm_bias_ptr + column, column < K, other=0).to(ACC)
    if OVERLAPPED:
        gdc_wait()

    # --- each row ---
    for r in tl.static_range(ROWS):
        row = tl.minimum(tl.program_id(1) * ROWS + r, B - 1)  # repeats the last row
        x = tl.load(x_ptr + row * K + column, column < K, other=0).to(ACC)
        at = row.to(tl.int64) * N + feature
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + at, feature < N, other=0).to(ACC)
        if NORM is not None:
            if NORM == "layer_norm":
                x = tl.where(column < K, x - tl.sum(x, 0) / K, 0)
                x = tl.where(column < K, x - tl.sum(x, 0) / K, 0)  # the rounding error of the mean
            x *= tl.rsqrt(sum_of_products(x, x, 0) / K + EPS)
            x *= gain
            if norm_bias_ptr is not None:
                x += shift
        y = sum_of_products(w, x[None, :], 1, SINGLE=COLUMNS < 64)  # (FEATURES,)
        if scale_ptr is not None:
            y *= scale
        if bias_ptr is not None:
            y += bias
        if ACTIVATION is not None:
            y = activate(y, ACTIVATION)
        if residual_ptr is not None:
            y += residual
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), feature < N)


def _decode_linear(
    x, weight, bias, scale, norm, norm_weight, norm_bias, eps, activation, residual,
    constant_weights,
):  # fmt: skip
    (B, K), N = x.shape, len(weight)
    y = torch.empty((B, N), dtype=x.dtype, device=x.device)
    kernel = "decode_linear_one_row" if B == 1 else "decode_linear"
    elements, programs, registers = tile(kernel, x.device)
    COLUMNS = next_power_of_2(K)
    features, least = max(elements // COLUMNS, 1), max(WARP // COLUMNS, 1)
    while features > least and cdiv(N, features) < programs:
        features //= 2
    ROWS = min(next_power_of_2(max(B, 1)), MOST_ROWS)
    constants = {"EPS": eps, "NORM": norm, "ACTIVATION": activation, "K": K}
    constants |= {"FEATURES": features, "COLUMNS": COLUMNS, "ROWS": ROWS}
    warps = min(max(features * COLUMNS // WARP, 1), 8)
    constants |= {"ACC": triton_accumulator(x.dtype), "num_warps": warps, "maxnreg": registers}
    constants |= overlapped(x.device, constant_weights)
    operands = x, weight, y, scale, bias, norm_weight, norm_bias, residual
    dense = (operand if operand is None else operand.contiguous() for operand in operands)
    grid = cdiv(N, features), cdiv(B, ROWS)
    launch(decode_linear_kernel, grid, *dense, B, N, **constants)
    return y


_operator = register(
    "decode_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, str? norm, "
    "Tensor? norm_weight, Tensor? norm_bias, float eps, str? activation, Tensor? residual, "
    "bool constant_weights) -> Tensor",
    _decode_linear,
    lambda x, weight, *_: x.new_empty((x.shape[0], weight.shape[0])),
)


def decode_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    norm: str | None = None,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    constant_weights: bool = False,
) -> torch.Tensor:
    """residual + f(scale * (weight norm(x)) + bias) for one token of each row, without gradients.

    x (B, K), weight (N, K), bias and scale (N,), norm_weight and norm_bias (K,), residual (B, N)
    -> (B, N). `norm` is "layer_norm", "rms_norm" or None, and `activation`, which is f, one of
    `feed_forward` or None. An int8 weight has a scale, other weights have none. `constant_weights`
    promises that the kernel launched before this one does not write weight, scale, bias or norm:
    they may then be read before it has ended. Raises ValueError if shapes, dtypes or options do not
    fit.
    """
    operands = x, weight, scale, bias, norm_weight, norm_bias, residual
    check_operands("decode_linear", FORM, *operands)
    if (norm is None) != (norm_weight is None) or norm not in (None, "layer_norm", "rms_norm"):
        raise ValueError(
            f"decode_linear: norm is {norm!r}; give layer_norm or rms_norm with a norm_weight, or "
            "None without one"
        )
    if activation is not None and activation not in torch_ops.ACTIVATIONS:
        raise ValueError(
            f"decode_linear: activation {activation!r} is not supported; choose one of "
            f"{', '.join(torch_ops.ACTIVATIONS)}"
        )
    if (scale is None) == (weight.dtype == torch.int8):
        raise ValueError(
            f"decode_linear: weight is {weight.dtype}, {'without' if scale is None else 'with'} a "
            "scale; give a scale with an int8 weight and with no other"
        )
    B, K = x.shape
    if K > WIDEST or (B > MOST_ROWS and weight.dtype != torch.int8):
        options: dict[str, Any] = {"scale": scale, "activation": activation, "residual": residual}
        options |= {"norm": norm, "norm_weight": norm_weight, "norm_bias": norm_bias, "eps": eps}
        return torch_ops.decode_linear(x, weight, bias, **options)
    function = _operator if is_traced() else _decode_linear
    arguments = x, weight, bias, scale, norm, norm_weight, norm_bias, eps, activation, residual
    return function(*arguments, constant_weights)
