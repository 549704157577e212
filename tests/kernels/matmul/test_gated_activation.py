"""SwiGLU and GEGLU: definition, rounding, and one tensor instead of two."""

from functools import partial

import pytest
import torch

from kernels import torch_ops
from kernels.matmul.gated_activation import geglu, swiglu
from tests.numerics import differentiate, hold_against
from tests.operands import DEVICE, DTYPES, randn

GATED = {
    "swiglu": (swiglu, torch_ops.swiglu),
    "geglu": (geglu, torch_ops.geglu),
    "geglu tanh": [partial(of, approximate="tanh") for of in (geglu, torch_ops.geglu)],
}
all_gated = pytest.mark.parametrize("name", GATED)


@all_gated
def test_gradients_match_the_definition(name):
    operation, reference = GATED[name]
    operands = [randn(2, 7, dtype=torch.float64, seed=seed, scale=2.0) for seed in (0, 1)]
    torch.testing.assert_close(operation(*operands), reference(*operands), rtol=1e-13, atol=1e-13)
    torch.autograd.gradcheck(operation, [x.requires_grad_() for x in operands])


@all_gated
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_rounded_once(name, dtype):
    for shape, scale in (((1,), 1.0), ((3, 5, 33), 1e-2), ((2, 2049), 1.0), ((9, 64), 30.0)):
        operands = [randn(*shape, dtype=dtype, scale=scale, seed=seed) for seed in (0, 1)]
        hold_against(*GATED[name], operands)


@all_gated
def test_both_halves_of_one_tensor_have_one_gradient(name):
    operation, _ = GATED[name]
    both = randn(2, 5, 3, 24)[:, :, 1]  # rows with gaps
    (y,), (gradient,) = differentiate(operation, [both], [randn(2, 5, 12, seed=1)])
    expected, gradients = differentiate(operation, both.chunk(2, dim=-1), [randn(2, 5, 12, seed=1)])
    assert torch.equal(y, expected[0])
    assert torch.equal(gradient, torch.cat(gradients, dim=-1))


def test_extreme_gates():
    gate = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], device=DEVICE)
    assert torch.equal(swiglu(gate, torch.ones_like(gate)), torch.nn.functional.silu(gate))
