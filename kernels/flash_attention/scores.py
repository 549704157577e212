"""What the kernels of attention share: the order of programs, reads, and the weights P.

With fp32 or fp64 operands the weights are computed as accurately as PyTorch's, however large the
logits are. The maximum m and the sum z of a row are kept apart, because rounding m + log2 z changes
P by up to |m| 2^-24; every kernel adds up S and dP in the same order; and delta is the sum of P dP,
so that dS is exactly 0 where one key has all the weight. With 16-bit operands one number per row
and one fused multiply-add per weight are enough: rounding the operands changes P far more.
"""

import triton
import triton.language as tl

BOTTOM_RIGHT = tl.constexpr(2)  # a value of CAUSAL; 1 is top-left, and 0 not causal


@triton.jit
def scheduled(H):
    """The number of pairs of batch and head; of this program the index of its tile, head and batch.

    The grid is (pairs of a group, tiles, groups): a group's first tiles run first, of each pair.
    """
    pairs = tl.num_programs(0).to(tl.int64) * tl.num_programs(2)
    pair = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    return pairs, tl.program_id(1), (pair % H).to(tl.int64), (pair // H).to(tl.int64)


@triton.jit
def tiles_of(ptr, T, stride, d, ROWS: tl.constexpr, D: tl.constexpr, DESCRIBED: tl.constexpr):
    """Tiles of T rows of D channels at `ptr`: their descriptor, or pointers to the first one."""
    return (
        tl.make_tensor_descriptor(ptr, [T, D], [stride, 1], [ROWS, d.shape[0]])
        if DESCRIBED
        else ptr + tl.arange(0, ROWS).to(tl.int64)[:, None] * stride + d[None, :]
    )


@triton.jit
def read_tile(tiles, first, stride, inside, DESCRIBED: tl.constexpr):
    """The tile of `tiles_of` from row `first` on; 0 outside, which a descriptor knows itself."""
    if DESCRIBED:
        value = tiles.load([first, 0])
    else:
        value = read(tiles + tl.cast(first, tl.int64) * stride, inside)
    return value


@triton.jit
def read(pointers, inside, other: tl.constexpr = 0.0):
    """Load a tile, `other` where it is not `inside`; None means that all of it is."""
    return tl.load(pointers) if inside is None else tl.load(pointers, inside, other=other)


@triton.jit
def read_ranges(ptr, at):
    """The ranges [first, end) of the tokens `at`."""
    return tl.load(ptr + 2 * at), tl.load(ptr + 2 * at + 1)


@triton.jit
def keys_seen(
    first,  # position of the first of M rows
    Tk,
    row_begin, row_end,  # (M,): the ranges of the rows, or None
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The keys that a tile of rows sees, from the beginning of a tile of N; those that all see."""
    begin, end, begin_of_all, end_of_all = 0, Tk, 0, Tk
    if CAUSAL:
        end, end_of_all = tl.minimum(first + M, Tk), tl.minimum(first + 1, Tk)
    if WINDOW > 0:
        begin, begin_of_all = tl.maximum(first - WINDOW + 1, 0) // N * N, first + M - WINDOW
    if row_begin is not None:
        begin = tl.maximum(begin, tl.min(row_begin, 0) // N * N)
        begin_of_all = tl.maximum(begin_of_all, tl.max(row_begin, 0))
        end = tl.minimum(end, tl.max(row_end, 0))
        end_of_all = tl.minimum(end_of_all, tl.min(row_end, 0))
    return begin, end, begin_of_all, end_of_all


@triton.jit
def is_seen(
    position,  # (M,), of the rows
    key,  # (N,)
    row_begin, row_end,  # (M,) or None
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    KEYS: tl.constexpr,  # the dimension of the keys in the result: 1 for (M, N), 0 for (N, M)
):  # fmt: skip
    """Whether the rows see the keys, by the diagonal, their window and their range."""
    position, key = tl.expand_dims(position, KEYS), tl.expand_dims(key, 1 - KEYS)
    seen = position >= key if CAUSAL else True
    if WINDOW > 0:
        seen &= position - key < WINDOW
    if row_begin is not None:
        in_range = key >= tl.expand_dims(row_begin, KEYS)
        in_range &= key < tl.expand_dims(row_end, KEYS)
        seen = seen & in_range if CAUSAL else in_range
    return seen


@triton.jit
def products(a, b, ACC: tl.constexpr, TRANSPOSED: tl.constexpr = False):
    """a b^T (M, N); if TRANSPOSED, the transpose of b a^T, with its order of sums."""
    if TRANSPOSED:
        return tl.trans(tl.dot(b, tl.trans(a), input_precision="ieee", out_dtype=ACC))
    return tl.dot(a, tl.trans(b), input_precision="ieee", out_dtype=ACC)


@triton.jit
def weights(s, m, rz, FACTOR: tl.constexpr, WIDE: tl.constexpr):
    """P from S and, of its rows, m and rz = 1 / z; if not WIDE, m is the log-sum-exp in base 2."""
    if WIDE:  # S > m only if it was added up in another order
        return tl.exp2(tl.minimum(s - m, 0.0) * FACTOR) * rz
    return tl.exp2(s * FACTOR - m)
