"""dweight and dbias of a norm: sums over all rows in a fixed order, without atomics.

    dweight = sum over rows of dy xhat        dbias = sum over rows of dy

Each of the P programs of a norm's backward sums the rows that it visits and stores its share;
`sum_shares` adds the P shares. P depends only on the shape and the GPU, so every run
gives the same bits.
"""

import torch
import triton
import triton.language as tl

from ..common.dtypes import accumulator
from ..common.launch import cdiv, multiprocessors, tile
from ..common.row_layout import row_tile
from ..common.sums import sum_shares

REGISTER_FILE = 65_536  # registers of an SM


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
    sum_shares(shares, sums)
    return [
        sums[row].to(parameter.dtype) if need else None
        for row, parameter, need in zip((0, 1, -1), parameters, needs, strict=False)
    ]
