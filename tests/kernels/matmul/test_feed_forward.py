"""The feed-forward by both routes: the lecture's module, fp64, and what training does to it."""

import inspect

import pytest
import torch
from hypothesis import given, settings, strategies
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from gpt.config.model import ModelConfig
from gpt.models import layouts as weights
from gpt.models import reference
from kernels import torch_ops
from kernels.common import launch
from kernels.common.philox import rows_kept
from kernels.matmul import gemm
from kernels.matmul.feed_forward import feed_forward
from tests.numerics import (
    DEVICE,
    DTYPES,
    assert_deterministic,
    assert_rounded_once,
    differentiate,
    hold_against,
    layouts,
    randn,
)

ACTIVATIONS = tuple(torch_ops.ACTIVATIONS)
ROUTES = (launch.CUBLAS, launch.GEMM)
SEED = torch.tensor(20 * 2**32 + 26, device=DEVICE)

on_both_routes = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.up)


def operands(*leading, C=24, F=72, dtype=torch.float32, biases=True):
    """x, w1, b1, w2, b2, with numbers of about one everywhere."""
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


def oracle(activation="gelu", dropout_p=0.0):
    """PyTorch's, with the dropout that the kernels draw from `SEED`."""

    def operation(*operands):
        y = torch_ops.feed_forward(*operands, activation=activation)
        if dropout_p == 0:
            return y
        keep = rows_kept(SEED, gemm.STREAM.value, y.shape[:-1].numel(), y.shape[-1], dropout_p)
        return torch.where(keep.view(y.shape), y / (1 - dropout_p), 0)

    return operation


# --- what it computes -----------------------------------------------------------------------------


@on_both_routes
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_lectures_module(activation, bias, dropout, route):
    config = ModelConfig(
        vocab_size=5,
        n_layer=1,
        n_head=1,
        n_embd=16,
        dropout=dropout,
        bias=bias,
        activation=activation,
    )
    torch.manual_seed(1)
    model = reference.GPT(config).to(DEVICE)
    fused = weights.packed_from_lecture(model.state_dict(), config)
    lecture = model.blocks[0].ffwd
    keep = rows_kept(SEED, gemm.STREAM.value, 10, 16, dropout).view(2, 5, 16)
    lecture.net[3].forward = lambda y: y * keep / (1 - dropout)  # for the mask of nn.Dropout
    names = ("up.weight", "up.bias", "down.weight", "down.bias")
    parameters = [fused.get(f"blocks.0.ffwd.{name}") for name in names]
    parameters = [None if w is None else (w * 10).requires_grad_() for w in parameters]
    with torch.no_grad():  # from 0.02, where every activation is straight
        for parameter in lecture.parameters():
            parameter *= 10
    x, dy = (randn(2, 5, 16, seed=seed).requires_grad_() for seed in (2, 3))

    y = by(route, activation=activation, dropout_p=dropout, seed=SEED)(x, *parameters)
    truth = lecture(x)
    torch.testing.assert_close(y, truth)
    actual = torch.autograd.grad(y, [x, *(w for w in parameters if w is not None)], dy)
    expected = torch.autograd.grad(truth, [x, *lecture.parameters()], dy)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@on_both_routes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("activation", "dropout_p"), [(name, 0) for name in ACTIVATIONS] + [("gelu", 0.25)]
)
def test_values_and_gradients_against_fp64(activation, dropout_p, dtype, route):
    """Products round in the middle: the baseline is PyTorch's chain in the same dtype."""
    operation = by(route, activation=activation, dropout_p=dropout_p, seed=SEED)
    hold_against(operation, oracle(activation, dropout_p), operands(33, dtype=dtype), compute=dtype)


@on_both_routes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_reaches_its_row_and_no_other(activation, dtype, route):
    """A ReLU of NaN may not be 0: the loss has to show it. C and F are multiples of 16, as cuBLAS
    wants them for its own ReLU."""
    x, *weights = operands(64, C=32, F=64, dtype=dtype)
    x[3, 5] = float("nan")
    y = by(route, activation=activation)(x, *weights)
    assert y[3].isnan().all()
    assert y.isfinite().sum() == 63 * 32


ODD = [(name, route, 1, 3, 2) for name in ACTIVATIONS for route in ROUTES]  # M, C, F
ODD += [("gelu", launch.CUBLAS, *sizes) for sizes in ((1, 1, 1), (2, 3, 7), (3, 7, 2))]


@pytest.mark.parametrize(("activation", "route", "M", "C", "F"), ODD)
def test_gradients_are_the_derivatives(activation, route, M, C, F):
    inside = [x.requires_grad_() for x in operands(M, C=C, F=F, dtype=torch.float64)]
    operation = by(route, activation=activation, dropout_p=0.25, seed=SEED)
    assert gradcheck(operation, inside, fast_mode=C * F > 6)  # in one random direction


