"""SwiGLU: definition, rounding, strides, extreme values."""

import pytest
import torch

from kernels import torch_ops
from kernels.matmul.gated_activation import swiglu
from tests.numerics import differentiate, hold_against
from tests.operands import DEVICE, DTYPES, randn


def test_gradients_match_the_definition():
    x = randn(2, 14, dtype=torch.float64, scale=2.0)
    torch.testing.assert_close(swiglu(x), torch_ops.swiglu(x), rtol=1e-13, atol=1e-13)
    torch.autograd.gradcheck(swiglu, [x.requires_grad_()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_rounded_once(dtype):
    for shape, scale in (((2,), 1.0), ((3, 5, 66), 1e-2), ((2, 4098), 1.0), ((9, 128), 30.0)):
        hold_against(swiglu, torch_ops.swiglu, [randn(*shape, dtype=dtype, scale=scale)])


def test_rows_with_gaps_and_strided_columns():
    x, dy = randn(2, 5, 3, 24), randn(2, 5, 12, seed=1)
    for strided in (x[:, :, 1], x[:, :, 1].mT.contiguous().mT):
        results = (differentiate(of, [strided], [dy]) for of in (swiglu, torch_ops.swiglu))
        torch.testing.assert_close(*results)


def test_extreme_gates():
    gate = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], device=DEVICE)
    y = swiglu(torch.cat((gate, torch.ones_like(gate))))
    assert torch.equal(y, torch.nn.functional.silu(gate))
