"""Cross entropy: the loss, and in the same pass the gradient of the logits.

With m_i the largest logit of row i, s_i = sum_j exp(x_ij - m_i), l_i = log s_i + m_i, t its target,
class weights w, label smoothing e, and z-loss z (Chowdhery et al. 2022, "PaLM", section 5):

    loss_i = (1 - e) w_t (l_i - x_it) + e/V sum_j w_j (l_i - x_ij) + z l_i^2
    dx_ij  = (a_i exp(x_ij - m_i) / s_i - (1 - e) w_t [j = t] - e/V w_j) dloss_i
    a_i    = (1 - e) w_t + e/V sum_j w_j + 2 z l_i

With a soft-cap c, the logits x are c t, t = tanh(x' / c), and dx'_ij = dx_ij (1 - t_ij^2).

By default w = 1 and e = z = 0, so that a = 1. The mean divides by the sum of w_t over the targets
that are not ignored, but the sum of z l_i^2 by their number.

Decisions:
- One program owns whole rows. It reads them tile by tile for m and s, then again for dx in reverse
  order: a row of 50,304 bf16 logits has 100 KB, and the second read comes from L1 and L2. Holding
  such a row in registers spills on every architecture, with 16 warps and with 32.
- Forward writes dx for dloss = 1, which is what `loss.backward()` passes. Backward reads dloss on
  the device: if it is 1 there is nothing to do; otherwise it recomputes dx from m and s, rounded
  once, into the same memory, which no one else has seen yet. So there is no host synchronisation
  and no fp16 underflow under a loss scale. A second backward over a retained graph fills new
  memory. Without a reduction, dloss_i is never known in advance, and only backward writes dx.
- An option that is not used costs nothing: its pointer or number is None when the kernel is
  compiled. sum_j w_j (l_i - x_ij) is added up relative to x_it, because l_i is not yet known.
- Rows have any stride: GPT-2's 50,257 bf16 logits begin at odd addresses. A row is an aligned
  middle, moved in 16-byte vectors, and at most two edges shorter than a vector.
- An ignored row is not read, and its dx is 0. A target outside the vocabulary is never used as an
  index: the loss is NaN; with TRITON_DEBUG=1 the kernel stops with a message.
"""

import math

import torch

from ..common.dtypes import accumulator, triton_accumulator
from ..common.launch import cdiv, launch, next_power_of_2, tile
from ..common.operands import check_operands
from ..common.operator import EagerFunction, Operation
from .cross_entropy_kernels import cross_entropy_backward_kernel, cross_entropy_forward_kernel

VECTOR_BYTES = 16  # the widest load of a thread


class WrittenInForward(EagerFunction):
    """Forward writes dlogits for dloss = 1, and the first backward returns this memory."""

    @classmethod
    def forward(cls, ctx, logits, targets, weight, ignore_index, reduction, *options):
        written = None
        if ctx.needs_input_grad[0] and reduction != "none":
            written = _empty_gradient(addressable(logits))
        arguments = logits, targets, weight, ignore_index, reduction, *options, written
        return super().forward(ctx, *arguments)

    @classmethod
    def backward(cls, ctx, *gradients):
        found = super().backward(ctx, *gradients)
        ctx.options = *ctx.options[:-1], None  # a second backward fills its own memory
        return found


class CrossEntropy(Operation):
    """logits (N, V), targets (N,), weight (V,) or None -> loss (), or (N,) for "none".

    As an operator, whose results may not be written later, only backward writes dlogits.
    """

    schema = (
        "cross_entropy(Tensor logits, Tensor targets, Tensor? weight, int ignore_index, "
        "str reduction, float label_smoothing, float z_loss, float softcap)"
    )
    function = WrittenInForward

    @staticmethod
    def empty(logits, targets, weight, ignore_index, reduction, label_smoothing, z_loss, softcap):
        dtype = accumulator(logits.dtype)
        statistics = empty_statistics(targets, label_smoothing, z_loss, dtype)
        return *empty_results(targets, weight, reduction, dtype), statistics

    @staticmethod
    def forward(
        logits, targets, weight, ignore_index, reduction, label_smoothing, z_loss, softcap,
        written=None,
    ):  # fmt: skip
        dtype = accumulator(logits.dtype)
        logits, targets, weight = addressable(logits), targets.contiguous(), dense(weight)
        total, z = totals(targets, weight, ignore_index, reduction, z_loss, dtype)
        losses = torch.empty(len(targets), dtype=dtype, device=logits.device)
        statistics = empty_statistics(targets, label_smoothing, z_loss, dtype)
        tensors = logits, targets, weight, total, z, losses, statistics, written
        options = ignore_index, label_smoothing, z_loss, softcap
        launch_rows(cross_entropy_forward_kernel, tensors, *options)
        return reduced(losses, total, reduction), total, statistics

    @staticmethod
    def saved(logits, targets, weight, *others):
        _, total, statistics = others[-3:]
        return logits, targets, weight, total, statistics

    @staticmethod
    def backward(
        gradients, saved, needs, ignore_index, reduction, label_smoothing, z_loss, softcap,
        written=None,
    ):  # fmt: skip
        (dloss,), (logits, targets, weight, *others) = gradients, saved
        logits, targets, weight = addressable(logits), targets.contiguous(), dense(weight)
        dlogits = _empty_gradient(logits) if written is None else written
        tensors = logits, targets, weight, *others, dloss.contiguous(), dlogits
        options = ignore_index, label_smoothing, z_loss, softcap
        constants = {"WRITTEN_FOR_ONE": written is not None, "PER_ROW": reduction == "none"}
        launch_rows(cross_entropy_backward_kernel, tensors, *options, **constants)
        return dlogits, None, None

    @staticmethod
    def empty_gradients(gradients, saved, needs, *options):
        return _empty_gradient(addressable(saved[0])), None, None