@on_both_routes
@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (2, 0)], ids=str)
def test_any_number_of_dimensions(leading, route):
    hold_against(by(route), oracle(), operands(*leading))


@settings(max_examples=10)
@given(strategies.lists(layouts(), min_size=5, max_size=5), strategies.sampled_from(ROUTES))
def test_any_strides(arrange, route):
    inside = [change(x) for change, x in zip(arrange, operands(2, 3), strict=True)]
    hold_against(by(route, dropout_p=0.25, seed=SEED), oracle(dropout_p=0.25), inside)


@on_both_routes
def test_a_gradient_of_any_strides(route):
    """That of a sum has none at all."""
    leaves = [x.requires_grad_() for x in operands(4)]
    actual = torch.autograd.grad(by(route)(*leaves).sum(), leaves)
    expected = torch.autograd.grad(oracle()(*leaves).sum(), leaves)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@on_both_routes
@pytest.mark.parametrize("wanted", range(5))
def test_only_the_gradients_that_are_wanted(wanted, route):
    inside = operands(9)
    inside[wanted].requires_grad_()
    (actual,), (expected,) = (
        torch.autograd.grad(operation(*inside).square().sum(), inside[wanted])
        for operation in (by(route), oracle())
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# --- dropout --------------------------------------------------------------------------------------


@on_both_routes
def test_the_mask_goes_on_beyond_a_tile(route):
    inputs = operands(35, C=260, F=16)
    hold_against(by(route, dropout_p=0.25, seed=SEED), oracle(dropout_p=0.25), inputs)


@on_both_routes
def test_dropout_drops_its_share_and_scales_the_rest(route):
    x, w1, b1, w2, _ = operands(300)
    b2 = torch.full((24,), 100.0, device=DEVICE)  # no element is 0 but by dropout
    y = by(route, dropout_p=0.25)(x, w1, b1, w2, b2)
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - 0.25) < 4 * (0.25 * 0.75 / y.numel()) ** 0.5
    torch.testing.assert_close(y[y != 0], (oracle()(x, w1, b1, w2, b2) / 0.75)[y != 0])


def test_dropout_is_the_same_by_both_routes():
    inside = operands(40)
    zeros = [by(route, dropout_p=0.5, seed=SEED)(*inside) == 0 for route in ROUTES]
    assert torch.equal(*zeros)


@on_both_routes
def test_seeds_come_from_the_generator_of_the_device(route):
    inside = operands(40)

    def dropped():
        return by(route, dropout_p=0.5)(*inside) == 0

    torch.manual_seed(3)
    first, second = dropped(), dropped()
    torch.manual_seed(3)
    assert torch.equal(first, dropped())
    assert not torch.equal(first, second)


@on_both_routes
def test_all_or_nothing(route):
    inside = operands(4)
    assert not by(route, dropout_p=1.0)(*inside).any()
    state = torch.get_rng_state()
    torch.testing.assert_close(by(route)(*inside), oracle()(*inside))
    assert torch.equal(torch.get_rng_state(), state)  # no seed is drawn where nothing is dropped


# --- what training does to it ---------------------------------------------------------------------


@on_both_routes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_casts_as_a_linear_layer_does(dtype, route):
    leaves = [x.requires_grad_() for x in operands(33)]
    casts = [leaf.detach().to(dtype).double().requires_grad_() for leaf in leaves]
    dy = randn(33, 24, dtype=dtype, seed=6)
    with torch.autocast(DEVICE, dtype):
        y, chain = by(route)(*leaves), oracle()(*leaves)
    assert y.dtype == chain.dtype == dtype
    exact = oracle()(*casts)
    assert_rounded_once(y.detach(), exact.detach(), chain.detach(), "y")
    exact = torch.autograd.grad(exact, casts, dy.double())
    for actual, e, baseline in zip(
        torch.autograd.grad(y, leaves, dy),
        exact,
        torch.autograd.grad(chain, leaves, dy),
        strict=True,
    ):
        assert actual.dtype == torch.float32  # the parameters'
        assert_rounded_once(actual, e, baseline, "a gradient")


def test_autocast_leaves_fp64_alone():
    with torch.autocast(DEVICE, torch.bfloat16):
        assert feed_forward(*operands(3, dtype=torch.float64)).dtype == torch.float64


@on_both_routes
def test_activation_checkpointing_replays_dropout(route):
    leaves = [x.requires_grad_() for x in operands(33)]
    operation = by(route, dropout_p=0.5)
    gradients = []
    for run in (operation, lambda *inside: checkpoint(operation, *inside, use_reentrant=False)):
        torch.manual_seed(4)
        gradients.append(torch.autograd.grad(run(*leaves).square().sum(), leaves))
    for once, again in zip(*gradients, strict=True):
        assert torch.equal(once, again)


