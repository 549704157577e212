"""dweight and dbias of a norm: sums over all rows, in a fixed order and without atomics.

    dweight = sum over rows of dy xhat        dbias = sum over rows of dy

Each of P programs of a norm's backward adds up the rows that it visits and stores its share;
`parameter_gradients` adds the P shares. P follows from shape and architecture alone, so every run
gives the same bits. Rows wider than `WIDEST_IN_REGISTERS` leave a norm's backward no registers for
a share: then `complete_shares` reads x and dy once more, in tiles of columns.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import cdiv, launch, multiprocessors, tile
from kernels.common.row_layout import accumulator, as_rows, row_pointers, row_tile, statistics_dtype

WIDEST_IN_REGISTERS = 8_192  # columns
REGISTER_FILE = 65_536  # registers of an SM
WIDE_ROWS, WIDE_COLUMNS = 8, 256  # a tile of `norm_wide_shares_kernel`
# a tile of `norm_sum_shares_kernel`: narrow, so that many programs take part
SUM_ROWS, SUM_COLUMNS = 64, 32


@triton.jit
def store_share(
    share_ptr,
    dweight,
    dbias,
    dx,
    first_column,
    C,
    PARAMETERS: tl.constexpr,
    X_BIAS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add up the rows of dweight, dbias and dx, and store them as this program's share."""
    column = first_column + tl.arange(0, COLUMNS)
    share_ptr += tl.program_id(0) * (PARAMETERS + X_BIAS) * C + column
    if PARAMETERS > 0:
        tl.store(share_ptr, tl.sum(dweight, 0), column < C)
    if PARAMETERS > 1:
        tl.store(share_ptr + C, tl.sum(dbias, 0), column < C)
    if X_BIAS:
        tl.store(share_ptr + PARAMETERS * C, tl.sum(dx, 0), column < C)


@triton.jit(do_not_specialize=["rows", "inner", "x_outer", "x_inner", "dy_outer", "dy_inner"])
def norm_wide_shares_kernel(
    dy_ptr,  # (outer, inner, C)
    x_ptr,  # (outer, inner, C)
    mean_ptr,  # (rows,); None for RMSNorm
    rstd_ptr,  # (rows,)
    share_ptr,  # (programs, PARAMETERS, C)
    rows,
    inner,
    dy_outer,
    dy_inner,
    x_outer,
    x_inner,
    C: tl.constexpr,
    PARAMETERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
):
    first_column = tl.program_id(1) * COLUMNS
    column = first_column + tl.arange(0, COLUMNS)[None, :]
    dweight = tl.zeros((ROWS, COLUMNS), ACC)
    dbias = tl.zeros((ROWS, COLUMNS), ACC)
    for number in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        first = number * ROWS
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < C)
        dy_row = row_pointers(dy_ptr, first, inner, dy_outer, dy_inner, ROWS, UNIT)
        x_row = row_pointers(x_ptr, first, inner, x_outer, x_inner, ROWS, UNIT)
        dy = tl.load(dy_row + column, inside, other=0).to(ACC)  # (ROWS, COLUMNS)
        x = tl.load(x_row + column, inside, other=0).to(ACC)
        if mean_ptr is not None:
            x -= tl.load(mean_ptr + row, row < rows, other=0)[:, None]
        dweight += dy * x * tl.load(rstd_ptr + row, row < rows, other=0)[:, None]
        dbias += dy
    store_share(share_ptr, dweight, dbias, None, first_column, C, PARAMETERS, False, COLUMNS)


@triton.jit(do_not_specialize=["shares"])
def norm_sum_shares_kernel(
    share_ptr,  # (shares, WIDTH)
    sum_ptr,  # (WIDTH,)
    shares,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for first in tl.range(0, shares, ROWS):
        share = first + tl.arange(0, ROWS)
        inside = (share < shares)[:, None] & (column < WIDTH)[None, :]
        total += tl.load(share_ptr + share[:, None] * WIDTH + column[None, :], inside, other=0)
    tl.store(sum_ptr + column, tl.sum(total, 0), column < WIDTH)


def residency(kernel, C, device):
    """How many programs of a backward `kernel` the GPU holds at once, with how many registers."""
    *_, registers = tile(kernel, device)
    threads = 32 * row_tile(kernel, C, device)["num_warps"]
    registers = min(registers, REGISTER_FILE // threads)
    return multiprocessors(device) * (REGISTER_FILE // (threads * registers)), registers


def empty_shares(kernel, x, parameters):
    """Room for the share of each program of a backward `kernel`: (programs, parameters, C)."""
    C, rows = x.shape[-1], x.shape[:-1].numel()
    programs, _ = residency(kernel, C, x.device)
    programs = min(programs, cdiv(rows, row_tile(kernel, C, x.device)["ROWS"]))
    shape = (programs, parameters, C)
    return torch.empty(shape, dtype=statistics_dtype(x), device=x.device)


def complete_shares(dy, x, mean, rstd, shares):
    """Compute the shares of rows that were too wide for the backward kernel to do it."""
    programs, parameters, C = shares.shape
    if C <= WIDEST_IN_REGISTERS or parameters == 0:
        return
    (dy, x), addressing, unit = as_rows(dy, x)
    constants = {"C": C, "PARAMETERS": parameters, "UNIT": unit, "ACC": accumulator(shares)}
    constants |= {"ROWS": WIDE_ROWS, "COLUMNS": WIDE_COLUMNS, "num_warps": 4}
    operands = (dy, x, mean, rstd, shares, rstd.numel(), *addressing)
    launch(norm_wide_shares_kernel, (programs, cdiv(C, WIDE_COLUMNS)), *operands, **constants)


def parameter_gradients(shares, weight):
    """dweight and dbias (C,) from the shares, None for one that is not there."""
    parameters = shares.shape[1]
    if parameters == 0:
        return None, None
    gradients = sum_of_shares(shares, weight.dtype)
    return gradients[0], gradients[1] if parameters == 2 else None


def sum_of_shares(shares, dtype):
    """(parameters, C) of shares (programs, parameters, C), added in their order."""
    gradients = torch.empty(shares.shape[1:], dtype=dtype, device=shares.device)
    width = gradients.numel()
    constants = {"WIDTH": width, "ROWS": SUM_ROWS, "COLUMNS": SUM_COLUMNS}
    constants |= {"ACC": accumulator(shares), "num_warps": 4}
    grid = (cdiv(width, SUM_COLUMNS),)
    launch(norm_sum_shares_kernel, grid, shares, gradients, len(shares), **constants)
    return gradients
