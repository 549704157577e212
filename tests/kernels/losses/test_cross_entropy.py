"""Cross entropy against PyTorch's in fp64, and properties that hold for any logits."""

import math

import pytest
import torch
from hypothesis import given, strategies
from torch.autograd import gradcheck

from kernels import torch_ops
from kernels.common import launch
from kernels.losses.cross_entropy import cross_entropy
from tests.numerics import assert_rounded_once, guarded_memory, hold_against
from tests.operands import DEVICE, DTYPES, SIZES, dtypes, layouts, randn, sizes

IGNORED = -1


def targets_below(V, *shape, seed=1, ignored=True):
    """Targets of which some, but never all, are ignored."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(V, shape, generator=generator)
    if ignored and targets.numel() > 1:
        targets.view(-1)[1::5] = IGNORED
    return targets.to(DEVICE)


def ours(logits, targets):
    return cross_entropy(logits, targets, ignore_index=IGNORED)


def exactly(logits, targets):
    return torch_ops.cross_entropy(logits, targets, ignore_index=IGNORED)


def gradient(function, logits, targets, dloss=1.0):
    logits = logits.detach().requires_grad_()
    (dlogits,) = torch.autograd.grad(function(logits, targets) * dloss, logits)
    return dlogits


@pytest.mark.parametrize("V", SIZES)
def test_loss_and_gradient_are_rounded_once(V):
    for dtype, scale, shift in zip(DTYPES, (1, 30, 1), (0, 0, 100), strict=True):
        logits = randn(5, V, dtype=dtype, scale=scale, shift=shift)
        hold_against(ours, exactly, (logits, targets_below(V, 5)), out_dtype=torch.float32)


@pytest.mark.parametrize(
    ("N", "V", "dtype"),
    [
        (70, 65, torch.bfloat16),  # more rows than a tile, at odd addresses
        (3, 8192, torch.bfloat16),  # one tile exactly
        (3, 8193, torch.bfloat16),  # and one column more
        (2, 20_003, torch.float16),  # three tiles between two edges
        (3, 9_000, torch.float32),
    ],
)
def test_rows_longer_than_a_tile(N, V, dtype):
    logits = randn(N, V, dtype=dtype, scale=4)
    hold_against(ours, exactly, (logits, targets_below(V, N)), out_dtype=torch.float32)


@pytest.mark.parametrize("V", [1, 2, 3, 7, 17])
def test_the_gradient_matches_the_definition(V):
    logits = randn(2, V, dtype=torch.float64).requires_grad_()
    targets = targets_below(V, 2, ignored=False)
    assert gradcheck(lambda logits: ours(logits, targets) * 3.0, (logits,))


@given(layouts(), layouts(), dtypes(), sizes(130), strategies.sampled_from([(3,), (2, 3), (1,)]))
def test_any_strides(of_logits, of_targets, dtype, V, shape):
    logits, targets = randn(*shape, V, dtype=dtype), targets_below(V, *shape)
    arguments = of_logits(logits), of_targets(targets)
    hold_against(ours, exactly, arguments, out_dtype=torch.float32)


@pytest.mark.parametrize(("V", "stride"), [(17, 24), (13, 17), (40, 41)])
def test_the_gap_after_a_row_is_neither_read_nor_written(V, stride):
    rows = randn(6, stride, dtype=torch.bfloat16)[:, :V]  # `guarded` fills the gaps with NaN
    hold_against(ours, exactly, (rows, targets_below(V, 6)), out_dtype=torch.float32)


def test_loss_and_gradient_are_zero_if_all_targets_are_ignored():
    logits = randn(5, 65).requires_grad_()
    with guarded_memory():
        loss = ours(logits, torch.full((5,), IGNORED, device=DEVICE))
        loss.backward()
    assert loss == 0
    assert not logits.grad.any()


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


@pytest.mark.parametrize("wrong", [9, -2, 2**40])
def test_a_target_outside_the_vocabulary_gives_nan(wrong):
    logits = randn(3, 9)
    assert ours(logits, torch.tensor([1, wrong, 3], device=DEVICE)).isnan()


def test_logits_of_minus_infinity_have_no_probability():
    logits, targets = randn(4, 70, dtype=torch.float64), targets_below(33, 4)
    logits[:, 33:] = -math.inf
    expected = exactly(logits[:, :33], targets)
    torch.testing.assert_close(ours(logits, targets), expected, rtol=1e-14, atol=0)
    dlogits = gradient(ours, logits, targets)
    assert not dlogits[:, 33:].any()
    torch.testing.assert_close(dlogits[:, :33], gradient(exactly, logits[:, :33], targets))


@given(dtypes(), sizes(130), strategies.integers(-8, 8))
def test_an_exact_shift_of_all_logits_changes_no_bit(dtype, V, shift):
    logits = (randn(3, V) * 4).round() / 4  # quarters up to 16 plus a shift are exact in any dtype
    logits, targets = logits.to(dtype), targets_below(V, 3)
    shifted = logits + shift
    assert torch.equal(ours(logits, targets), ours(shifted, targets))
    assert torch.equal(gradient(ours, logits, targets), gradient(ours, shifted, targets))


@given(sizes(), strategies.floats(0.01, 50))
def test_a_row_of_the_gradient_sums_to_zero(V, scale):
    dlogits = gradient(ours, randn(3, V, scale=scale), targets_below(V, 3))
    assert dlogits.sum(-1).abs().max() <= 4 * V * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dloss", [0.0, 1 / 7, 2.0**16])
def test_the_gradient_is_scaled_before_it_is_rounded(dtype, dloss):
    # 2^16 in fp16: gradients of 1e-8, which a loss scale preserves
    logits, targets = randn(9, 129, dtype=dtype, scale=3), targets_below(129, 9)
    exact = gradient(exactly, logits.double(), targets, dloss)
    baseline = gradient(exactly, logits.float(), targets, dloss)
    assert_rounded_once(gradient(ours, logits, targets, dloss), exact, baseline)


@pytest.mark.parametrize("dloss", [1.0, 0.3])
def test_a_second_backward_gives_the_same_bits_and_leaves_the_first_alone(dloss):
    logits = randn(6, 131, dtype=torch.bfloat16).requires_grad_()
    loss = ours(logits, targets_below(131, 6)) * dloss
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (third,) = torch.autograd.grad(loss * 2, logits)
    assert torch.equal(first, kept)
    assert torch.equal(second, kept)
    assert torch.equal(third, 2 * kept)
    assert first.data_ptr() != second.data_ptr()


def test_without_a_gradient_the_logits_are_read_once():
    def launched(**options):
        with launch.record(90) as launches:
            ours(torch.empty(8, 9000, device="meta", **options), torch.zeros(8, dtype=torch.int64))
        return launches[0].arguments[4:6]  # statistics, dlogits

    assert launched() == (None, None)
    with torch.no_grad():
        assert launched(requires_grad=True) == (None, None)
    assert None not in launched(requires_grad=True)
