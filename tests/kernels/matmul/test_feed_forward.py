"""The feed-forward by both routes: fp64, dropout, autocast, saved tensors, routes."""

import pytest
import torch
from torch.autograd import gradcheck

from kernels import torch_ops
from kernels.common import launch
from kernels.common.philox import rows_kept
from kernels.matmul.feed_forward import STREAM, feed_forward
from tests.numerics import assert_rounded_once, hold_against
from tests.operands import DEVICE, DTYPES, randn

ACTIVATIONS = tuple(torch_ops.ACTIVATIONS)
ROUTES = (launch.CUBLAS, launch.GEMM)
SEED = torch.tensor(20 * 2**32 + 26, device=DEVICE)

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


def by(route, **options):
    def operation(*operands):
        with launch.routed(route):
            return feed_forward(*operands, **options)

    return operation


def torchs(activation="gelu", dropout_p=0.0):
    """PyTorch's feed-forward with the mask that the kernels draw from `SEED`."""

    def operation(*operands):
        y = torch_ops.feed_forward(*operands, activation=activation)
        if dropout_p == 0:
            return y
        keep = rows_kept(SEED, STREAM.value, y.shape[:-1].numel(), y.shape[-1], dropout_p)
        return torch.where(keep.view(y.shape), y / (1 - dropout_p), 0)

    return operation


# --- values and gradients -------------------------------------------------------------------------


@on_both_routes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("activation", "dropout_p"), [(name, 0) for name in ACTIVATIONS] + [("gelu", 0.25)]
)
def test_values_and_gradients_against_fp64(activation, dropout_p, dtype, route):
    """Intermediate results are rounded, so the baseline is PyTorch in the same dtype."""
    operation = by(route, activation=activation, dropout_p=dropout_p, seed=SEED)
    hold_against(operation, torchs(activation, dropout_p), operands(33, dtype=dtype), compute=dtype)


@on_both_routes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_nan_propagates_to_its_row_only(activation, dtype, route):
    """The ReLU of NaN must be NaN, also by cuBLAS, which needs C and F to be multiples of 16."""
    x, *weights = operands(64, C=32, F=64, dtype=dtype)
    x[3, 5] = float("nan")
    y = by(route, activation=activation)(x, *weights)
    assert y[3].isnan().all()
    assert y.isfinite().sum() == 63 * 32


ODD = [(name, route, 1, 3, 2) for name in ACTIVATIONS for route in ROUTES]  # M, C, F
ODD += [("gelu", launch.CUBLAS, *sizes) for sizes in ((1, 1, 1), (2, 3, 7), (3, 7, 2))]


@pytest.mark.parametrize(("activation", "route", "M", "C", "F"), ODD)
def test_gradients_match_the_definition(activation, route, M, C, F):
    inside = [x.requires_grad_() for x in operands(M, C=C, F=F, dtype=torch.float64)]
    operation = by(route, activation=activation, dropout_p=0.25, seed=SEED)
    assert gradcheck(operation, inside, fast_mode=C * F > 6)  # in one random direction


# --- dropout --------------------------------------------------------------------------------------


@on_both_routes
def test_dropout_has_its_rate_and_scales_kept_elements(route):
    x, w1, b1, w2, _ = operands(300)
    b2 = torch.full((24,), 100.0, device=DEVICE)  # without dropout no element is 0
    y = by(route, dropout_p=0.25)(x, w1, b1, w2, b2)
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - 0.25) < 4 * (0.25 * 0.75 / y.numel()) ** 0.5
    torch.testing.assert_close(y[y != 0], (torchs()(x, w1, b1, w2, b2) / 0.75)[y != 0])


def test_both_routes_have_the_same_mask():
    inside = operands(35, C=260, F=16)  # several tiles
    zeros = [by(route, dropout_p=0.5, seed=SEED)(*inside) == 0 for route in ROUTES]
    assert torch.equal(*zeros)


# --- autocast and saved tensors -------------------------------------------------------------------


@on_both_routes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_casts_as_a_linear_layer_does(dtype, route):
    leaves = [x.requires_grad_() for x in operands(33)]
    casts = [leaf.detach().to(dtype).double().requires_grad_() for leaf in leaves]
    dy = randn(33, 24, dtype=dtype, seed=6)
    with torch.autocast(DEVICE, dtype):
        y, chain = by(route)(*leaves), torchs()(*leaves)
    assert y.dtype == chain.dtype == dtype
    exact = torchs()(*casts)
    assert_rounded_once(y.detach(), exact.detach(), chain.detach(), "y")
    passes = ((y, leaves, dy), (exact, casts, dy.double()), (chain, leaves, dy))
    for actual, e, baseline in zip(*(torch.autograd.grad(*one) for one in passes), strict=True):
        assert actual.dtype == torch.float32  # the parameters'
        assert_rounded_once(actual, e, baseline, "a gradient")


@on_both_routes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_two_calls_in_a_graph_and_two_backwards(activation, route):
    """A saved tensor that backward overwrites would change the second result."""

    def gradients(operation, dtype):
        x, *parameters = leaves = [x.to(dtype).requires_grad_() for x in operands(33)]
        loss = operation(operation(x, *parameters), *parameters).square().sum()
        return [torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2)]

    operation = by(route, activation=activation, dropout_p=0.25, seed=SEED)
    first, second = gradients(operation, torch.float32)
    exact, baseline = (
        gradients(torchs(activation, 0.25), dtype)[0] for dtype in (torch.float64, torch.float32)
    )
    for once, again, e, b in zip(first, second, exact, baseline, strict=True):
        assert torch.equal(once, again)
        assert_rounded_once(once, e, b)


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


# --- routes ---------------------------------------------------------------------------------------


def launched(family, dtype=torch.bfloat16, C=384, dropout_p=0.2):
    """The kernels that forward and backward launch, with their epilogues."""
    shapes = (16_384, C), (4 * C, C), (4 * C,), (C, 4 * C), (C,)
    inside = [torch.empty(s, dtype=dtype, device="meta").requires_grad_() for s in shapes]
    with launch.record(family) as launches:
        y = feed_forward(*inside, dropout_p=dropout_p)
        y.backward(torch.empty_like(y))
    return [
        " ".join((one.kernel.fn.__name__, one.options.get("EPILOGUE", ""))).strip()
        for one in launches
    ]


ACTIVATE, DERIVE = "activation_forward_kernel", "activation_backward_kernel"
PASSES = [ACTIVATE, "dropout_kernel", "dropout_kernel", DERIVE]


@pytest.mark.parametrize("family", launch.SHARED_MEMORY)
def test_products_use_the_measured_route(family):
    """On Hopper with 384 channels, the gradient of the activation is an epilogue."""
    derive = "gemm_kernel derivative" if family == 90 else DERIVE
    assert launched(family, C=384) == [*PASSES[:3], derive]
    assert launched(family, C=384, dropout_p=0) == [ACTIVATE, derive]
    assert launched(family, C=768) == launched(family, C=512) == PASSES


def test_a_row_of_the_table_changes_the_route(monkeypatch):
    """Only for its own family, dtype and shape."""
    row = launch.Route("gemm", "gemm")
    monkeypatch.setitem(launch.ROUTES, 90, {(2, 384, 1_536): row})
    mixed = ["gemm_kernel activate", *PASSES[1:3], "gemm_kernel derivative"]
    assert launched(90) == mixed
    assert launched(90, dtype=torch.float16) == mixed
    assert launched(80) == launched(100) == launched(90, C=512) == PASSES
    assert launched(90, dtype=torch.float32) == PASSES
    with launch.routed(launch.GEMM):
        assert launched(120) == mixed
