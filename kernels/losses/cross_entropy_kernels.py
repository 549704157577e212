"""The kernels of `kernels/losses/cross_entropy.py`, which gives the equations.

Of each row, tiles cover the middle, which begins and ends at multiples of VECTOR elements; both
edges together are one tile more. Where e = 0 or class weights are None, w or a is a constant 1.
"""

import torch
import triton
import triton.language as tl

from ..common.softcap import tanh

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
def _read(pointers, inside, SOFTCAP: tl.constexpr, ACC: tl.constexpr):
    """The logits, soft-capped if SOFTCAP is not 0; -inf where they are not `inside`."""
    x = tl.load(pointers, mask=inside, other=-float("inf")).to(ACC)
    if SOFTCAP > 0:
        x = tl.where(inside, SOFTCAP * tanh(x / SOFTCAP), -float("inf"))
    return x


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
def _target_weight(class_weight_ptr, smoothing, target, counted, V, ACC: tl.constexpr):
    """(1 - e) w_t (ROWS,)."""
    w = tl.full(target.shape, 1.0, ACC)
    if class_weight_ptr is not None:
        read = counted & (target >= 0) & (target < V)
        w = tl.load(class_weight_ptr + target, mask=read, other=0.0).to(ACC)
    if smoothing is not None:
        w *= 1 - smoothing
    return w


@triton.jit
def _include_all(
    class_weight_ptr, x, x_target, j, read, weights, below, ACC: tl.constexpr
):  # fmt: skip
    """Update sum_j w_j (unless w = 1) and sum_j w_j (x_it - x_ij) (ROWS,) with x of classes j."""
    terms = tl.where(read, x_target[:, None] - x, 0.0)
    if class_weight_ptr is not None:
        w = tl.load(class_weight_ptr + j, mask=read, other=0.0).to(ACC)
        weights += tl.sum(w, 1)
        terms *= w
    return weights, below + tl.sum(terms, 1)


