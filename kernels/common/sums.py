"""Sums with the same bits every time: over the threads and over the programs of a kernel."""

import torch
import triton
import triton.language as tl

from .dtypes import triton_accumulator
from .launch import cdiv, launch

# A tile of shares is narrow, so that many programs take part, and long, because a program waits for
# the loads of one tile before those of the next.
ELEMENTS, NARROW, WIDE = 4_096, 16, 128  # WIDE: where there are programs enough


@triton.jit
def sum_of_products(a, b, axis: tl.constexpr, SINGLE: tl.constexpr = True):
    """The sum of a b over an axis, the same in all threads that hold it.

    SINGLE: whether a thread may hold a single product along the axis. Two such threads exchange
    their products and add them. If the compiler fused a thread's own product and the addition, only
    the other product would be rounded, so the two would hold different sums, and several threads
    may store theirs to one place. The compiler cannot fuse fma(a, b, 0).
    """
    return tl.sum(tl.fma(a, b, 0.0) if SINGLE else a * b, axis)


@triton.jit(do_not_specialize=["shares"])
def sum_shares_kernel(
    share_ptr,  # (shares, width)
    sum_ptr,  # (width,)
    shares, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for first in tl.range(0, shares, ROWS):
        share = first + tl.arange(0, ROWS)
        inside = (share < shares)[:, None] & (column < width)[None, :]
        at = share.to(tl.int64)[:, None] * width + column[None, :]
        total += tl.load(share_ptr + at, inside, other=0).to(ACC)
    tl.store(sum_ptr + column, tl.sum(total, 0).to(sum_ptr.dtype.element_ty), column < width)


def sum_shares(shares: torch.Tensor, out: torch.Tensor, columns: int = NARROW) -> torch.Tensor:
    """Write the sum over P of shares (P, ...) to `out` (...), rounded once; return it."""
    width = out.numel()
    constants = {"ROWS": ELEMENTS // columns, "COLUMNS": columns, "num_warps": 4}
    constants["ACC"] = triton_accumulator(shares.dtype)
    launch(sum_shares_kernel, (cdiv(width, columns),), shares, out, len(shares), width, **constants)
    return out
