"""Cross entropy against PyTorch's in fp64, and properties that hold for any logits."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies
from torch.autograd import gradcheck

from kernels import torch_ops
from kernels.common import launch
from kernels.losses.cross_entropy import cross_entropy
from tests.numerics import assert_rounded_once, guarded, guarded_memory, hold_against
from tests.operands import DEVICE, DTYPES, SIZES, dtypes, randn, sizes

IGNORED = -1
EVERY = {"weight": True, "label_smoothing": 0.125, "z_loss": 0.0625, "softcap": 3.0}
OPTIONS = [
    *({"reduction": reduction} for reduction in ("sum", "none")),
    *({name: value} for name, value in EVERY.items()),
    {"weight": True, "reduction": "none"},
    {"label_smoothing": 0.5, "z_loss": 0.0625},
    *(EVERY | {"reduction": reduction} for reduction in ("mean", "sum", "none")),
]
with_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))


def targets_below(V, *shape, seed=1, ignored=True):
    """Targets of which some, but never all, are ignored."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(V, shape, generator=generator)
    if ignored and targets.numel() > 1:
        targets.view(-1)[1::5] = IGNORED
    return targets.to(DEVICE)


ours = partial(cross_entropy, ignore_index=IGNORED)
exactly = partial(torch_ops.cross_entropy, ignore_index=IGNORED)


def gradient(function, logits, targets, dloss=1.0):
    logits = logits.detach().requires_grad_()
    (dlogits,) = torch.autograd.grad((function(logits, targets) * dloss).sum(), logits)
    return dlogits


def with_weights(options, V, dtype=torch.float32):
    """The options with positive class weights between guards instead of True."""
    weight, _ = guarded(randn(V, dtype=dtype, seed=3).abs() + 0.125)
    return {key: weight if value is True else value for key, value in options.items()}


@pytest.mark.parametrize(
    ("N", "V", "dtype", "scale", "shift"),
    [
        *((5, V, *row) for V in SIZES for row in zip(DTYPES, (1, 30, 1), (0, 0, 100), strict=True)),
        (70, 65, torch.bfloat16, 4, 0),  # more rows than a tile, at odd addresses
        (3, 8192, torch.bfloat16, 4, 0),  # one tile exactly
        (3, 8193, torch.bfloat16, 4, 0),  # and one column more
        (2, 20_003, torch.float16, 4, 0),  # three tiles between two edges
        (3, 9_000, torch.float32, 4, 0),
    ],
)
def test_loss_and_gradient_are_rounded_once(N, V, dtype, scale, shift):
    logits = randn(N, V, dtype=dtype, scale=scale, shift=shift)
    hold_against(ours, exactly, (logits, targets_below(V, N)), out_dtype=torch.float32)


@with_options
@pytest.mark.parametrize(
    ("N", "V", "dtype", "shift"),
    [(4, 1, torch.float32, 0), (70, 65, torch.float32, 0), (3, 9_001, torch.float16, 100)],
)
def test_every_option_is_rounded_once(options, N, V, dtype, shift):
    logits, options = randn(N, V, dtype=dtype, scale=4, shift=shift), with_weights(options, V)
    functions = (partial(function, **options) for function in (ours, exactly))
    hold_against(*functions, (logits, targets_below(V, N)), out_dtype=torch.float32)


@pytest.mark.parametrize(
    ("options", "V"), [*(({}, V) for V in (1, 2, 3, 7, 17)), *((some, 5) for some in OPTIONS)]
)
def test_the_gradient_matches_the_definition(options, V):
    logits = randn(2, V, dtype=torch.float64).requires_grad_()
    targets = targets_below(V, 2, ignored=False)
    options = with_weights(options, V, dtype=torch.float64)
    function = partial(ours, targets=targets, **options)
    assert gradcheck(lambda logits: function(logits) * 3.0, (logits,), fast_mode=V > 2)


@with_options
@pytest.mark.parametrize("function", [ours, exactly])
def test_options_mean_what_they_mean_in_pytorch(function, options):
    logits, targets = randn(2, 6, 9, dtype=torch.float64), targets_below(9, 2, 6)
    options = with_weights(options, 9, dtype=torch.float64)
    actual = function(logits, targets, **options)
    z_loss = options.pop("z_loss", 0.0)
    if cap := options.pop("softcap", 0.0):
        logits = cap * torch.tanh(logits / cap)
    expected = F.cross_entropy(logits.mT, targets, ignore_index=IGNORED, **options)
    squares = z_loss * logits.logsumexp(-1).square() * (targets != IGNORED)  # without the weights
    reduction = options.get("reduction", "mean")
    if reduction != "none":
        squares = squares.sum() / ((targets != IGNORED).sum() if reduction == "mean" else 1)
    torch.testing.assert_close(actual, expected + squares, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("V", "stride"), [(17, 24), (13, 17), (40, 41)])
def test_the_gap_after_a_row_is_neither_read_nor_written(V, stride):
    rows = randn(6, stride, dtype=torch.bfloat16)[:, :V]  # `guarded` fills the gaps with NaN
    hold_against(ours, exactly, (rows, targets_below(V, 6)), out_dtype=torch.float32)


