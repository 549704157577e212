"""SwiGLU and GEGLU: an activation of one half of a projection that gates the other half.

    y = f(gate) up        dgate = dy up f'(gate)        dup = dy f(gate)

with f = silu for SwiGLU and f = gelu for GEGLU (Shazeer 2020, "GLU variants improve Transformer").

Decisions:
- gate and up are two tensors, or the two halves of one. In the second case the two gradients are
  written side by side, so that nothing is joined afterwards.
- Only the inputs are saved: recomputing f(gate) reads nothing that f'(gate) does not read.
"""

from typing import Literal

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
    gate_ptr,  # (rows, F)
    up_ptr,  # (rows, F)
    y_ptr,  # (rows, F)
    rows, F, gate_stride, up_stride,
    ACTIVATION: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < F)
    gate = tl.load(gate_ptr + row * gate_stride + column, inside, other=0).to(ACC)
    up = tl.load(up_ptr + row * up_stride + column, inside, other=0).to(ACC)
    tl.store(y_ptr + row * F + column, activate(gate, ACTIVATION) * up, inside)


@triton.jit(do_not_specialize=["rows"])
def gated_backward_kernel(
    gate_ptr,  # (rows, F)
    up_ptr,  # (rows, F)
    dy_ptr,  # (rows, F)
    dgate_ptr,  # (rows, F)
    dup_ptr,  # (rows, F)
    rows, F, gate_stride, up_stride, gradient_stride,
    ACTIVATION: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < F)
    dy = tl.load(dy_ptr + row * F + column, inside, other=0).to(ACC)
    gate = tl.load(gate_ptr + row * gate_stride + column, inside, other=0).to(ACC)
    up = tl.load(up_ptr + row * up_stride + column, inside, other=0).to(ACC)
    at = row * gradient_stride + column
    tl.store(dgate_ptr + at, dy * up * derivative(gate, ACTIVATION), inside)
    tl.store(dup_ptr + at, dy * activate(gate, ACTIVATION), inside)


class SwiGLU(Operation):
    """gate and up (..., F), or both in one tensor (..., 2 F) and up None -> y (..., F)."""

    schema = "swiglu(Tensor gate, Tensor? up, str activation)"

    @staticmethod
    def empty(gate, up, activation):
        F = gate.shape[-1] // 2 if up is None else gate.shape[-1]
        return (gate.new_empty((*gate.shape[:-1], F)),)

    @staticmethod
    def forward(gate, up, activation):
        (y,) = SwiGLU.empty(gate, up, activation)
        gate, up = _rows(gate, up)
        strides = gate.stride(0), up.stride(0)
        _launch(gated_forward_kernel, activation, (gate, up, y), strides)
        return (y,)

    @staticmethod
    def saved(gate, up, activation, y):
        return gate, up

    @staticmethod
    def backward(gradients, saved, needs, activation):
        found = SwiGLU.empty_gradients(gradients, saved, needs, activation)
        gate, up = _rows(*saved)
        dgate, dup = _rows(*found)
        strides = gate.stride(0), up.stride(0), dgate.stride(0)
        tensors = gate, up, gradients[0].contiguous(), dgate, dup
        _launch(gated_backward_kernel, activation, tensors, strides)
        return found


class GEGLU(SwiGLU):
    schema = SwiGLU.schema.replace("swiglu", "geglu")  # the name in graphs and errors


def _rows(gate, up):
    """gate and up (rows, F), where `up` may be the second half of gate."""
    F = gate.shape[-1] // 2 if up is None else gate.shape[-1]
    both = gate.chunk(2, dim=-1) if up is None else (gate, up)
    rows = (x.reshape(x.shape[:-1].numel(), F) for x in both)
    return [x if x.stride(1) == 1 else x.contiguous() for x in rows]


def _launch(kernel, activation, tensors, strides):
    """Launch a kernel with its tensors, of which the first is (rows, F)."""
    (rows, F), first = tensors[0].shape, tensors[0]
    elements, num_warps = tile("gated_activation", first.device)
    COLUMNS = min(next_power_of_2(F), elements)
    constants = {"ACTIVATION": activation, "ACC": triton_accumulator(first.dtype)}
    constants |= {"ROWS": elements // COLUMNS, "COLUMNS": COLUMNS, "num_warps": num_warps}
    grid = cdiv(rows, constants["ROWS"]), cdiv(F, COLUMNS)
    launch(kernel, grid, *tensors, rows, F, *strides, **constants)


def swiglu(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up, with silu(x) = x / (1 + e^-x) (Shazeer 2020), in one pass.

    gate and up (..., F) -> (..., F). Without `up`, gate is (..., 2 F) and its second half is up, as
    one projection computes them. Raises ValueError if shapes or dtypes do not fit.
    """
    return _apply(SwiGLU, gate, up, "silu")


def geglu(
    gate: torch.Tensor,
    up: torch.Tensor | None = None,
    *,
    approximate: Literal["none", "tanh"] = "none",
) -> torch.Tensor:
    """gelu(gate) * up (Shazeer 2020), in one pass; `approximate` is that of `F.gelu`.

    gate and up (..., F) -> (..., F). Without `up`, gate is (..., 2 F) and its second half is up, as
    one projection computes them. Raises ValueError if shapes or dtypes do not fit.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"geglu: approximate is {approximate!r}; give 'none' or 'tanh'")
    return _apply(GEGLU, gate, up, "gelu_tanh" if approximate == "tanh" else "gelu")


def _apply(operation, gate, up, activation):
    check_operands(operation.name, "gate (..., F), up (..., F)", gate, up, one_dtype=True)
    if up is None and gate.shape[-1] % 2:
        raise ValueError(
            f"{operation.name}: gate {tuple(gate.shape)} has no second half; give (..., 2 F), or "
            "give up as well"
        )
    return operation.apply(gate, up, activation)
