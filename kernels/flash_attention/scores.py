"""What the kernels of attention share: the order of programs, reads, and the weights P.

With fp32 or fp64 operands the weights are computed as accurately as PyTorch's, however large the
logits are. The maximum m and the sum z of a row are kept apart, because rounding m + log2 z changes
P by up to |m| 2^-24; every kernel adds up S and dP in the same order; and delta is the sum of P dP,
so that dS is exactly 0 where one key has all the weight. With 16-bit operands one number per row
and one fused multiply-add per weight are enough: rounding the operands changes P far more.
"""

import triton
import triton.language as tl

from ..common.launch import head_tile

LOG2_E = tl.constexpr(1.4426950408889634)
TOGETHER = 2**24  # bytes that concurrent programs read repeatedly: a third of an L2 cache


@triton.jit
def scheduled(tiles, H, together):
    """The index of this program's tile, its head, and its batch.

    Programs process `together` heads at a time: first the first tile of each, then the second, ...
    """
    pairs = tl.num_programs(0) // tiles  # of batch and head
    first = tl.program_id(0) // (together * tiles) * together
    here = tl.minimum(together, pairs - first)
    place = tl.program_id(0) - first * tiles
    pair = (first + place % here).to(tl.int64)
    return place // here, pair % H, pair // H


@triton.jit
def tile_pointers(ptr, stride, ROWS: tl.constexpr, d):
    """Pointers (ROWS, D) to the first rows at `ptr`, `stride` elements apart."""
    return ptr + tl.arange(0, ROWS).to(tl.int64)[:, None] * stride + d[None, :]


@triton.jit
def read(pointers, inside, other: tl.constexpr = 0.0):
    """Load a tile, `other` where it is not `inside`; None means that all of it is."""
    return tl.load(pointers) if inside is None else tl.load(pointers, inside, other=other)


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


def together(x):
    """The number of heads of x (B, H, T, D) to process together, so that L2 can hold them."""
    B, H, T, D = x.shape
    bytes_of_a_head = 2 * T * D * x.element_size()  # keys and values, or queries and dout
    return max(1, min(B * H, TOGETHER // max(bytes_of_a_head, 1)))


def options(kernel, variant, q, k, constants):
    """The constexprs, tile and options of a launch of `kernel`, by its row of `launch.TILES`."""
    kernel += "" if q.element_size() == 2 else "_fp32"
    head_size = max(64, constants["BLOCK_D"])
    M, N, warps, stages, registers = head_tile(kernel, variant, head_size, q.device)
    even = constants["D"] == constants["BLOCK_D"] and q.shape[2] % M == k.shape[2] % N == 0
    resources = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    return constants | {"M": M, "N": N, "EVEN": even} | resources
