"""The output layer and the cross entropy together, without ever storing all logits.

    logits = x W^T + b        loss, dlogits and options as in cross_entropy.py
    dx = dlogits W            dW = dlogits^T x            db = sum of the rows of dlogits

Decisions:
- Forward computes dx, dW and db from each chunk of logits; backward only multiplies them by
  dloss / n, which stays on the device: there is no host synchronisation. Without gradients only the
  loss is computed.
- Without a reduction, dW and db are sums over rows that dloss has scaled, so backward computes the
  chunks of logits again, from x and W: four products instead of three, and no more memory.
- dx, dW and db are fp32 until they are multiplied, and the products themselves accumulate dW and db
  over the chunks in fp32: cuBLAS takes bf16 operands and an fp32 sum. Under autocast, fp32
  parameters therefore get gradients that were never rounded to bf16.
- Chunks are as large as `launch.logits_bytes` allows, because small products are inefficient, and
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

from ..common import launch
from ..common.dtypes import accumulator, autocast_dtype, triton_accumulator
from ..common.operands import check_operands
from ..common.operator import Operation
from .cross_entropy import (
    check_options,
    dense,
    empty_results,
    empty_statistics,
    launch_rows,
    reduced,
    totals,
)
from .cross_entropy_kernels import cross_entropy_backward_kernel, cross_entropy_forward_kernel

LINE_BYTES = 128  # of the memory system
ALIGNED = 8  # elements of 16 bits in 16 bytes, the row alignment that cuBLAS needs
GEMM_ROWS = 128  # the rows of a chunk are a multiple of the largest tile of a matrix product
BLOCK = 4096  # elements per program of `scale_gradient_kernel`: 16 per thread


@triton.jit
def scale_gradient_kernel(
    gradient_ptr,  # (length,)
    dloss_ptr,  # ()
    total_ptr,  # (), or None for a sum
    out_ptr,  # (length,)
    length,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    factor = tl.load(dloss_ptr).to(ACC)
    if total_ptr is not None:
        factor /= tl.load(total_ptr).to(ACC)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gradient = tl.load(gradient_ptr + at, mask=at < length).to(ACC)
    tl.store(out_ptr + at, (gradient * factor).to(out_ptr.dtype.element_ty), mask=at < length)


class LinearCrossEntropy(Operation):
    """x (N, C), weight (V, C), bias (V,) or None, targets (N,) -> loss (), or (N,) for "none".

    `needs` says which of x, weight and bias need a gradient.
    """

    schema = (
        "linear_cross_entropy(Tensor x, Tensor weight, Tensor? bias, Tensor targets, "
        "Tensor? class_weight, int ignore_index, str reduction, float label_smoothing, "
        "float z_loss, float softcap, ScalarType dtype, bool[] needs)"
    )

    @staticmethod
    def empty(
        x, weight, bias, targets, class_weight, ignore_index, reduction, label_smoothing, z_loss,
        softcap, dtype, needs,
    ):  # fmt: skip
        wide, now = accumulator(dtype), _now(needs, reduction)
        results = empty_results(targets, class_weight, reduction, wide)
        statistics = None
        if not any(now):
            statistics = empty_statistics(targets, label_smoothing, z_loss, wide)
        gradients = (
            torch.empty(operand.shape, dtype=wide, device=x.device) if need else None
            for operand, need in zip((x, weight, bias), now, strict=True)
        )
        return *results, statistics, *gradients

    @staticmethod
    def forward(
        x, weight, bias, targets, class_weight, ignore_index, reduction, label_smoothing, z_loss,
        softcap, dtype, needs,
    ):  # fmt: skip
        wide, now = accumulator(dtype), _now(needs, reduction)
        targets, class_weight = targets.contiguous(), dense(class_weight)
        total, z = totals(targets, class_weight, ignore_index, reduction, z_loss, wide)
        losses, statistics = torch.empty(len(x), dtype=wide, device=x.device), None
        if not any(now):
            statistics = empty_statistics(targets, label_smoothing, z_loss, wide)

        def replace(at, logits):
            of_rows = (losses[at], None, logits) if any(now) else (losses[at], statistics[at], None)
            tensors = logits, targets[at], class_weight, None, z, *of_rows  # of the sum
            options = ignore_index, label_smoothing, z_loss, softcap
            launch_rows(cross_entropy_forward_kernel, tensors, *options)

        gradients = _in_chunks(x, weight, bias, dtype, now, replace)
        return reduced(losses, total, reduction), total, statistics, *gradients

    @staticmethod
    def saved(x, weight, bias, targets, class_weight, *others):
        return x, weight, bias, targets, class_weight, *others[-5:]

    @staticmethod
    def backward(
        gradients, saved, needs, ignore_index, reduction, label_smoothing, z_loss, softcap, dtype,
        _,
    ):  # fmt: skip
        x, weight, bias, targets, class_weight, total, statistics, *found = saved
        (dloss,), class_weight = gradients, dense(class_weight)
        dloss, targets = dloss.contiguous(), targets.contiguous()

        def replace(at, logits):
            of_rows = statistics[at], dloss[at] if dloss.ndim else dloss
            tensors = logits, targets[at], class_weight, total, *of_rows, logits
            options = ignore_index, label_smoothing, z_loss, softcap
            constants = {"WRITTEN_FOR_ONE": False, "PER_ROW": dloss.ndim == 1}
            launch_rows(cross_entropy_backward_kernel, tensors, *options, **constants)

        def finished(gradient, operand):
            if statistics is None:
                return _scaled(gradient, dloss, total, operand.dtype)
            return gradient.to(operand.dtype)

        if statistics is not None:
            found = _in_chunks(x, weight, bias, dtype, needs[:3], replace)
        pairs = zip(found, (x, weight, bias), strict=True)
        return *(one if one is None else finished(one, of) for one, of in pairs), None, None


def _now(needs, reduction):
    """Which gradients forward computes."""
    return [need and reduction != "none" for need in needs]


def _in_chunks(x, weight, bias, dtype, needs, replace):
    """Return dx, dW and db, or None where not needed, in the dtype of sums.

    `replace(rows, logits)` is called for each chunk, and overwrites logits (rows, V) by dlogits.
    """
    (N, C), V = x.shape, weight.shape[0]
    wide = {"dtype": accumulator(dtype), "device": x.device}
    rows, columns = _chunk(N, V, dtype, launch.logits_bytes(x.device))
    padded = columns if V % ALIGNED else V  # columns of the products
    W, b = _padded(weight, padded, dtype), _padded(bias, padded, dtype)
    dx = torch.empty(N, C, **wide) if needs[0] else None
    start_from = torch.empty if N else torch.zeros  # the first chunk writes, the others add
    dW = start_from(padded, C, **wide) if needs[1] else None
    db = start_from(padded, **wide) if needs[2] else None

    chunk = torch.empty(rows, columns, dtype=dtype, device=x.device)
    for start in range(0, N, rows):
        at = slice(start, start + rows)
        x_here = x[at].to(dtype)
        logits = chunk[: len(x_here), :padded]
        if b is None:
            torch.mm(x_here, W.t(), out=logits)
        else:
            torch.addmm(b, x_here, W.t(), out=logits)
        replace(at, logits[:, :V])  # dlogits of the padding is 0
        if dx is not None:
            _product(logits, W, 0, dx[at])
        if dW is not None:
            _product(logits.t(), x_here, int(start > 0), dW)
        if db is not None:
            here = logits.sum(0, dtype=db.dtype)
            db = here if start == 0 else db + here
    return dx, *(whole if whole is None else whole[:V] for whole in (dW, db))


def _padded(parameter, rows, dtype):
    """The parameter in `dtype`, padded with zeros to `rows` rows."""
    if parameter is None or (len(parameter) == rows and parameter.dtype == dtype):
        return parameter
    out = torch.empty((rows, *parameter.shape[1:]), dtype=dtype, device=parameter.device)
    out[: len(parameter)] = parameter
    out[len(parameter) :] = 0
    return out


def _chunk(N, V, dtype, limit):
    """The rows and columns of a chunk of logits with about `limit` bytes."""
    size = dtype.itemsize
    columns = launch.cdiv(V * size, LINE_BYTES) * LINE_BYTES // size
    most = max(limit // (columns * size), 1)
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


def _scaled(gradient, dloss, total, dtype):
    """gradient dloss / total in `dtype`, as a new tensor, because the graph may be retained."""
    out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    length = gradient.numel()
    constants = {"BLOCK": BLOCK, "ACC": triton_accumulator(gradient.dtype), "num_warps": 8}
    operands = gradient, dloss, total, out, length
    launch.launch(scale_gradient_kernel, (launch.cdiv(length, BLOCK),), *operands, **constants)
    return out


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    class_weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """`cross_entropy` of the logits x weight^T + bias, which are never stored all at once.

    x (..., C), weight (V, C), bias (V,) or None, targets (...) int64, class_weight (V,) -> (), or
    (...) with reduction "none", whose backward computes the logits again. Options and errors are
    those of `cross_entropy`.
    """
    form = "x (..., C), weight (V, C), bias (V,), targets (...) int64"
    dtype = autocast_dtype(x)
    one_dtype = dtype is None
    check_operands("linear_cross_entropy", form, x, weight, bias, targets, one_dtype=one_dtype)
    form = "weight (V, C), class_weight (V,)"
    check_operands("linear_cross_entropy", form, weight, class_weight)
    options = reduction, float(label_smoothing), float(z_loss), float(softcap)
    check_options("linear_cross_entropy", *options, class_weight)
    operands = x.reshape(-1, x.shape[-1]), weight, bias
    needs = [
        torch.is_grad_enabled() and operand is not None and operand.requires_grad
        for operand in operands
    ]
    tensors = *operands, targets.reshape(-1), class_weight
    loss = LinearCrossEntropy.apply(*tensors, ignore_index, *options, dtype or x.dtype, needs)
    return loss.view(targets.shape) if reduction == "none" else loss
