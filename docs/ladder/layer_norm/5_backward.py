"""LayerNorm, rung 5: the gradient.

    dxhat = dy weight     dx = rstd (dxhat - 1/C sum dxhat - xhat 1/C sum (dxhat xhat))
    dweight = sum over rows of dy xhat         dbias = sum over rows of dy

(See docs/maths.md.) dx needs only its row and the saved mean and rstd. dweight and dbias are sums
over rows, which belong to different programs. Atomic additions happen in a different order each run
and give different bits. Instead, P programs each visit every P-th row, accumulate a partial sum in
registers, and store it once. The P partial sums are then added in a fixed order.

Limitation: P must suit the GPU: enough programs to fill it, few enough partial sums to add. A
program waits for a row before it loads the next one. Rows must be contiguous.
Next: the shipped kernel.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch

PROGRAMS = 528  # 4 for each of 132 SMs; fixed, so that every GPU gives the same bits


@triton.jit
def _forward(x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr,
             C: tl.constexpr, EPS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < C
    x = tl.load(x_ptr + row * C + column, inside, other=0).to(tl.float32)
    mean = tl.sum(x) / C
    x = tl.where(inside, x - mean, 0)
    rstd = tl.rsqrt(tl.sum(x * x) / C + EPS)
    weight = tl.load(weight_ptr + column, inside, other=0).to(tl.float32)
    bias = tl.load(bias_ptr + column, inside, other=0).to(tl.float32)
    tl.store(y_ptr + row * C + column, x * rstd * weight + bias, inside)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)


@triton.jit
def _backward(dy_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, share_ptr, rows,
              C: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    column = tl.arange(0, COLUMNS)
    inside = column < C
    weight = tl.load(weight_ptr + column, inside, other=0).to(tl.float32)
    dweight = tl.zeros((COLUMNS,), tl.float32)
    dbias = tl.zeros((COLUMNS,), tl.float32)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * C + column
        dy = tl.load(dy_ptr + at, inside, other=0).to(tl.float32)
        x = tl.load(x_ptr + at, inside, other=0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        xhat = (x - tl.load(mean_ptr + row)) * rstd
        dxhat = dy * weight
        dx = rstd * (dxhat - tl.sum(dxhat) / C - xhat * (tl.sum(dxhat * xhat) / C))
        tl.store(dx_ptr + at, dx, inside)
        dweight += dy * xhat
        dbias += dy
    share_ptr += tl.program_id(0) * 2 * C + column  # (programs, 2, C)
    tl.store(share_ptr, dweight, inside)
    tl.store(share_ptr + C, dbias, inside)


class LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):  # (rows, C), (C,), (C,)
        rows, C = x.shape
        y = torch.empty_like(x)
        mean, rstd = torch.empty(2, rows, dtype=torch.float32, device=x.device)
        constants = {"C": C, "EPS": eps, "COLUMNS": triton.next_power_of_2(C)}
        launch(_forward, (rows,), x, weight, bias, y, mean, rstd, **constants, num_warps=4)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, rstd = ctx.saved_tensors
        rows, C = x.shape
        dx = torch.empty_like(x)
        shares = torch.empty(min(rows, PROGRAMS), 2, C, dtype=torch.float32, device=x.device)
        operands = (dy.contiguous(), x, weight, mean, rstd, dx, shares, rows)
        constants = {"C": C, "COLUMNS": triton.next_power_of_2(C)}
        launch(_backward, (len(shares),), *operands, **constants, num_warps=4)
        dweight, dbias = shares.sum(0).to(weight.dtype)
        return dx, dweight, dbias, None


def layer_norm(x, weight, bias, *, eps=1e-5):
    """x (..., C) contiguous, weight (C,), bias (C,) -> (..., C)."""
    return LayerNorm.apply(x.view(-1, x.shape[-1]), weight, bias, eps).view(x.shape)