WrittenInForward.operation = CrossEntropy


def addressable(logits):
    """The logits (N, V), copied if the kernels cannot address their rows."""
    V = logits.shape[1]
    return logits if logits.stride(1) == 1 and logits.stride(0) >= V else logits.contiguous()


def dense(weight):
    """The class weights (V,), contiguous, or None."""
    return weight if weight is None else weight.contiguous()


def empty_results(targets, class_weight, reduction, dtype):
    """Allocate the loss of targets (N,), and the total of a mean or None."""
    like = {"dtype": dtype, "device": targets.device}
    total = None
    if reduction == "mean":
        total = targets.new_empty(()) if class_weight is None else torch.empty((), **like)
    return torch.empty(targets.shape if reduction == "none" else (), **like), total


def empty_statistics(targets, label_smoothing, z_loss, dtype):
    """Allocate m, s and, unless it is w_t, a for targets (N,)."""
    shape = len(targets), _statistics(label_smoothing, z_loss)
    return torch.empty(shape, dtype=dtype, device=targets.device)


def _statistics(label_smoothing, z_loss):
    return 3 if label_smoothing or z_loss else 2


def totals(targets, class_weight, ignore_index, reduction, z_loss, dtype):
    """What a mean divides by, () or None, and the factor of squares in the kernel, () or None.

    Both stay on the device. A total of 0 becomes 1, so that a mean over no target is 0.
    """
    total = factor = None
    if z_loss:
        factor = torch.full((), z_loss, dtype=dtype, device=targets.device)
    if reduction == "mean":
        counted = targets != ignore_index
        total = counted.sum().clamp(min=1)
        if class_weight is not None:
            count, last = total, len(class_weight) - 1
            total = class_weight[targets.clamp(0, last)].to(dtype).where(counted, 0).sum()
            total += total == 0
            factor = factor if factor is None else factor * total / count
    return total, factor


def reduced(losses, total, reduction):
    """The losses (N,), or their sum, or it divided by `total`."""
    if reduction == "none":
        return losses
    return losses.sum() if total is None else losses.sum() / total


def launch_rows(kernel, tensors, ignore_index, label_smoothing, z_loss, softcap, **constexprs):
    """Launch one of the kernels with its `tensors`, of which the logits (N, V) are the first."""
    logits = tensors[0]
    (N, V), row_stride, size = logits.shape, logits.stride(0), logits.element_size()
    VECTOR = VECTOR_BYTES // size
    row = next_power_of_2(max(V // VECTOR, 1)) * VECTOR  # elements of a tile that holds a row
    short, long, per_thread = tile("cross_entropy", logits.device)
    elements = min(max(row, short // size), long // size)
    COLUMNS = min(row, elements)
    ROWS = elements // COLUMNS
    constexprs |= {"ROWS": ROWS, "COLUMNS": COLUMNS, "VECTOR": VECTOR}
    constexprs["STATISTICS"] = _statistics(label_smoothing, z_loss)
    constexprs["SOFTCAP"] = softcap
    constexprs["EDGES"] = V % VECTOR != 0 or row_stride % VECTOR != 0
    constexprs["ACC"] = triton_accumulator(logits.dtype)
    num_warps = elements * size // per_thread // 32
    scalars = N, V, row_stride, ignore_index, label_smoothing or None
    launch(kernel, (cdiv(N, ROWS),), *tensors, *scalars, **constexprs, num_warps=num_warps)


def _empty_gradient(logits):
    """Allocate dlogits with the row stride of the logits, so that both have the same alignment."""
    shape, strides = logits.shape, logits.stride()
    return torch.empty_strided(shape, strides, dtype=logits.dtype, device=logits.device)


def check_options(operation, reduction, label_smoothing, z_loss, softcap, class_weight) -> None:
    """Raise ValueError for an option that is out of range, or weights that need a gradient."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{operation}: reduction is {reduction!r}; give none, mean or sum")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"{operation}: label_smoothing is {label_smoothing}; give a number from 0 to 1"
        )
    for name, value in (("z_loss", z_loss), ("softcap", softcap)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{operation}: {name} is {value}; give a finite number of at least 0")
    if class_weight is not None and class_weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{operation}: class weights have no gradient; give them detached")


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Cross entropy with the options of `torch.nn.functional.cross_entropy`, z-loss and soft-cap.

    logits (..., V), targets (...) int64, weight (V,) of the classes -> (), or (...) with reduction
    "none", in fp32 (fp64 for fp64). Targets equal to `ignore_index` are left out; a mean over no
    target, or over targets whose weights add up to 0, is 0. Another target outside the vocabulary
    makes the loss NaN. `z_loss` times the square of logsumexp(logits) is added for each target,
    without its weight (Chowdhery et al. 2022, "PaLM"). A `softcap` c > 0 replaces each
    logit x by c tanh(x / c) (Gemma 2, 2024). Raises ValueError for a wrong shape, dtype or option.
    """
    form = "logits (..., V), targets (...) int64, weight (V,)"
    check_operands("cross_entropy", form, logits, targets, weight)
    options = reduction, float(label_smoothing), float(z_loss), float(softcap)
    check_options("cross_entropy", *options, weight)
    if not torch.is_grad_enabled():
        logits = logits.detach()
    rows = logits.reshape(-1, logits.shape[-1])
    loss = CrossEntropy.apply(rows, targets.reshape(-1), weight, ignore_index, *options)
    return loss.view(targets.shape) if reduction == "none" else loss
