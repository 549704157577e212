"""A linear layer for one token of each row, with all that stands around it in one launch.

For every row x of width K, with a weight in floating point (scale = 1) or in int8:

    y = residual + f(scale * (W norm(x)) + bias)

There is no backward: text is generated without gradients.

Decisions:
- A token reads every weight once and does two operations with it, so only the bytes count. A
  program has whole rows of W in registers, all loaded at once. The norm is computed again by each
  program, from a row x that the L2 holds, and so costs no launch and no pass over memory.
- int8 weights stay bytes until they are in registers; their scale goes to the sum, not to them.
- Programs are as many as keep the memory busy, with whole rows each: no sum is ever divided, so
  its order depends on the shapes and the architecture alone.
- For more than `MOST_ROWS` rows a matrix product in tensor cores is the better way, and PyTorch's
  is taken; but not for int8, which it would first have to write out in 16 bits.
"""

import torch
import triton
import triton.language as tl

from kernels import torch_ops
from kernels.common.launch import cdiv, launch, next_power_of_2, tile
from kernels.matmul.activation import activate

MOST_ROWS = 8  # their products take the CUDA cores no longer than the memory takes for the weight
WIDEST = 16_384  # one row of the weight in the registers of one program
WARP = 1_024  # elements of the weight in a warp, 32 in each thread


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
    B,
    N,
    K: tl.constexpr,
    EPS: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    column = tl.arange(0, COLUMNS)
    at = feature.to(tl.int64)[:, None] * K + column[None, :]
    inside = (feature < N)[:, None] & (column < K)[None, :]
    w = tl.load(weight_ptr + at, inside, other=0).to(ACC)  # (FEATURES, COLUMNS)

    for r in tl.static_range(ROWS):
        row = tl.minimum(tl.program_id(1) * ROWS + r, B - 1)  # the last one again and again
        x = tl.load(x_ptr + row * K + column, column < K, other=0).to(ACC)
        if NORM is not None:
            if NORM == "layer_norm":
                x = tl.where(column < K, x - tl.sum(x, 0) / K, 0)
            x *= tl.rsqrt(tl.sum(x * x, 0) / K + EPS)
            x *= tl.load(norm_weight_ptr + column, column < K, other=0).to(ACC)
            if norm_bias_ptr is not None:
                x += tl.load(norm_bias_ptr + column, column < K, other=0).to(ACC)
        y = tl.sum(w * x[None, :], 1)  # (FEATURES,)
        if scale_ptr is not None:
            y *= tl.load(scale_ptr + feature, feature < N, other=0).to(ACC)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + feature, feature < N, other=0).to(ACC)
        if ACTIVATION is not None:
            y = activate(y, ACTIVATION)
        at = row.to(tl.int64) * N + feature
        if residual_ptr is not None:
            y += tl.load(residual_ptr + at, feature < N, other=0).to(ACC)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), feature < N)


def _launch(y, x, weight, scale, bias, norm_weight, norm_bias, residual, **constants):
    (B, K), N = x.shape, len(weight)
    elements, programs, registers = tile("decode_linear", x.device)
    COLUMNS = next_power_of_2(K)
    features, least = max(elements // COLUMNS, 1), max(WARP // COLUMNS, 1)
    while features > least and cdiv(N, features) < programs:
        features //= 2
    ROWS = min(next_power_of_2(max(B, 1)), MOST_ROWS)
    operands = (x, weight, y, scale, bias, norm_weight, norm_bias, residual)
    launch(
        decode_linear_kernel,
        (cdiv(N, features), cdiv(B, ROWS)),
        *operands,
        B,
        N,
        K=K,
        FEATURES=features,
        COLUMNS=COLUMNS,
        ROWS=ROWS,
        ACC=tl.float64 if x.dtype == torch.float64 else tl.float32,
        num_warps=min(max(features * COLUMNS // WARP, 1), 8),
        maxnreg=registers,
        **constants,
    )


def decode_linear(
    x,  # (B, K)
    weight,  # (N, K)
    bias=None,  # (N,)
    *,
    scale=None,  # (N,)
    norm=None,
    norm_weight=None,  # (K,)
    norm_bias=None,  # (K,)
    eps=1e-5,
    activation=None,
    residual=None,  # (B, N)
):
    """residual + f(scale * (weight norm(x)) + bias), (B, N); options as in `kernels.Ops`."""
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"decode_linear takes x (B, K) and weight (N, K), not {_shapes(x=x, weight=weight)}"
        )
    (B, K), N = x.shape, len(weight)
    of_features = {"bias": bias, "scale": scale}
    of_columns = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    vectors = of_features | of_columns | {"residual": residual}
    expected = dict.fromkeys(of_features, (N,)) | dict.fromkeys(of_columns, (K,))
    expected["residual"] = (B, N)
    for name, vector in vectors.items():
        if vector is not None and vector.shape != expected[name]:
            raise ValueError(
                f"decode_linear takes {name} {expected[name]} with "
                f"{_shapes(x=x, weight=weight)}, not {tuple(vector.shape)}"
            )
    if (norm is None) != (norm_weight is None) or norm not in (None, "layer_norm", "rms_norm"):
        raise ValueError(f"decode_linear takes layer_norm or rms_norm and a weight, not {norm!r}")
    if activation is not None and activation not in torch_ops.ACTIVATIONS:
        raise ValueError(
            f"decode_linear knows no {activation!r}; {', '.join(torch_ops.ACTIVATIONS)}"
        )
    if (scale is None) == (weight.dtype == torch.int8):
        raise ValueError("decode_linear takes a scale with an int8 weight, and with no other")
    options = {"norm": norm, "norm_weight": norm_weight, "norm_bias": norm_bias, "eps": eps}
    if K > WIDEST or (B > MOST_ROWS and weight.dtype != torch.int8):
        options |= {"scale": scale, "activation": activation, "residual": residual}
        return torch_ops.decode_linear(x, weight, bias, **options)
    y = torch.empty((B, N), dtype=x.dtype, device=x.device)
    x, weight, *vectors = (
        tensor if tensor is None else tensor.contiguous()
        for tensor in (x, weight, scale, bias, norm_weight, norm_bias, residual)
    )
    constants = {"EPS": eps, "NORM": norm, "ACTIVATION": activation}
    _launch(y, x, weight, *vectors, **constants)
    return y


def _shapes(**tensors) -> str:
    return ", ".join(
        f"{name} {None if tensor is None else tuple(tensor.shape)}"
        for name, tensor in tensors.items()
    )
