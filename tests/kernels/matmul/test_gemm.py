"""Products that finish their tiles: every epilogue, by pointers and by descriptors."""

import contextvars

import pytest
import torch
import triton
from torch.nn.functional import linear

from kernels.common import launch
from kernels.common.philox import rows_kept, threshold_and_scale
from kernels.matmul import gemm
from kernels.matmul.activation import FROM_HIDDEN, activation_backward, activation_forward
from kernels.torch_ops import ACTIVATIONS
from tests.numerics import (
    DEVICE,
    assert_deterministic,
    assert_rounded_once,
    guarded,
    guarded_memory,
    randn,
)

ALIGNED = (129, 264, 72)  # N and K of multiples of 16 bytes: descriptors, where there are any
SHAPES = [(1, 1, 1), (2, 3, 7), (31, 65, 33), ALIGNED]  # M, N, K; the last takes several tiles

# Each tile of `launch.TILES` once: fp32 has one for all cards, sm_100 has those of sm_90.
CARDS = (80, 90, 120)
CARDS_AND_DTYPES = [(80, torch.float32), (90, torch.float16)]
CARDS_AND_DTYPES += [(card, torch.bfloat16) for card in CARDS]


def operands(M, N, K, dtype, epilogue="up"):
    """a (M, K), and what it is multiplied by: a weight (N, K), or (K, N) on the way back."""
    shape = (K, N) if epilogue == "gradient" else (N, K)
    a, b = randn(M, K, dtype=dtype, seed=1), randn(*shape, dtype=dtype, scale=K**-0.5, seed=2)
    return a, b, randn(N, dtype=dtype, seed=3)


def guarded_call(function, *arguments):
    """`function(*arguments)` with its operands and what it allocates between guards."""
    inside, checks = zip(*map(guarded, arguments), strict=True)
    with guarded_memory():
        results = function(*inside)
    for check in checks:
        check()
    return results


on_cards = pytest.mark.parametrize("card", CARDS)
on_cards_and_dtypes = pytest.mark.parametrize(("card", "dtype"), CARDS_AND_DTYPES, ids=str)


def test_no_card_is_left_out():
    x = torch.empty(1, device="meta")
    for name in ("gemm_wide", "gemm_narrow"):
        with launch.target(90):
            hopper = launch.tile(name, x.device)
        with launch.target(100):
            assert launch.tile(name, x.device) == hopper
    assert {*CARDS, 100} == {*launch.FAMILIES}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_cards_and_dtypes