@with_options
def test_loss_and_gradient_are_zero_if_all_targets_are_ignored(options):
    logits = randn(5, 65).requires_grad_()
    with guarded_memory():
        targets = torch.full((5,), IGNORED, device=DEVICE)
        loss = ours(logits, targets, **with_weights(options, 65))
        loss.backward(torch.full_like(loss, math.nan if loss.ndim else 1.0))
    assert not loss.any()
    assert not logits.grad.any()


@pytest.mark.parametrize("function", [ours, exactly])
def test_a_mean_over_targets_without_weight_is_zero(function):
    assert function(randn(3, 9), targets_below(9, 3), weight=torch.zeros(9, device=DEVICE)) == 0


def test_an_ignored_row_is_not_read():
    logits, targets = randn(4, 65), targets_below(65, 4)
    expected = ours(logits, targets), gradient(ours, logits, targets)
    logits[targets == IGNORED] = math.nan
    assert torch.equal(ours(logits, targets), expected[0])
    assert torch.equal(gradient(ours, logits, targets), expected[1])


def test_the_ignored_index_may_be_a_token():
    logits, targets = randn(6, 9, dtype=torch.float64), targets_below(9, 6, ignored=False)
    targets[2] = 4
    for function in (cross_entropy, torch_ops.cross_entropy):
        assert function(logits, targets, ignore_index=4) != function(logits, targets)
    ignoring = cross_entropy(logits, targets, ignore_index=4)
    torch.testing.assert_close(ignoring, torch_ops.cross_entropy(logits, targets, ignore_index=4))


@with_options
@pytest.mark.parametrize("wrong", [9, -2, 2**40])
def test_a_target_outside_the_vocabulary_gives_nan(wrong, options):
    targets = torch.tensor([1, wrong, 3], device=DEVICE)
    loss = ours(randn(3, 9), targets, **with_weights(options, 9))
    assert loss.isnan().tolist() == ([False, True, False] if loss.ndim else True)


@pytest.mark.parametrize("options", [{}, *OPTIONS])
def test_logits_of_minus_infinity_as_in_pytorch(options):
    """Label smoothing makes the loss infinite; without it only the target's logit does."""
    logits, targets = randn(4, 70, dtype=torch.float64), targets_below(33, 4)
    logits[:, 33:] = -math.inf
    logits[3, targets[3]] = -math.inf
    options = with_weights(options, 70, dtype=torch.float64)
    mine, theirs = (partial(function, **options) for function in (ours, exactly))
    torch.testing.assert_close(mine(logits, targets), theirs(logits, targets))
    dlogits = (gradient(of, logits, targets) for of in (mine, theirs))
    torch.testing.assert_close(*dlogits, equal_nan=True)


@given(dtypes(), sizes(130), strategies.integers(-8, 8))
def test_an_exact_shift_of_all_logits_changes_no_bit(dtype, V, shift):
    logits = (randn(3, V) * 4).round() / 4  # quarters up to 16 plus a shift are exact in any dtype
    logits, targets = logits.to(dtype), targets_below(V, 3)
    shifted = logits + shift
    assert torch.equal(ours(logits, targets), ours(shifted, targets))
    assert torch.equal(gradient(ours, logits, targets), gradient(ours, shifted, targets))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dloss", [0.0, 1 / 7, 2.0**16])
def test_the_gradient_is_scaled_before_it_is_rounded(dtype, dloss):
    # 2^16 in fp16: gradients of 1e-8, which a loss scale preserves
    logits, targets = randn(9, 129, dtype=dtype, scale=3), targets_below(129, 9)
    exact = gradient(exactly, logits.double(), targets, dloss)
    baseline = gradient(exactly, logits.float(), targets, dloss)
    assert_rounded_once(gradient(ours, logits, targets, dloss), exact, baseline)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dloss", [1.0, 0.3])
def test_a_second_backward_gives_the_same_bits_and_leaves_the_first_alone(dloss, reduction):
    logits = randn(6, 131, dtype=torch.bfloat16).requires_grad_()
    loss = ours(logits, targets_below(131, 6), reduction=reduction).sum() * dloss
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (third,) = torch.autograd.grad(loss * 2, logits)
    assert torch.equal(first, kept)
    assert torch.equal(second, kept)
    assert torch.equal(third, 2 * kept)
    assert first.data_ptr() != second.data_ptr()


def test_without_a_gradient_the_logits_are_read_once():
    def launched(requires_grad, reduction="mean"):
        logits = torch.empty(8, 9000, device="meta", requires_grad=requires_grad)
        with launch.record(90) as launches:
            ours(logits, torch.zeros(8, dtype=torch.int64), reduction=reduction)
        return [tensor is not None for tensor in launches[0].arguments[6:8]]  # statistics, dlogits

    assert launched(False) == [True, False]
    with torch.no_grad():
        assert launched(True) == [True, False]
    assert launched(True) == launched(True, "sum") == [True, True]
    assert launched(True, "none") == [True, False]