@on_both_routes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_twice_in_a_graph_and_twice_backward(activation, route):
    """A tensor that backward overwrote would differ the second time."""

    def gradients(operation, dtype):
        x, *parameters = leaves = [x.to(dtype).requires_grad_() for x in operands(33)]
        loss = operation(operation(x, *parameters), *parameters).square().sum()
        return [torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2)]

    operation = by(route, activation=activation, dropout_p=0.25, seed=SEED)
    first, second = gradients(operation, torch.float32)
    exact, baseline = (
        gradients(oracle(activation, 0.25), dtype)[0] for dtype in (torch.float64, torch.float32)
    )
    for once, again, e, b in zip(first, second, exact, baseline, strict=True):
        assert torch.equal(once, again)
        assert_rounded_once(once, e, b)


@on_both_routes
def test_same_bits_every_time(route):
    inside, dy = operands(200, dtype=torch.bfloat16), (randn(200, 24, dtype=torch.bfloat16),)
    operation = by(route, dropout_p=0.25, seed=SEED)
    assert_deterministic(lambda: sum(differentiate(operation, inside, dy), ()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_relu_keeps_half_of_what_a_gelu_keeps(activation):
    kept = {}

    def remember(tensor):
        if tensor.numel() == 33 * 72:
            kept[tensor.data_ptr()] = tensor
        return tensor

    leaves = [x.requires_grad_() for x in operands(33)]
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        feed_forward(*leaves, activation=activation)
    assert len(kept) == (1 if activation in ("relu", "relu_squared") else 2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # PyTorch's own
# --- who computes it ------------------------------------------------------------------------------


def launched(card, dtype=torch.bfloat16, C=384, dropout_p=0.2):
    """The kernels that forward and backward launch, and which epilogues of the product."""
    shapes = (16_384, C), (4 * C, C), (4 * C,), (C, 4 * C), (C,)
    inside = [torch.empty(s, dtype=dtype, device="meta").requires_grad_() for s in shapes]
    with launch.record(card) as launches:
        y = feed_forward(*inside, dropout_p=dropout_p)
        y.backward(torch.empty_like(y))
    return [
        " ".join((one.kernel.fn.__name__, one.options.get("EPILOGUE", ""))).strip()
        for one in launches
    ]


ACTIVATE, DERIVE = "activation_forward_kernel", "activation_backward_kernel"
PASSES = [ACTIVATE, "dropout_kernel", "dropout_kernel", DERIVE]


@pytest.mark.parametrize("card", launch.SHARED_MEMORY)
def test_products_go_by_a_route_that_was_measured(card):
    """On Hopper, at 384 channels, the activation's gradient by a product that finishes it."""
    derive = "gemm_kernel derivative" if card == 90 else DERIVE
    assert launched(card, C=384) == [*PASSES[:3], derive]
    assert launched(card, C=384, dropout_p=0) == [ACTIVATE, derive]
    assert launched(card, C=768) == launched(card, C=512) == PASSES


def test_a_row_of_the_table_changes_the_route(monkeypatch):
    """Of its own family, dtype and shape alone, product by product."""
    row = launch.Route("gemm", "cublas", "gemm")
    monkeypatch.setitem(launch.ROUTES, 90, {(2, 384, 1_536): row})
    mixed = ["gemm_kernel activate", *PASSES[1:3], "gemm_kernel derivative"]
    assert launched(90) == mixed
    assert launched(90, dtype=torch.float16) == mixed
    for other in (
        launched(90, C=512),
        launched(80),
        launched(100),
        launched(90, dtype=torch.float32),
    ):
        assert other == PASSES
    with launch.routed(launch.GEMM):
        assert launched(120) == [
            "gemm_kernel activate",
            "gemm_kernel dropout",
            "dropout_kernel",
            "gemm_kernel derivative",
        ]


# --- what it refuses ------------------------------------------------------------------------------


def test_the_signature_is_pytorchs():
    assert inspect.signature(feed_forward) == inspect.signature(torch_ops.feed_forward)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("x", (3, 25)),
        ("x", ()),
        ("w1", (72,)),
        ("w1", (72, 24, 1)),
        ("w1", (24, 72)),
        ("b1", (24,)),
        ("b1", (72, 1)),
        ("w2", (72, 24)),
        ("b2", (72,)),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, shape):
    inside = dict(zip(("x", "w1", "b1", "w2", "b2"), operands(3), strict=True))
    inside[name] = randn(*shape)
    with pytest.raises(ValueError, match="feed_forward takes x ") as raised:
        feed_forward(**inside)
    assert f"{name} {shape}" in str(raised.value)


def test_dtypes_that_differ_are_named():
    x, *parameters = operands(3)
    with pytest.raises(ValueError, match=r"x torch\.bfloat16, w1 torch\.float32"):
        feed_forward(x.bfloat16(), *parameters)


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="'swish' is unknown; choose one of relu, gelu"):
        feed_forward(*operands(3), activation="swish")
    with pytest.raises(ValueError, match="dropout_p"):
        feed_forward(*operands(3), dropout_p=1.5)