def test_linear_activation(card, dtype, shape):
    x, weight, bias = operands(*shape, dtype)
    with launch.target(card):
        hidden, pre = guarded_call(
            lambda *operands: gemm.linear_activation(*operands, "gelu"), x, weight, bias
        )
    for name, actual, function in (
        ("pre", pre, lambda pre: pre),
        ("hidden", hidden, ACTIVATIONS["gelu"]),
    ):
        exact = function(linear(x.double(), weight.double(), bias.double()))
        assert_rounded_once(actual, exact, function(linear(x, weight, bias)), name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@on_cards_and_dtypes
def test_what_is_kept_is_what_the_activation_was_taken_of(card, dtype, activation):
    """Bit for bit, so that backward differentiates f where forward took it."""
    x, weight, _ = operands(*ALIGNED, dtype)
    with launch.target(card):
        hidden, kept = gemm.linear_activation(x, weight, None, activation)
        _, pre = gemm.linear_activation(x, weight, None, "gelu")
    if activation in FROM_HIDDEN:
        assert kept is hidden
    else:
        assert torch.equal(kept, pre)
    assert torch.equal(hidden, activation_forward(pre, activation))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_cards_and_dtypes
def test_linear_dropout(card, dtype, shape):
    x, weight, bias = operands(*shape, dtype)
    seed = torch.tensor(2**62 + 5, device=DEVICE)
    with launch.target(card):
        y = guarded_call(
            lambda *operands: gemm.linear_dropout(*operands, seed, *threshold_and_scale(0.25)),
            x,
            weight,
            bias,
        )
    keep = rows_kept(seed, gemm.STREAM.value, *y.shape, 0.25)
    exact = linear(x.double(), weight.double(), bias.double())
    exact, baseline = (torch.where(keep, y / 0.75, 0) for y in (exact, linear(x, weight, bias)))
    assert_rounded_once(y, exact, baseline, "y")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_cards_and_dtypes
def test_gradient_of_argument(card, dtype, shape):
    dy, weight, _ = operands(*shape, dtype, "gradient")
    kept = randn(dy.shape[0], weight.shape[1], dtype=dtype, seed=4)
    with launch.target(card):
        dx, sums = guarded_call(
            lambda *operands: gemm.gradient_of_argument(*operands, "gelu"), dy, weight, kept
        )
    exact, baseline = (
        _through_gelu(kept.to(d), dy.to(d) @ weight.to(d)) for d in (torch.float64, dtype)
    )
    assert_rounded_once(dx, exact, baseline, "dx")
    assert_rounded_once(sums.sum(0), exact.sum(0), baseline.sum(0).float(), "sums")


def _through_gelu(x, dhidden):
    x = x.requires_grad_()
    return torch.autograd.grad(ACTIVATIONS["gelu"](x), x, dhidden)[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@on_cards
def test_every_derivative(card, activation):
    """test_activation.py tests the derivatives; here, that the epilogue takes the right one."""
    dy, weight, _ = operands(33, 70, 9, torch.float32, "gradient")
    kept = randn(33, 70, seed=4).abs()
    with launch.target(card):
        dx, sums = gemm.gradient_of_argument(dy, weight, kept, activation)
    expected, expected_sums = activation_backward(dy @ weight, kept, activation)
    torch.testing.assert_close(dx, expected)
    torch.testing.assert_close(sums.sum(0), expected_sums.sum(0))


@on_cards
def test_descriptors_where_they_serve(card):
    """16-bit operands, rows and first elements at multiples of 16 bytes, hardware that has them."""
    M, N, K = ALIGNED
    described = card >= 90

    def is_described(x, weight):
        with launch.record(card) as launches:
            gemm.linear_activation(x, weight, None, "gelu")
        return launches[0].options["DESCRIBED"]

    def empty(rows, columns, dtype=torch.bfloat16, first=0):
        buffer = torch.empty(first + rows * columns, dtype=dtype, device="meta")
        return buffer[first:].view(rows, columns)

    assert is_described(empty(M, K), empty(N, K)) == described
    assert is_described(empty(M, K, first=8), empty(N, K)) == described
    assert not is_described(empty(M, K, first=4), empty(N, K))
    assert not is_described(empty(M, K), empty(N, K, first=1))
    assert not is_described(empty(M, K + 1), empty(N, K + 1))
    assert not is_described(empty(M, K), empty(N + 4, K))  # the rows of the result
    assert not is_described(empty(M, K, torch.float32), empty(N, K, torch.float32))


@on_cards
def test_tiles_outnumber_programs(card):
    """In the interpreter too: or the loop over tiles would be tested nowhere but on a card."""
    M, N, K = 390, 520, 16
    x, weight, bias = operands(M, N, K, torch.bfloat16)
    with launch.record(card) as launches:
        gemm.linear_activation(x, weight, bias, "relu")
    (one,) = launches
    BLOCK_M, BLOCK_N = one.options["BLOCK_M"], one.options["BLOCK_N"]
    tiles = -(-M // BLOCK_M) * -(-N // BLOCK_N)
    programs = min(tiles, gemm._processors(x.device)) if one.options["DESCRIBED"] else tiles
    assert one.grid == (programs,)
    assert programs < tiles or DEVICE == "cuda" or not one.options["DESCRIBED"]
    with launch.target(card):
        hidden, _ = gemm.linear_activation(x, weight, bias, "relu")
    exact = linear(x.double(), weight.double(), bias.double()).relu()
    assert_rounded_once(hidden, exact, linear(x, weight, bias).relu())


@on_cards
def test_same_bits_every_time(card):
    dy, weight, _ = operands(*ALIGNED, torch.bfloat16, "gradient")
    kept = randn(129, 264, dtype=torch.bfloat16)
    with launch.target(card):
        assert_deterministic(lambda: gemm.gradient_of_argument(dy, weight, kept, "gelu"))


def test_the_allocator_of_others_stays():
    """Descriptors need memory from `triton.set_allocator`, which may be in use."""
    from triton.runtime import _allocation

    def theirs(size, alignment, stream):
        raise AssertionError("another's allocator is used")

    def use():
        triton.set_allocator(theirs)
        x, weight, _ = operands(*ALIGNED, torch.bfloat16)
        with launch.target(90):
            gemm.linear_activation(x, weight, None, "gelu")
        return _allocation._allocator.get()

    assert contextvars.copy_context().run(use) is theirs


def test_few_columns_have_a_tile_of_their_own():
    x, weight = (torch.empty(128, 128, dtype=torch.bfloat16, device="meta") for _ in range(2))
    with launch.record(90) as launches:
        gemm.linear_activation(x, weight, None, "gelu")
        gemm.linear_dropout(x, weight, None, None, 0, 1.0)
    tiles = [
        tuple(one.options[size] for size in ("BLOCK_M", "BLOCK_N", "BLOCK_K")) for one in launches
    ]
    assert tiles == [launch.TILES[name][90][:3] for name in ("gemm_wide", "gemm_narrow")]
