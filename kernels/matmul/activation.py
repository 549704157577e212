"""The activations of the feed-forward, their derivatives, and kernels that only apply them.

    hidden = f(x)            relu  max(x, 0)        relu_squared  max(x, 0)^2
    dx = dhidden * f'(x)     gelu  x Phi(x)         gelu_tanh     x s(2u)

with Phi the normal distribution, s(v) = 1 / (1 + e^-v) and u = sqrt(2/pi) (x + 0.044715 x^3), since
(1 + tanh u) / 2 = s(2u). Both GELUs are x times a symmetric distribution function, so both follow
from its tail q(z), z = |x|, and its density p = -q':

    f(x) = max(x, 0) - z q(z)        f'(x) = r if x < 0, else 1 - r,  r = q(z) - z p(z)

    gelu        q = Phi(-z)          p = e^(-z^2/2) / sqrt(2 pi)
    gelu_tanh   q = s(-2u(z))        p = q (1 - q) 2u'(z)

Decisions:
- 1 + erf(x) would cancel for x < 0 and take 36 instructions per element (bf16, forward, compiled
  for sm_90), while the copy rate of an H200 leaves time for about 30. log2(2 Phi(-z)) / z is so
  smooth that a polynomial of degree 7 and one exp2 give Phi(-z) to 2^-24 in 17 instructions.
- f' of the two ReLUs follows from hidden (`FROM_HIDDEN`), which is saved anyway for the gradient of
  the next product, as 1 if hidden > 0, or 2 sqrt(hidden): they save half as much memory as the
  GELUs need. The square root halves the relative error of hidden. Only in fp16 does an x below 2e-4
  lose its slope, of at most 5e-4, because its hidden underflows.
- A program of the backward visits ROWS rows of a strip of columns and sums dx along the way: the
  bias gradient needs no second pass, and the number of partial sums depends only on the shape.
"""

import math

import torch
import triton
import triton.language as tl

from ..common.dtypes import accumulator, triton_accumulator
from ..common.launch import cdiv, launch, tile

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "relu_squared")
FROM_HIDDEN = ("relu", "relu_squared")  # their derivative is a function of hidden, others' of x
ROWS = 128  # rows per partial sum, which adds 1/192 (bf16) to the bytes of the backward

# log2(2 Phi(-z)) / z on [0, 7], minimax for the error of max(z, 1) Phi(-z): below 1.6e-8. Beyond 7
# the polynomial, and with it the tail, keeps falling.
_P0 = tl.constexpr(-1.1511060419141768)
_P1 = tl.constexpr(-0.4591982815477737)
_P2 = tl.constexpr(-0.05253361315280231)
_P3 = tl.constexpr(0.00712686517446245)
_P4 = tl.constexpr(-0.00019170356715921143)
_P5 = tl.constexpr(-0.00016129382337488486)
_P6 = tl.constexpr(3.373781330636669e-05)
_P7 = tl.constexpr(-2.3349487002920357e-06)
_SQRT_HALF = tl.constexpr(math.sqrt(1 / 2))
_LOG2_PHI0 = tl.constexpr(math.log2(1 / math.sqrt(2 * math.pi)))
_LOG2E = tl.constexpr(math.log2(math.e))
_LINEAR = tl.constexpr(2 * math.sqrt(2 / math.pi))  # 2u = _LINEAR z + _CUBIC z^3
_CUBIC = tl.constexpr(2 * math.sqrt(2 / math.pi) * 0.044715)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """hidden = f(x)."""
    relu = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)  # NaN reaches the loss
    if ACTIVATION == "relu":
        hidden = relu
    elif ACTIVATION == "relu_squared":
        hidden = relu * relu
    else:
        z = tl.abs(x)
        hidden = relu - z * _tail(z, ACTIVATION)[0]
    return hidden


@triton.jit
def derivative(kept, ACTIVATION: tl.constexpr):
    """f'(x), computed from hidden for the activations of `FROM_HIDDEN`, else from x."""
    if ACTIVATION == "relu":
        slope = tl.where(kept > 0, 1.0, 0.0)
    elif ACTIVATION == "relu_squared":
        slope = 2 * tl.sqrt(kept)
    else:
        z = tl.abs(kept)
        q, p = _tail(z, ACTIVATION)
        r = q - z * p
        slope = tl.where(kept < 0, r, 1 - r)
    return slope


