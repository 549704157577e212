"""Cross entropy: the loss, and in the same pass the gradient of the logits.

With m_i the largest logit of row i, s_i = sum_j exp(x_ij - m_i), t its target, and n the number of
targets that are not ignored:

    loss  = 1/n sum_i (log s_i + m_i - x_it)
    dx_ij = (exp(x_ij - m_i) / s_i - [j = t]) dloss / n

Decisions:
- One program owns whole rows. It reads them tile by tile for m and s, then again for dx in reverse
  order: a row of 50,304 bf16 logits has 100 KB, and the second read comes from L1 and L2. Holding
  such a row in registers spills on every architecture, with 16 warps and with 32.
- Forward writes dx for dloss = 1, which is what `loss.backward()` passes. Backward reads dloss on
  the device: if it is 1 there is nothing to do; otherwise it recomputes dx from m and s, rounded
  once, into the same memory, which no one else has seen yet. So there is no host synchronisation
  and no fp16 underflow under a loss scale. A second backward over a retained graph fills new
  memory.
- Rows have any stride: GPT-2's 50,257 bf16 logits begin at odd addresses. A row is an aligned
  middle, moved in 16-byte vectors, and at most two edges shorter than a vector.
- An ignored row is not read, and its dx is 0. A target outside the vocabulary is never used as an
  index: the loss is NaN; with TRITON_DEBUG=1 the kernel stops with a message.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from ..common.dtypes import accumulator, triton_accumulator
from ..common.launch import cdiv, launch, next_power_of_2, opaque, tile
from ..common.operands import check_operands

VECTOR_BYTES = 16  # the widest load of a thread
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # of an empty row, because -inf - -inf is NaN


@triton.jit
def _split(rows, row_stride, V, VECTOR: tl.constexpr):
    """The start of each row, the start of its middle, the columns before that, and its length.

    Rounding by `// VECTOR * VECTOR` also lets the compiler infer that addresses and masks are
    aligned.
    """
    begin = rows * row_stride
    middle = (begin + VECTOR - 1) // VECTOR * VECTOR
    before = (middle - begin).to(tl.int32)
    return begin, middle, before, tl.maximum(V - before, 0) // VECTOR * VECTOR


@triton.jit
def _include(x, m, s):
    """Update m and s (ROWS,) with the columns x (ROWS, columns)."""
    largest = tl.maximum(m, tl.max(x, 1))
    s = s * tl.exp(m - largest) + tl.sum(tl.exp(x - largest[:, None]), 1)
    return largest, s


@triton.jit
def _at_edges(before, length, VECTOR: tl.constexpr):
    """The columns (ROWS, 2 VECTOR) outside the middle; columns >= V do not exist."""
    edge = tl.arange(0, 2 * VECTOR)[None, :]
    return tl.where(edge < before[:, None], edge, edge + length[:, None])


@triton.jit
def _replace(
    logits_ptr,  # (N, V)
    dlogits_ptr,  # (N, V)
    at,  # (ROWS, columns): offsets
    exists,  # (ROWS, columns)
    counted,  # (ROWS,)
    is_target,  # (ROWS, columns)
    m,  # (ROWS,)
    coefficient,  # (ROWS,): scale / s
    scale,  # (ROWS,): dloss / n
    ACC: tl.constexpr,
):
    """Replace the logits `at` by their gradient.

    evict_first: dx and this last read must not evict rows that will be read a second time.
    """
    read = exists & counted[:, None]
    x = tl.load(logits_ptr + at, read, other=-float("inf"), eviction_policy="evict_first").to(ACC)
    one_hot = tl.where(is_target, scale[:, None], 0.0)
    dx = tl.exp(x - m[:, None]) * coefficient[:, None] - one_hot
    dx = dx.to(dlogits_ptr.dtype.element_ty)
    tl.store(dlogits_ptr + at, dx, exists, eviction_policy="evict_first")


@triton.jit
def _store_gradient(
    logits_ptr,  # (N, V)
    dlogits_ptr,  # (N, V)
    rows,  # (ROWS,)
    target,  # (ROWS,)
    counted,  # (ROWS,)
    m,  # (ROWS,)
    s,  # (ROWS,)
    scale,  # (): dloss / n
    N, V, row_stride,
    COLUMNS: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Store dx of whole rows, the last tile first."""
    begin, middle, before, length = _split(rows, row_stride, V, VECTOR)
    inside = (rows < N)[:, None]
    # s is 0 for an ignored row, else at least 1; triton 3.6 cannot convert `counted` here
    weight = tl.minimum(s, 1.0)
    scale = weight * scale
    coefficient = scale / (s + (1 - weight))
    if EDGES:
        j = _at_edges(before, length, VECTOR)
        _replace(
            logits_ptr, dlogits_ptr, begin[:, None] + j, inside & (j < V), counted,
            j == target[:, None], m, coefficient, scale, ACC,
        )  # fmt: skip
    in_middle = (target - before).to(tl.int32)
    tiles = tl.cdiv(V // VECTOR * VECTOR, COLUMNS)
    for back in range(tiles):
        column = (tiles - 1 - back) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        _replace(
            logits_ptr, dlogits_ptr, middle[:, None] + column, inside & (column < length[:, None]),
            counted, column == in_middle[:, None], m, coefficient, scale, ACC,
        )  # fmt: skip


@triton.jit
def cross_entropy_forward_kernel(
    logits_ptr,  # (N, V)
    targets_ptr,  # (N,)
    count_ptr,  # (), or None for the gradient of the sum
    losses_ptr,  # (N,)
    statistics_ptr,  # (2, N): m and s, or None
    dlogits_ptr,  # (N, V) or None, may be logits
    N, V, row_stride, ignore_index,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets_ptr + rows, mask=rows < N, other=ignore_index)
    counted = target != ignore_index
    known = (target >= 0) & (target < V)
    tl.device_assert(known | (target == ignore_index), "cross_entropy: a target is out of range")
    begin, middle, before, length = _split(rows, row_stride, V, VECTOR)
    x_target = tl.load(logits_ptr + begin + target, mask=counted & known, other=float("nan"))

    # --- m and s ---
    m = tl.full((ROWS,), LOWEST, ACC)
    s = tl.zeros((ROWS,), ACC)
    for start in range(0, V // VECTOR * VECTOR, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        read = counted[:, None] & (column < length[:, None])
        x = tl.load(logits_ptr + middle[:, None] + column, mask=read, other=-float("inf")).to(ACC)
        m, s = _include(x, m, s)
    if EDGES:
        j = _at_edges(before, length, VECTOR)
        read = counted[:, None] & (j < V)
        x = tl.load(logits_ptr + begin[:, None] + j, mask=read, other=-float("inf")).to(ACC)
        m, s = _include(x, m, s)

    # --- loss and gradient ---
    loss = tl.where(counted, tl.log(s) + (m - x_target.to(ACC)), 0.0)
    tl.store(losses_ptr + rows, loss, mask=rows < N)
    if statistics_ptr is not None:
        tl.store(statistics_ptr + rows, m, mask=rows < N)
        tl.store(statistics_ptr + N + rows, s, mask=rows < N)
    if dlogits_ptr is not None:
        tl.debug_barrier()  # dlogits may be logits: all threads read x_target before any writes
        scale = 1.0 if count_ptr is None else 1.0 / tl.load(count_ptr).to(ACC)
        _store_gradient(
            logits_ptr, dlogits_ptr, rows, target, counted, m, s, scale, N, V, row_stride,
            COLUMNS, VECTOR, EDGES, ACC,
        )  # fmt: skip


@triton.jit
def cross_entropy_backward_kernel(
    logits_ptr,  # (N, V)
    targets_ptr,  # (N,)
    count_ptr,  # ()
    statistics_ptr,  # (2, N): m and s
    dloss_ptr,  # ()
    dlogits_ptr,  # (N, V)
    N, V, row_stride, ignore_index,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    WRITTEN_FOR_ONE: tl.constexpr,  # dlogits holds the gradient for dloss = 1
    ACC: tl.constexpr,
):  # fmt: skip
    dloss = tl.load(dloss_ptr).to(ACC)
    if WRITTEN_FOR_ONE:  # noqa: SIM102 (the outer `if` is decided at compile time)
        if dloss == 1.0:
            return
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets_ptr + rows, mask=rows < N, other=ignore_index)
    m = tl.load(statistics_ptr + rows, mask=rows < N, other=0.0)
    s = tl.load(statistics_ptr + N + rows, mask=rows < N, other=1.0)
    scale = dloss / tl.load(count_ptr).to(ACC)
    _store_gradient(
        logits_ptr, dlogits_ptr, rows, target, target != ignore_index, m, s, scale,
        N, V, row_stride, COLUMNS, VECTOR, EDGES, ACC,
    )  # fmt: skip


class CrossEntropy(torch.autograd.Function):
    """logits (N, V), targets (N,) -> loss ()."""

    @staticmethod
    def forward(ctx, logits, targets, ignore_index, needs_gradient):
        N = logits.shape[0]
        wide = {"dtype": accumulator(logits.dtype), "device": logits.device}
        count = count_targets(targets, ignore_index)
        losses = torch.empty(N, **wide)
        statistics = torch.empty(2, N, **wide) if needs_gradient else None
        dlogits = _empty_gradient(logits) if needs_gradient else None
        tensors = logits, targets, count, losses, statistics, dlogits
        launch_rows(cross_entropy_forward_kernel, tensors, ignore_index)
        ctx.save_for_backward(logits, targets, count, statistics)
        ctx.ignore_index = ignore_index
        ctx.dlogits = dlogits
        return losses.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        logits, targets, count, statistics = ctx.saved_tensors
        dlogits, ctx.dlogits = ctx.dlogits, None  # returned once; a second backward fills its own
        written = dlogits is not None
        dlogits = dlogits if written else _empty_gradient(logits)
        tensors = logits, targets, count, statistics, dloss, dlogits
        constants = {"WRITTEN_FOR_ONE": written}
        launch_rows(cross_entropy_backward_kernel, tensors, ctx.ignore_index, **constants)
        return dlogits, None, None, None


def count_targets(targets, ignore_index):
    """The number of targets that are not ignored, at least 1: () int64, on the device."""
    return (targets != ignore_index).sum().clamp(min=1)


def launch_rows(kernel, tensors, ignore_index, **constexprs):
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
    constexprs["EDGES"] = V % VECTOR != 0 or row_stride % VECTOR != 0
    constexprs["ACC"] = triton_accumulator(logits.dtype)
    num_warps = elements * size // per_thread // 32
    sizes = N, V, row_stride, ignore_index
    launch(kernel, (cdiv(N, ROWS),), *tensors, *sizes, **constexprs, num_warps=num_warps)


def _empty_gradient(logits):
    """Allocate dlogits with the row stride of the logits, so that both have the same alignment."""
    shape, strides = logits.shape, logits.stride()
    return torch.empty_strided(shape, strides, dtype=logits.dtype, device=logits.device)


@opaque
def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, ignore_index: int = -100
) -> torch.Tensor:
    """The mean cross entropy over the targets that are not `ignore_index`, or 0 without any.

    logits (..., V), targets (...) int64 -> ().
    """
    check_operands("cross_entropy", "logits (..., V), targets (...) int64", logits, targets)
    V = logits.shape[-1]
    rows = logits.reshape(-1, V)
    if rows.stride(1) != 1 or rows.stride(0) < V:
        rows = rows.contiguous()
    needs_gradient = torch.is_grad_enabled() and logits.requires_grad
    return CrossEntropy.apply(rows, targets.reshape(-1).contiguous(), ignore_index, needs_gradient)
