"""dweight and dbias of a norm: sums over all rows in a fixed order, without atomics.

    dweight = sum over rows of dy xhat        dbias = sum over rows of dy

Each of the P programs of a norm's backward sums the rows that it visits and stores its share;
`norm_sum_shares_kernel` adds the P shares. P depends only on the shape and the GPU, so every run
gives the same bits.
"""

import torch
import triton
import triton.language as tl

from ..common.dtypes import accumulator, triton_accumulator
from ..common.launch import cdiv, launch, multiprocessors, tile
from ..common.row_layout import row_tile

REGISTER_FILE = 65_536  # registers of an SM
# a tile of shares: narrow, so that many programs take part, and long, because a program waits for
# the loads of one tile before those of the next
SUM_ROWS, SUM_COLUMNS = 256, 16


@triton.jit
def store_share(
    share_ptr,  # (programs, PARAMETERS + X_BIAS, C)
    dweight,  # (ROWS, COLUMNS)
    dbias,  # (ROWS, COLUMNS)
    dx,  # (ROWS, COLUMNS), or None unless X_BIAS
    C,
    PARAMETERS: tl.constexpr, X_BIAS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sum dweight, dbias and dx over their rows, and store the sums as this program's share."""
    column = tl.arange(0, COLUMNS)
    share_ptr += tl.program_id(0) * (PARAMETERS + X_BIAS) * C + column
    if PARAMETERS > 0:
        tl.store(share_ptr, tl.sum(dweight, 0), column < C)
    if PARAMETERS > 1:
        tl.store(share_ptr + C, tl.sum(dbias, 0), column < C)
    if X_BIAS:
        tl.store(share_ptr + PARAMETERS * C, tl.sum(dx, 0), column < C)


@triton.jit(do_not_specialize=["shares"])
def norm_sum_shares_kernel(
    share_ptr,  # (shares, WIDTH)
    sum_ptr,  # (WIDTH,)
    shares,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for first in tl.range(0, shares, ROWS):
        share = first + tl.arange(0, ROWS)
        inside = (share < shares)[:, None] & (column < WIDTH)[None, :]
        total += tl.load(share_ptr + share[:, None] * WIDTH + column[None, :], inside, other=0)
    tl.store(sum_ptr + column, tl.sum(total, 0), column < WIDTH)


def residency(kernel, C, device):
    """The number of programs of a backward `kernel` that fill the GPU, and their registers."""
    *_, registers = tile(kernel, device)
    threads = 32 * row_tile(kernel, C, device)["num_warps"]
    registers = min(registers, REGISTER_FILE // threads)
    return multiprocessors(device) * (REGISTER_FILE // (threads * registers)), registers


def empty_shares(kernel, x, parameters):
    """Allocate the share of each program of a backward `kernel`: (programs, parameters, C)."""
    C, rows = x.shape[-1], x.shape[:-1].numel()
    programs, _ = residency(kernel, C, x.device)
    programs = min(programs, cdiv(rows, row_tile(kernel, C, x.device)["ROWS"]))
    shape = (programs, parameters, C)
    return torch.empty(shape, dtype=accumulator(x.dtype), device=x.device)


def count_parameters(needs_weight, needs_bias):
    """The constexpr PARAMETERS: 1 for weight alone, 2 with a bias, 0 without either."""
    return 2 if needs_bias else int(needs_weight)


def parameter_gradients(shares, parameters, needs):
    """The gradients (C,) of weight, bias and x_bias, or None, from shares (programs, ..., C)."""
    dtypes = {parameter.dtype for parameter, need in zip(parameters, needs, strict=True) if need}
    if not dtypes:
        return [None for _ in parameters]
    dtype = dtypes.pop() if len(dtypes) == 1 else shares.dtype
    sums = torch.empty(shares.shape[1:], dtype=dtype, device=shares.device)
    width = sums.numel()
    constants = {"WIDTH": width, "ROWS": SUM_ROWS, "COLUMNS": SUM_COLUMNS}
    constants |= {"ACC": triton_accumulator(shares.dtype), "num_warps": 4}
    grid = (cdiv(width, SUM_COLUMNS),)
    launch(norm_sum_shares_kernel, grid, shares, sums, len(shares), **constants)
    return [
        sums[row].to(parameter.dtype) if need else None
        for row, parameter, need in zip((0, 1, -1), parameters, needs, strict=False)
    ]
