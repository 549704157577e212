"""The feed-forward by both routes: fp64, saved tensors, routes."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from kernels import torch_ops
from kernels.common import launch
from kernels.matmul.feed_forward import feed_forward
from tests.numerics import hold_against
from tests.operands import DTYPES, randn

ACTIVATIONS = tuple(torch_ops.ACTIVATIONS)
ROUTES = (launch.CUBLAS, launch.GEMM)

on_both_routes = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.up)


def operands(*leading, C=24, F=72, dtype=torch.float32, biases=True):
    """x, w1, b1, w2, b2 for which all values are of order 1."""
    return (
        randn(*leading, C, dtype=dtype, seed=1),
        randn(F, C, dtype=dtype, scale=C**-0.5, seed=2),
        randn(F, dtype=dtype, seed=3) if biases else None,
        randn(C, F, dtype=dtype, scale=F**-0.5, seed=4),
        randn(C, dtype=dtype, seed=5) if biases else None,
    )


def by(route, *operands, **options):
    with launch.routed(route):
        return feed_forward(*operands, **options)


@on_both_routes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_gradients_against_fp64(activation, dtype, route):
    """Intermediate results are rounded, so the baseline is PyTorch in the same dtype."""
    functions = partial(by, route), torch_ops.feed_forward
    functions = (partial(function, activation=activation) for function in functions)
    inside = operands(133, C=136, F=24, dtype=dtype)  # several tiles of dpre
    hold_against(*functions, inside, compute=dtype)


@on_both_routes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_nan_propagates_to_its_row_only(activation, dtype, route):
    """The ReLU of NaN must be NaN, also by cuBLAS, which needs C and F to be multiples of 16."""
    x, *weights = operands(64, C=32, F=64, dtype=dtype)
    x[3, 5] = float("nan")
    y = by(route, x, *weights, activation=activation)
    assert y[3].isnan().all()
    assert y.isfinite().sum() == 63 * 32


@on_both_routes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_match_the_definition(activation, route):
    """Also of a second backward, with the same bits: what is saved is not overwritten."""
    for M, C, F in ((1, 1, 1), (2, 3, 7)):
        inside = [x.requires_grad_() for x in operands(M, C=C, F=F, dtype=torch.float64)]
        operation = partial(by, route, activation=activation)
        assert gradcheck(operation, inside, fast_mode=True)  # in one random direction


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_relu_saves_half_as_much_as_a_gelu(activation):
    kept = {}

    def remember(tensor):
        if tensor.numel() == 33 * 72:
            kept[tensor.data_ptr()] = tensor
        return tensor

    leaves = [x.requires_grad_() for x in operands(33)]
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        feed_forward(*leaves, activation=activation)
    assert len(kept) == (1 if activation in ("relu", "relu_squared") else 2)


def launched(family, dtype=torch.bfloat16, C=384, **options):
    """The kernels that forward and backward launch, with their epilogues."""
    shapes = (16_384, C), (4 * C, C), (4 * C,), (C, 4 * C), (C,)
    inside = [torch.empty(s, dtype=dtype, device="meta").requires_grad_() for s in shapes]
    with launch.record(family) as launches:
        y = feed_forward(*inside, **options)
        y.backward(torch.empty_like(y))
    names = [(one.kernel.fn.__name__, one.options.get("EPILOGUE", "")) for one in launches]
    names = [" ".join(name).strip() for name in names]
    return [name for name in names if name != "sum_shares_kernel"]  # db1


ACTIVATE, DERIVE = "activation_forward_kernel", "activation_backward_kernel"
PASSES = [ACTIVATE, DERIVE]


def test_products_use_the_measured_route(monkeypatch):
    """On Hopper with 384 channels, our own products have epilogues."""
    derive = "gemm_kernel derivative"
    mixed = ["gemm_kernel activate", derive]
    for family in launch.SHARED_MEMORY:
        measured = family == 90
        assert launched(family, C=768) == launched(family, C=512) == PASSES
        assert launched(family) == [ACTIVATE, derive if measured else DERIVE]
        relu = launched(family, activation="relu")
        assert relu == [derive if measured else DERIVE]
        assert launched(family, activation="relu_squared") == (mixed if measured else PASSES)
    # a row is for its own family, dtype, shape and activation
    monkeypatch.setitem(launch.ROUTES, 90, {(2, 384, 1_536, "gelu"): launch.GEMM})
    assert launched(90) == launched(90, dtype=torch.float16) == mixed
    assert launched(80) == launched(90, dtype=torch.float32) == launched(90, C=512) == PASSES
    assert launched(90, activation="gelu_tanh") == PASSES
    with launch.routed(launch.GEMM):
        assert launched(120) == mixed
