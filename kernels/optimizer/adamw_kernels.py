"""The kernels of `kernels/optimizer/adamw.py`, which gives the equations, and their tables.

A step launches `adamw_advance_kernel` with one program per tensor, then `adamw_update_kernel` with
one per chunk. Clipping launches `adamw_square_sum_kernel` with one program per chunk, then
`adamw_clip_kernel` with a single one.
"""

import triton
import triton.language as tl

from . import multi_tensor

# Columns of the table of addresses, and their number; all are 0 for a tensor without a gradient.
PARAMETER, GRADIENT, M, V, MASTER, STEP, ADDRESSES = map(tl.constexpr, range(7))
# Columns of the table of hyperparameters of each group, and their number.
LR, BETA1, BETA2, EPS, DECAY, MAXIMIZE, HYPERPARAMETERS = map(tl.constexpr, range(7))
# Columns of the table of coefficients of each tensor, and their number:
# 1 - lr decay, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1^t), sqrt(1 - beta2^t), eps, 1 or -1.
(
    SHRINK, BLEND_M, KEEP_V, BLEND_V, RATE, ROOT, EPSILON, SIGN, COEFFICIENTS,
) = map(tl.constexpr, range(9))  # fmt: skip


@triton.jit
def adamw_advance_kernel(
    addresses_ptr,  # (tensors, ADDRESSES)
    groups_ptr,  # (tensors,)
    hyper_ptr,  # (groups, HYPERPARAMETERS)
    coefficients_ptr,  # (tensors, COEFFICIENTS)
    found_inf_ptr,  # () or None
):
    """Increment the step of a tensor, and compute its row of coefficients for the update."""
    tensor = tl.program_id(0)
    if found_inf_ptr is not None:
        found_inf = tl.load(found_inf_ptr)
        if found_inf != 0:
            return
    if tl.load(addresses_ptr + tensor * ADDRESSES + GRADIENT) == 0:
        return
    step_ptr = multi_tensor.pointer(addresses_ptr, tensor * ADDRESSES + STEP, tl.float32, 4)
    step = tl.load(step_ptr) + 1
    tl.store(step_ptr, step)
    hyper_ptr += tl.load(groups_ptr + tensor) * HYPERPARAMETERS
    lr, beta1 = tl.load(hyper_ptr + LR), tl.load(hyper_ptr + BETA1)
    beta2, eps = tl.load(hyper_ptr + BETA2), tl.load(hyper_ptr + EPS)
    decay = tl.load(hyper_ptr + DECAY)
    t = step.to(tl.float64)
    coefficients_ptr += tensor * COEFFICIENTS
    tl.store(coefficients_ptr + SHRINK, 1 - lr * decay)
    tl.store(coefficients_ptr + BLEND_M, 1 - beta1)
    tl.store(coefficients_ptr + KEEP_V, beta2)
    tl.store(coefficients_ptr + BLEND_V, 1 - beta2)
    tl.store(coefficients_ptr + RATE, lr / (1 - tl.exp2(t * tl.log2(beta1))))
    tl.store(coefficients_ptr + ROOT, tl.sqrt(1 - tl.exp2(t * tl.log2(beta2))))
    tl.store(coefficients_ptr + EPSILON, eps)
    tl.store(coefficients_ptr + SIGN, 1 - 2 * tl.load(hyper_ptr + MAXIMIZE))


@triton.jit
def _update_elements(
    p_ptr,  # (length,)
    g_ptr,  # (length,)
    m_ptr,  # (length,)
    v_ptr,  # (length,)
    copy_ptr,  # (length,) or None
    coefficients_ptr,  # (COEFFICIENTS,)
    factor_ptr,  # () or None
    found_inf_ptr,  # () or None
    at,  # (elements,)
    end,
    ACC: tl.constexpr, FOLLOWS: tl.constexpr,
):  # fmt: skip
    """Update the elements `at` before `end`."""
    shrink = tl.load(coefficients_ptr + SHRINK).to(ACC)
    blend_m = tl.load(coefficients_ptr + BLEND_M).to(ACC)
    keep_v = tl.load(coefficients_ptr + KEEP_V).to(ACC)
    blend_v = tl.load(coefficients_ptr + BLEND_V).to(ACC)
    rate = tl.load(coefficients_ptr + RATE).to(ACC)
    root = tl.load(coefficients_ptr + ROOT).to(ACC)
    eps = tl.load(coefficients_ptr + EPSILON).to(ACC)
    inside = at < end
    g = tl.load(g_ptr + at, mask=inside).to(ACC) * tl.load(coefficients_ptr + SIGN).to(ACC)
    if factor_ptr is not None:
        g *= tl.load(factor_ptr).to(ACC)
    p = tl.load(p_ptr + at, mask=inside)
    if copy_ptr is not None and not FOLLOWS:  # the copy is the parameter, and p its master
        written = tl.load(copy_ptr + at, mask=inside).to(ACC)
        rounded = p.to(copy_ptr.dtype.element_ty).to(ACC)
        p = tl.where(rounded == written, p, written)
    p *= shrink
    m = tl.load(m_ptr + at, mask=inside)
    m += blend_m * (g - m)
    v = keep_v * tl.load(v_ptr + at, mask=inside) + blend_v * g * g
    p -= rate * m / (tl.sqrt(v) / root + eps)
    changed = inside
    if found_inf_ptr is not None:
        changed = at < tl.where(tl.load(found_inf_ptr) == 0, end, 0)
    tl.store(p_ptr + at, p, mask=changed)
    tl.store(m_ptr + at, m, mask=changed)
    tl.store(v_ptr + at, v, mask=changed)
    if copy_ptr is not None:
        tl.store(copy_ptr + at, p.to(copy_ptr.dtype.element_ty), mask=changed)


