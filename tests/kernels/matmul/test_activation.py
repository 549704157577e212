"""The four activations and their derivatives: against fp64, symmetries, extreme values."""

import itertools
import math

import pytest
import torch
from hypothesis import given, strategies

from kernels.matmul.activation import ACTIVATIONS, FROM_HIDDEN, ROWS, activation_backward
from kernels.matmul.activation import activation_forward as forward
from kernels.torch_ops import ACTIVATIONS as TORCH
from tests.numerics import assert_rounded_once, guarded, guarded_memory
from tests.operands import DEVICE, DTYPES, randn

GELUS = ("gelu", "gelu_tanh")


def computed_in(dtype, activation, x, dhidden=None):
    """hidden, or dx if dhidden is given, by PyTorch."""
    x = x.detach().to(dtype).requires_grad_()
    hidden = TORCH[activation](x)
    if dhidden is None:
        return hidden.detach()
    return torch.autograd.grad(hidden, x, dhidden.to(dtype))[0]


def kept_by(activation, x):
    """The tensor that `activation_backward` takes."""
    return forward(x, activation) if activation in FROM_HIDDEN else x


def gradient_in(dtype, activation, kept, dhidden):
    """dx in `dtype` from the saved tensor."""
    kept, dhidden = kept.to(dtype), dhidden.to(dtype)
    if activation == "relu":
        return torch.where(kept > 0, dhidden, 0)
    if activation == "relu_squared":
        return dhidden * 2 * kept.sqrt()
    return computed_in(dtype, activation, kept, dhidden)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_is_rounded_once(activation, dtype):
    for size in (1, 2, 7, 33, 257, 4096, 4097):
        for scale in (0.02, 1.0, 30.0):
            x, check = guarded(randn(size, dtype=dtype, scale=scale, seed=size))
            with guarded_memory():
                hidden = forward(x, activation)
            check()
            exact = computed_in(torch.float64, activation, x)
            baseline = computed_in(torch.float32, activation, x)
            assert hidden.dtype == dtype
            assert_rounded_once(hidden, exact, baseline, f"hidden of {size} times {scale}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_is_rounded_once(activation, dtype):
    for M, N in ((1, 1), (31, 129), (ROWS, 128), (2 * ROWS + 9, 65)):
        for scale in (0.02, 1.0, 30.0):
            dhidden, dhidden_intact = guarded(randn(M, N, dtype=dtype, seed=1))
            kept = kept_by(activation, randn(M, N, dtype=dtype, scale=scale, seed=2))
            kept, kept_intact = guarded(kept)
            with guarded_memory():
                dx, sums = activation_backward(dhidden, kept, activation)
            dhidden_intact()
            kept_intact()
            exact = gradient_in(torch.float64, activation, kept, dhidden)
            baseline = gradient_in(torch.float32, activation, kept, dhidden)
            assert dx.dtype == dtype
            assert_rounded_once(dx, exact, baseline, f"dx of {M} x {N} times {scale}")
            assert sums.dtype == torch.float32
            assert sums.shape == (-(-M // ROWS), N)  # on every GPU
            assert_rounded_once(sums.sum(0), exact.sum(0), baseline.sum(0), f"sums of {M} x {N}")


def spelled_out(activation, x):
    """A GELU in a form that does not cancel, as PyTorch's does."""
    if activation == "gelu":
        return x * 0.5 * torch.special.erfc(-x / math.sqrt(2))
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@pytest.mark.parametrize("activation", GELUS)
def test_every_interval_is_as_exact_as_pytorch(activation):
    """f(x) is small for negative x, where the error of the whole axis would hide its own."""
    edges = torch.tensor([-90, -14, -8, -6, -5, -4, -3, -2, -1, -0.5, -1e-2, 0, 1e-2, 0.5, 1, 3, 9])
    for start, end in itertools.pairwise(edges):
        x = torch.linspace(start, end, 501, device=DEVICE)[:-1]
        one = torch.ones_like(x)
        definition = x.double().requires_grad_()
        exact = spelled_out(activation, definition)
        baseline = computed_in(torch.float32, activation, x)
        assert_rounded_once(forward(x, activation), exact.detach(), baseline, f"[{start}, {end})")
        exact = torch.autograd.grad(exact.sum(), definition)[0]
        baseline = computed_in(torch.float32, activation, x, one)
        slope, _ = activation_backward(one[None], x[None], activation)
        assert_rounded_once(slope[0], exact, baseline, f"slope on [{start}, {end})")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fp64_matches_the_definition(activation):
    x = randn(40, 5, dtype=torch.float64, scale=3.0)
    one, kept = torch.ones_like(x), kept_by(activation, x)
    close = {"rtol": 1e-13, "atol": 1e-14}
    hidden = computed_in(torch.float64, activation, x)
    torch.testing.assert_close(forward(x, activation), hidden, **close)
    slope, sums = activation_backward(one, kept, activation)
    exact = computed_in(torch.float64, activation, x, one)
    torch.testing.assert_close(slope, exact, **close)
    torch.testing.assert_close(sums, exact.sum(0, keepdim=True), **close)


@given(strategies.floats(-60, 60, width=32), strategies.sampled_from(GELUS))
def test_gelus_satisfy_their_symmetry(value, activation):
    """f(x) - f(-x) = x and f'(x) + f'(-x) = 1 within a few roundings."""
    x = torch.tensor([[value, -value]], device=DEVICE)
    right, left = forward(x, activation)[0]
    torch.testing.assert_close(right - left, x[0, 0], rtol=3e-7, atol=0)
    slopes, _ = activation_backward(torch.ones_like(x), x, activation)
    torch.testing.assert_close(slopes.sum(), torch.ones((), device=DEVICE), rtol=3e-7, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_values(activation):
    """Finite x give finite values, and NaN propagates, which max(x, 0) would not do."""
    x = torch.tensor([-3e38, -1e18, -3e4, -100.0, -0.0, 0.0, 100.0, 3e4, 1e18], device=DEVICE)
    hidden = forward(x, activation)
    exact = computed_in(torch.float64, activation, x)
    torch.testing.assert_close(hidden.double(), exact, rtol=1e-6, atol=0)
    slope, _ = activation_backward(
        torch.ones(1, 9, device=DEVICE), kept_by(activation, x)[None], activation
    )
    exact = computed_in(torch.float64, activation, x, torch.ones_like(x))
    torch.testing.assert_close(slope[0].double()[1:], exact[1:], rtol=1e-6, atol=0)
    nan = torch.full((3,), torch.nan, device=DEVICE)
    assert forward(nan, activation).isnan().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_place_gives_the_same_bits(activation):
    x, dhidden = randn(5, 300), randn(5, 300, seed=1)
    expected, (dx, sums) = forward(x, activation), activation_backward(dhidden, x.abs(), activation)
    again, sums_again = activation_backward(dhidden, x.abs(), activation, out=dhidden)
    assert again is dhidden
    assert torch.equal(again, dx)
    assert torch.equal(sums_again, sums)
    assert forward(x, activation, out=x) is x
    assert torch.equal(x, expected)