@triton.jit
def _tail(z, ACTIVATION: tl.constexpr):
    """q(z) and p(z) = -q'(z) of a GELU, for z >= 0."""
    square = z * z
    if ACTIVATION == "gelu_tanh":
        e = tl.exp2(z * (square * (-_LOG2E * _CUBIC) - _LOG2E * _LINEAR))  # e^-2u
        rest = 1 / (1 + e)  # 1 - q
        q = e * rest
        p = q * rest * (square * (3 * _CUBIC) + _LINEAR)
    else:
        if z.dtype == tl.float64:
            q = 0.5 - 0.5 * tl.erf(z * _SQRT_HALF)
        else:
            high = (((z * _P7 + _P6) * z + _P5) * z + _P4) * z + _P3
            q = tl.exp2((((high * z + _P2) * z + _P1) * z + _P0) * z - 1)
        p = tl.exp2(square * (-0.5 * _LOG2E) + _LOG2_PHI0)
    return q, p


@triton.jit
def activation_forward_kernel(
    x_ptr,  # (size,)
    hidden_ptr,  # (size,), may be x
    size,
    ACTIVATION: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + element, element < size).to(ACC)
    tl.store(hidden_ptr + element, activate(x, ACTIVATION), element < size)


@triton.jit
def activation_backward_kernel(
    dhidden_ptr,  # (M, N)
    kept_ptr,  # (M, N)
    dx_ptr,  # (M, N), may be dhidden
    partial_ptr,  # (cdiv(M, ROWS), N)
    M, N,
    ACTIVATION: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    block, strip = tl.program_id(0), tl.program_id(1)
    column = strip * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(0, ROWS, BLOCK_M):
        row = block * ROWS + start + tl.arange(0, BLOCK_M)
        element = row.to(tl.int64)[:, None] * N + column[None, :]
        inside = (row < M)[:, None] & (column < N)[None, :]
        dhidden = tl.load(dhidden_ptr + element, inside, other=0.0).to(ACC)
        kept = tl.load(kept_ptr + element, inside, other=0.0).to(ACC)
        dx = dhidden * derivative(kept, ACTIVATION)
        tl.store(dx_ptr + element, dx, inside)
        total += dx
    tl.store(partial_ptr + block.to(tl.int64) * N + column, tl.sum(total, 0), column < N)


def activation_forward(
    x: torch.Tensor, activation: str, out: torch.Tensor | None = None
) -> torch.Tensor:
    """hidden = f(x) for a contiguous x of any shape; `out` may be x itself."""
    hidden = torch.empty_like(x) if out is None else out
    BLOCK, num_warps = tile("activation", x.device)
    constants = {"ACTIVATION": activation, "ACC": triton_accumulator(x.dtype)}
    constants |= {"BLOCK": BLOCK, "num_warps": num_warps}
    grid = (cdiv(x.numel(), BLOCK),)
    launch(activation_forward_kernel, grid, x, hidden, x.numel(), **constants)
    return hidden


def activation_backward(
    dhidden: torch.Tensor, kept: torch.Tensor, activation: str, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx (M, N) of contiguous dhidden and kept (M, N), and sums of its columns over blocks of rows
    (blocks, N); `out` may be dhidden."""
    M, N = dhidden.shape
    dx = torch.empty_like(dhidden) if out is None else out
    blocks = cdiv(M, ROWS)
    partial = empty_partial(blocks, dhidden)
    BLOCK_M, BLOCK_N, num_warps = tile("activation_backward", dhidden.device)
    constants = {"ACTIVATION": activation, "ACC": triton_accumulator(dhidden.dtype), "ROWS": ROWS}
    constants |= {"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "num_warps": num_warps}
    operands = dhidden, kept, dx, partial, M, N
    launch(activation_backward_kernel, (blocks, cdiv(N, BLOCK_N)), *operands, **constants)
    return dx, partial


def empty_partial(blocks: int, x: torch.Tensor) -> torch.Tensor:
    """Allocate `blocks` sums of every column of x (M, N): (blocks, N)."""
    return torch.empty((blocks, x.shape[1]), dtype=accumulator(x.dtype), device=x.device)
