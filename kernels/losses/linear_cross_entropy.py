"""The output layer and the cross entropy together, without ever storing all logits.

    logits = x W^T + b        loss, dlogits as in cross_entropy.py
    dx = dlogits W            dW = dlogits^T x            db = sum of the rows of dlogits

Decisions:
- Forward computes dx, dW and db from each chunk of logits; backward only multiplies them by
  dloss / n, which stays on the device: there is no host synchronisation. Without gradients only the
  loss is computed.
- dx, dW and db are fp32 until they are multiplied, and the products themselves accumulate dW and db
  over the chunks in fp32: cuBLAS takes bf16 operands and an fp32 sum. Under autocast, fp32
  parameters therefore get gradients that were never rounded to bf16.
- Chunks are as large as `launch.LOGITS_BYTES` allows, because small products are inefficient, and
  equal, because a short last one is too. dlogits overwrites the logits of the chunk. It is the
  gradient of the sum and not of the mean, whose values underflow in fp16.
- If V is not a multiple of 8, the weight and the logits are padded with zeros to whole 128-byte
  lines: for odd sizes cuBLAS uses old kernels, which on an H200 made the three products of 50,257
  columns five times as slow as those of 50,304. The loss does not read the padding, whose gradient
  stays 0.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from ..common import launch
from ..common.dtypes import accumulator, autocast_dtype, triton_accumulator
from ..common.operands import check_operands
from .cross_entropy import count_targets, cross_entropy_forward_kernel, launch_rows

LINE_BYTES = 128  # of the memory system
ALIGNED = 8  # elements of 16 bits in 16 bytes, the row alignment that cuBLAS needs
GEMM_ROWS = 128  # the rows of a chunk are a multiple of the largest tile of a matrix product
BLOCK = 4096  # elements per program of `scale_gradient_kernel`: 16 per thread


@triton.jit
def scale_gradient_kernel(
    gradient_ptr,  # (length,)
    dloss_ptr,  # ()
    count_ptr,  # ()
    out_ptr,  # (length,)
    length,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    factor = tl.load(dloss_ptr).to(ACC) / tl.load(count_ptr).to(ACC)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gradient = tl.load(gradient_ptr + at, mask=at < length).to(ACC)
    tl.store(out_ptr + at, (gradient * factor).to(out_ptr.dtype.element_ty), mask=at < length)


class LinearCrossEntropy(torch.autograd.Function):
    """x (N, C), weight (V, C), bias (V,) or None, targets (N,) -> loss ()."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, ignore_index, dtype, needs):
        (N, C), V = x.shape, weight.shape[0]
        wide = {"dtype": accumulator(dtype), "device": x.device}
        rows, columns = _chunk(N, V, dtype)
        padded = columns if V % ALIGNED else V  # columns of the products
        W, b = _padded(weight, padded, dtype), _padded(bias, padded, dtype)
        dx = torch.empty(N, C, **wide) if needs[0] else None
        dW = torch.zeros(padded, C, **wide) if needs[1] else None
        db = torch.zeros(padded, **wide) if needs[2] else None
        losses = torch.empty(N, **wide)

        chunk = torch.empty(rows, columns, dtype=dtype, device=x.device)
        for start in range(0, N, rows):
            at = slice(start, start + rows)
            x_here = x[at].to(dtype)
            logits = chunk[: len(x_here), :padded]
            if b is None:
                torch.mm(x_here, W.t(), out=logits)
            else:
                torch.addmm(b, x_here, W.t(), out=logits)
            known = logits[:, :V]  # becomes its own gradient, which is 0 in the padding
            gradient = known if any(needs) else None
            tensors = known, targets[at], None, losses[at], None, gradient
            launch_rows(cross_entropy_forward_kernel, tensors, ignore_index)
            if dx is not None:
                _product(logits, W, 0, dx[at])
            if dW is not None:
                _product(logits.t(), x_here, 1, dW)
            if db is not None:
                db += logits.sum(0, dtype=db.dtype)

        count = count_targets(targets, ignore_index)
        dW, db = (whole if whole is None else whole[:V] for whole in (dW, db))
        ctx.save_for_backward(count, dx, dW, db)
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        return losses.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        count, *gradients = ctx.saved_tensors
        scaled = (
            None if gradient is None else _scaled(gradient, dloss, count, dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None


def _padded(parameter, rows, dtype):
    """The parameter in `dtype`, padded with zeros to `rows` rows."""
    if parameter is None or (len(parameter) == rows and parameter.dtype == dtype):
        return parameter
    out = torch.empty((rows, *parameter.shape[1:]), dtype=dtype, device=parameter.device)
    out[: len(parameter)] = parameter
    out[len(parameter) :] = 0
    return out


def _chunk(N, V, dtype):
    """The rows and columns of a chunk of logits."""
    size = dtype.itemsize
    columns = launch.cdiv(V * size, LINE_BYTES) * LINE_BYTES // size
    most = max(launch.LOGITS_BYTES // (columns * size), 1)
    rows = launch.cdiv(N, launch.cdiv(N, most)) if N else 1
    return launch.cdiv(rows, GEMM_ROWS) * GEMM_ROWS, columns


def _product(a, b, beta, out):
    """out = a @ b + beta out, where `out` may have a wider dtype than a and b."""
    if a.dtype == out.dtype:
        out.addmm_(a, b, beta=beta)
    elif out.is_cuda:
        torch.addmm(out, a, b, beta=beta, out_dtype=out.dtype, out=out)
    else:
        out.addmm_(a.to(out.dtype), b.to(out.dtype), beta=beta)


def _scaled(gradient, dloss, count, dtype):
    """gradient dloss / count in `dtype`, as a new tensor, because the graph may be retained."""
    out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    length = gradient.numel()
    constants = {"BLOCK": BLOCK, "ACC": triton_accumulator(gradient.dtype), "num_warps": 8}
    operands = gradient, dloss, count, out, length
    launch.launch(scale_gradient_kernel, (launch.cdiv(length, BLOCK),), *operands, **constants)
    return out


@launch.opaque
def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    ignore_index: int = -100,
) -> torch.Tensor:
    """`cross_entropy` of the logits x weight^T + bias, which are never stored all at once.

    x (..., C), weight (V, C), bias (V,) or None, targets (...) int64 -> ().
    """
    form = "x (..., C), weight (V, C), bias (V,), targets (...) int64"
    dtype = autocast_dtype(x)
    one_dtype = dtype is None
    check_operands("linear_cross_entropy", form, x, weight, bias, targets, one_dtype=one_dtype)
    operands = x.reshape(-1, x.shape[-1]), weight, bias
    needs = tuple(
        torch.is_grad_enabled() and operand is not None and operand.requires_grad
        for operand in operands
    )
    targets = targets.reshape(-1).contiguous()
    return LinearCrossEntropy.apply(*operands, targets, ignore_index, dtype or x.dtype, needs)