@triton.jit
def adamw_update_kernel(
    chunks_ptr,  # (chunks, COLUMNS)
    addresses_ptr,  # (tensors, ADDRESSES)
    coefficients_ptr,  # (tensors, COEFFICIENTS)
    factor_ptr,  # () or None
    found_inf_ptr,  # () or None
    CHUNK: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
    ACC: tl.constexpr, FOLLOWS: tl.constexpr,
):  # fmt: skip
    tensor, start, whole, length = multi_tensor.chunk(chunks_ptr, CHUNK, VECTOR)
    row = tensor * ADDRESSES
    if tl.load(addresses_ptr + row + GRADIENT) == 0:
        return
    p_ptr = multi_tensor.pointer(addresses_ptr, row + MASTER, ACC, ALIGNED) + start
    g_ptr = multi_tensor.pointer(addresses_ptr, row + GRADIENT, DTYPE, ALIGNED) + start
    m_ptr = multi_tensor.pointer(addresses_ptr, row + M, ACC, ALIGNED) + start
    v_ptr = multi_tensor.pointer(addresses_ptr, row + V, ACC, ALIGNED) + start
    copy_ptr = None
    if DTYPE != ACC:
        copy_ptr = multi_tensor.pointer(addresses_ptr, row + PARAMETER, DTYPE, ALIGNED) + start
    coefficients_ptr += tensor * COEFFICIENTS
    _update_elements(
        p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, coefficients_ptr, factor_ptr, found_inf_ptr,
        tl.arange(0, CHUNK), whole, ACC, FOLLOWS,
    )  # fmt: skip
    _update_elements(
        p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, coefficients_ptr, factor_ptr, found_inf_ptr,
        whole + tl.arange(0, VECTOR), length, ACC, FOLLOWS,
    )  # fmt: skip


@triton.jit
def adamw_square_sum_kernel(
    chunks_ptr,  # (chunks, COLUMNS)
    addresses_ptr,  # (tensors, ADDRESSES)
    first_ptr,  # (tensors,): the first partial sum of each tensor
    partials_ptr,  # (chunks,)
    CHUNK: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    tensor, start, whole, length = multi_tensor.chunk(chunks_ptr, CHUNK, VECTOR)
    place = tensor * ADDRESSES + GRADIENT
    total = tl.zeros((), ACC)
    if tl.load(addresses_ptr + place) != 0:
        g_ptr = multi_tensor.pointer(addresses_ptr, place, DTYPE, ALIGNED) + start
        # in halves: of each, a thread owns 4 elements of 16 or of 32 bits, and adds in one order
        at, half = tl.arange(0, CHUNK // 2), CHUNK // 2
        g = tl.load(g_ptr + at, mask=at < whole, other=0.0).to(ACC)
        h = tl.load(g_ptr + half + at, mask=half + at < whole, other=0.0).to(ACC)
        rest = whole + tl.arange(0, VECTOR)
        g_rest = tl.load(g_ptr + rest, mask=rest < length, other=0.0).to(ACC)
        total += tl.sum(g * g + h * h, 0) + tl.sum(g_rest * g_rest, 0)
    tl.store(partials_ptr + tl.load(first_ptr + tensor) + start // CHUNK, total)


@triton.jit
def adamw_clip_kernel(
    partials_ptr,  # (length,)
    norm_ptr,  # ()
    factor_ptr,  # ()
    length, max_norm,
    PARTIALS: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((PARTIALS,), partials_ptr.dtype.element_ty)
    for start in range(0, length, PARTIALS):
        at = start + tl.arange(0, PARTIALS)
        total += tl.load(partials_ptr + at, mask=at < length, other=0.0)
    norm = tl.sqrt(tl.sum(total, 0))
    factor = max_norm / (norm + 1e-6)
    tl.store(norm_ptr, norm)
    tl.store(factor_ptr, tl.where(factor > 1, 1.0, factor))  # NaN stays NaN