@triton.jit
def _replace(
    logits_ptr,  # (N, V)
    dlogits_ptr,  # (N, V)
    class_weight_ptr,  # (V,) or None
    at,  # (ROWS, columns): offsets
    j,  # (ROWS or 1, columns): classes
    exists,  # (ROWS, columns)
    counted,  # (ROWS,)
    is_target,  # (ROWS, columns)
    m,  # (ROWS,)
    of_softmax,  # (ROWS,): dloss a / s
    of_target,  # (ROWS,): dloss (1 - e) w_t
    of_all,  # (ROWS,): dloss e / V, or None
    SOFTCAP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Replace the logits `at` by their gradient.

    evict_first: dx and this last read must not evict rows that will be read a second time.
    """
    read = exists & counted[:, None]
    x = tl.load(logits_ptr + at, read, other=-float("inf"), eviction_policy="evict_first").to(ACC)
    if SOFTCAP > 0:
        t = tanh(x / SOFTCAP)
        x = tl.where(read, SOFTCAP * t, -float("inf"))
    subtracted = tl.where(is_target, of_target[:, None], 0.0)
    if of_all is not None:
        if class_weight_ptr is None:
            subtracted += of_all[:, None]
        else:
            w = tl.load(class_weight_ptr + j, mask=exists, other=0.0).to(ACC)
            subtracted += of_all[:, None] * w
    dx = tl.exp(x - m[:, None]) * of_softmax[:, None] - subtracted
    if SOFTCAP > 0:
        dx *= 1.0 - t * t
    dx = dx.to(dlogits_ptr.dtype.element_ty)
    tl.store(dlogits_ptr + at, dx, exists, eviction_policy="evict_first")


@triton.jit
def _store_gradient(
    logits_ptr,  # (N, V)
    dlogits_ptr,  # (N, V)
    class_weight_ptr,  # (V,) or None
    rows,  # (ROWS,)
    target,  # (ROWS,)
    counted,  # (ROWS,)
    m,  # (ROWS,)
    s,  # (ROWS,)
    a,  # (ROWS,)
    w,  # (ROWS,): (1 - e) w_t
    scale,  # () or (ROWS,): dloss, or in a mean dloss / total
    N, V, row_stride, smoothing,
    SOFTCAP: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Store dx of whole rows, the last tile first."""
    begin, middle, before, length = _split(rows, row_stride, V, VECTOR)
    inside = (rows < N)[:, None]
    # s is 0 for an ignored row, else at least 1; triton 3.6 cannot convert `counted` here
    one = tl.minimum(s, 1.0)
    scale = one * scale
    of_softmax = scale * a / (s + (1 - one))
    of_target = scale * w
    of_all = None
    if smoothing is not None:
        of_all = scale * (smoothing / tl.cast(V, ACC))
    if EDGES:
        j = _at_edges(before, length, VECTOR)
        _replace(
            logits_ptr, dlogits_ptr, class_weight_ptr, begin[:, None] + j, j, inside & (j < V),
            counted, j == target[:, None], m, of_softmax, of_target, of_all, SOFTCAP, ACC,
        )  # fmt: skip
    in_middle = (target - before).to(tl.int32)
    tiles = tl.cdiv(V // VECTOR * VECTOR, COLUMNS)
    for back in range(tiles):
        column = (tiles - 1 - back) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        inner = column + before[:, None] if EDGES else column
        _replace(
            logits_ptr, dlogits_ptr, class_weight_ptr, middle[:, None] + column, inner,
            inside & (column < length[:, None]), counted, column == in_middle[:, None],
            m, of_softmax, of_target, of_all, SOFTCAP, ACC,
        )  # fmt: skip


@triton.jit
def cross_entropy_forward_kernel(
    logits_ptr,  # (N, V)
    targets_ptr,  # (N,)
    class_weight_ptr,  # (V,) or None
    total_ptr,  # (): what a mean divides by, or None for the gradient of the sum
    z_ptr,  # () or None
    losses_ptr,  # (N,)
    statistics_ptr,  # (N, STATISTICS): m, s, and a unless it is w_t; or None
    dlogits_ptr,  # (N, V) or None, may be logits
    N, V, row_stride, ignore_index, smoothing,
    STATISTICS: tl.constexpr, SOFTCAP: tl.constexpr,
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
    x_target = x_target.to(ACC)
    if SOFTCAP > 0:
        x_target = SOFTCAP * tanh(x_target / SOFTCAP)

    # --- m and s ---
    m = tl.full((ROWS,), LOWEST, ACC)
    s = tl.zeros((ROWS,), ACC)
    if smoothing is not None:
        reference = tl.where(x_target == -float("inf"), 0.0, x_target)  # no inf - inf
        weights, below = tl.zeros((ROWS,), ACC), tl.zeros((ROWS,), ACC)
    for start in range(0, V // VECTOR * VECTOR, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        read = counted[:, None] & (column < length[:, None])
        x = _read(logits_ptr + middle[:, None] + column, read, SOFTCAP, ACC)
        m, s = _include(x, m, s)
        if smoothing is not None:
            inner = column + before[:, None] if EDGES else column
            weights, below = _include_all(
                class_weight_ptr, x, reference, inner, read, weights, below, ACC
            )
    if EDGES:
        j = _at_edges(before, length, VECTOR)
        read = counted[:, None] & (j < V)
        x = _read(logits_ptr + begin[:, None] + j, read, SOFTCAP, ACC)
        m, s = _include(x, m, s)
        if smoothing is not None:
            weights, below = _include_all(
                class_weight_ptr, x, reference, j, read, weights, below, ACC
            )

    # --- loss and gradient ---
    w = _target_weight(class_weight_ptr, smoothing, target, counted, V, ACC)
    a = w
    loss = tl.log(s) + (m - x_target)
    if smoothing is not None:
        share = smoothing / tl.cast(V, ACC)
        a += smoothing if class_weight_ptr is None else share * weights
        loss = a * loss + share * below
    else:
        loss *= w
    if z_ptr is not None:
        z = tl.load(z_ptr)
        log_z = tl.log(s) + m
        a += 2 * z * log_z
        loss += z * log_z * log_z
    tl.store(losses_ptr + rows, tl.where(counted, loss, 0.0), mask=rows < N)
    if STATISTICS == 3:
        a = tl.where(counted, a, 0.0)
    if statistics_ptr is not None:
        tl.store(statistics_ptr + STATISTICS * rows, m, mask=rows < N)
        tl.store(statistics_ptr + STATISTICS * rows + 1, s, mask=rows < N)
        if STATISTICS == 3:
            tl.store(statistics_ptr + STATISTICS * rows + 2, a, mask=rows < N)
    if dlogits_ptr is not None:
        tl.debug_barrier()  # dlogits may be logits: all threads read x_target before any writes
        scale = 1.0 if total_ptr is None else 1.0 / tl.load(total_ptr).to(ACC)
        _store_gradient(
            logits_ptr, dlogits_ptr, class_weight_ptr, rows, target, counted, m, s, a, w, scale,
            N, V, row_stride, smoothing, SOFTCAP, COLUMNS, VECTOR, EDGES, ACC,
        )  # fmt: skip


@triton.jit
def cross_entropy_backward_kernel(
    logits_ptr,  # (N, V)
    targets_ptr,  # (N,)
    class_weight_ptr,  # (V,) or None
    total_ptr,  # () or None
    statistics_ptr,  # (N, STATISTICS)
    dloss_ptr,  # (), or (N,) if PER_ROW
    dlogits_ptr,  # (N, V), may be logits
    N, V, row_stride, ignore_index, smoothing,
    STATISTICS: tl.constexpr, SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    WRITTEN_FOR_ONE: tl.constexpr,  # dlogits holds the gradient for dloss = 1
    PER_ROW: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    if not PER_ROW:
        scale = tl.load(dloss_ptr).to(ACC)
    if WRITTEN_FOR_ONE:  # noqa: SIM102 (the outer `if` is decided at compile time)
        if scale == 1.0:
            return
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets_ptr + rows, mask=rows < N, other=ignore_index)
    counted = target != ignore_index
    m = tl.load(statistics_ptr + STATISTICS * rows, mask=rows < N, other=0.0)
    s = tl.load(statistics_ptr + STATISTICS * rows + 1, mask=rows < N, other=1.0)
    w = _target_weight(class_weight_ptr, smoothing, target, counted, V, ACC)
    a = w
    if STATISTICS == 3:
        a = tl.load(statistics_ptr + STATISTICS * rows + 2, mask=rows < N, other=0.0)
    if PER_ROW:
        scale = tl.load(dloss_ptr + rows, mask=counted, other=0.0).to(ACC)
    if total_ptr is not None:
        scale /= tl.load(total_ptr).to(ACC)
    _store_gradient(
        logits_ptr, dlogits_ptr, class_weight_ptr, rows, target, counted, m, s, a, w, scale,
        N, V, row_stride, smoothing, SOFTCAP, COLUMNS, VECTOR, EDGES, ACC,
    )  # fmt: skip
