"""The four activations and their derivatives: against fp64, extreme values."""

import itertools
import math
from functools import partial

import pytest
import torch

from kernels.matmul.activation import ACTIVATIONS, FROM_HIDDEN, ROWS, activation_backward
from kernels.matmul.activation import activation_forward as forward
from kernels.torch_ops import ACTIVATIONS as TORCH
from tests.numerics import assert_rounded_once, hold_against
from tests.operands import DEVICE, DTYPES, randn

all_activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def kept_by(activation, x):
    """The tensor that `activation_backward` takes."""
    return forward(x, activation) if activation in FROM_HIDDEN else x


def gradient(activation, dhidden, kept):
    """dx from the saved tensor, by PyTorch."""
    if activation == "relu":
        return torch.where(kept > 0, dhidden, 0)
    if activation == "relu_squared":
        return dhidden * 2 * kept.sqrt()
    x = kept.detach().requires_grad_()
    return torch.autograd.grad(TORCH[activation](x), x, dhidden)[0]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@all_activations
def test_forward_is_rounded_once(activation, dtype):
    ours = partial(forward, activation=activation)
    for size, scale in ((1, 1.0), (33, 0.02), (257, 30.0), (4096, 0.02), (4097, 1.0)):
        x = randn(size, dtype=dtype, scale=scale, seed=size)
        hold_against(ours, TORCH[activation], [x], backward=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@all_activations
def test_backward_is_rounded_once(activation, dtype):
    def total(sums):
        assert len(sums) == -(-M // ROWS)  # on every GPU
        return sums.sum(0)

    ours = partial(activation_backward, activation=activation)
    by_pytorch = partial(gradient, activation)
    for M, N, scale in ((1, 1, 1.0), (31, 129, 3.0), (ROWS, 128, 0.02), (2 * ROWS + 9, 65, 1.0)):
        kept = kept_by(activation, randn(M, N, dtype=dtype, scale=scale, seed=2))
        operands = randn(M, N, dtype=dtype, seed=1), kept
        hold_against(lambda *x: ours(*x)[0], by_pytorch, operands, backward=False)
        sums = lambda *x: total(ours(*x)[1]), lambda *x: by_pytorch(*x).sum(0)
        hold_against(*sums, operands, backward=False, out_dtype=torch.float32)


def spelled_out(activation, x):
    """A GELU in a form that does not cancel, as PyTorch's does."""
    if activation == "gelu":
        return x * 0.5 * torch.special.erfc(-x / math.sqrt(2))
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_every_interval_is_as_exact_as_pytorch(activation):
    """f(x) is small for negative x, where the error of the whole axis would hide its own."""
    edges = torch.tensor([-90, -14, -8, -6, -5, -4, -3, -2, -1, -0.5, -1e-2, 0, 1e-2, 0.5, 1, 3, 9])
    x = torch.stack([torch.linspace(*ends, 501)[:-1] for ends in itertools.pairwise(edges)])
    x = x.to(DEVICE)  # (intervals, 500)
    one, definition = torch.ones_like(x), x.double().requires_grad_()
    values = spelled_out(activation, definition)
    slopes = torch.autograd.grad(values.sum(), definition)[0]
    values = forward(x, activation), values.detach(), TORCH[activation](x)
    slopes = activation_backward(one, x, activation)[0], slopes, gradient(activation, one, x)
    for start, *of_interval in zip(edges, *values, *slopes, strict=False):
        assert_rounded_once(*of_interval[:3], f"the value from {start}")
        assert_rounded_once(*of_interval[3:], f"the slope from {start}")


@all_activations
def test_extreme_values(activation):
    """Finite x give finite values, and NaN propagates, which max(x, 0) would not do."""
    x = torch.tensor([-3e38, -1e18, -3e4, -100.0, -0.0, 0.0, 100.0, 3e4, 1e18], device=DEVICE)
    exact = x.double().requires_grad_()
    hidden = TORCH[activation](exact)
    torch.testing.assert_close(forward(x, activation).double(), hidden, rtol=1e-6, atol=0)
    (slopes,) = torch.autograd.grad(hidden.sum(), exact)
    kept = kept_by(activation, x)[None]
    slope, _ = activation_backward(torch.ones_like(kept), kept, activation)
    torch.testing.assert_close(slope[0].double()[1:], slopes[1:], rtol=1e-6, atol=0)
    nan = torch.full((3,), torch.nan, device=DEVICE)
    assert forward(nan, activation).isnan().all()
