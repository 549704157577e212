"""SwiGLU: the silu of one half of a projection gates the other half.

    y = silu(gate) up        dgate = dy up silu'(gate)        dup = dy silu(gate)

(Shazeer 2020, "GLU variants improve Transformer").

Decisions:
- gate and up are the two halves of one tensor, as one projection computes them. Their gradients are
  written side by side, so that nothing is joined afterwards.
- Only the input is saved: recomputing silu(gate) reads nothing that silu'(gate) does not read.
"""

import torch
import triton
import triton.language as tl

from ..common.dtypes import triton_accumulator
from ..common.launch import cdiv, launch, next_power_of_2, tile
from ..common.operands import check_operands
from ..common.operator import Operation
from .activation import activate, derivative


@triton.jit(do_not_specialize=["rows"])
def gated_forward_kernel(
    x_ptr,  # (rows, 2 F): gate, then up
    y_ptr,  # (rows, F)
    rows, F, stride,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < F)
    gate = tl.load(x_ptr + row * stride + column, inside, other=0).to(ACC)
    up = tl.load(x_ptr + row * stride + F + column, inside, other=0).to(ACC)
    tl.store(y_ptr + row * F + column, activate(gate, "silu") * up, inside)


@triton.jit(do_not_specialize=["rows"])
def gated_backward_kernel(
    x_ptr,  # (rows, 2 F)
    dy_ptr,  # (rows, F)
    dx_ptr,  # (rows, 2 F)
    rows, F, stride,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < F)
    dy = tl.load(dy_ptr + row * F + column, inside, other=0).to(ACC)
    gate = tl.load(x_ptr + row * stride + column, inside, other=0).to(ACC)
    up = tl.load(x_ptr + row * stride + F + column, inside, other=0).to(ACC)
    at = row * 2 * F + column
    tl.store(dx_ptr + at, dy * up * derivative(gate, "silu"), inside)
    tl.store(dx_ptr + at + F, dy * activate(gate, "silu"), inside)


class SwiGLU(Operation):
    """gate and up as (..., 2 F) -> y (..., F)."""

    schema = "swiglu(Tensor x)"

    @staticmethod
    def empty(x):
        return (x.new_empty((*x.shape[:-1], x.shape[-1] // 2)),)

    @staticmethod
    def forward(x):
        (y,) = SwiGLU.empty(x)
        _launch(gated_forward_kernel, x, y)
        return (y,)

    @staticmethod
    def saved(x, y):
        return (x,)

    @staticmethod
    def backward(gradients, saved, needs):
        (dy,), (x,) = gradients, saved
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        _launch(gated_backward_kernel, x, dy.contiguous(), dx)
        return (dx,)


def _launch(kernel, x, *others):
    """Launch a kernel on the rows of x and of the other tensors, which are contiguous."""
    x = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, F = len(x), x.shape[1] // 2
    elements, num_warps = tile("gated_activation", x.device)
    COLUMNS = min(next_power_of_2(F), elements)
    constants = {"ROWS": elements // COLUMNS, "COLUMNS": COLUMNS, "num_warps": num_warps}
    constants["ACC"] = triton_accumulator(x.dtype)
    grid = cdiv(rows, constants["ROWS"]), cdiv(F, COLUMNS)
    launch(kernel, grid, x, *others, rows, F, x.stride(0), **constants)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up in one pass, with silu(x) = x / (1 + e^-x) (Shazeer 2020).

    gate and up are the halves of x (..., 2 F) -> (..., F), as one projection computes them. Raises
    ValueError if the last dimension is odd.
    """
    check_operands("swiglu", "x (..., F)", x)
    if x.shape[-1] % 2:
        raise ValueError(f"swiglu: x {tuple(x.shape)} has no second half; give (..., 2 F)")
    return SwiGLU.apply(x)
