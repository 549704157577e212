"""The instruments themselves: what they must let pass, and what they must not."""

import math

import pytest
import torch
import triton
import triton.language as tl

from kernels.launch import launch
from tests import instruments
from tests.instruments import DEVICE, LAYOUTS, randn


@triton.jit
def _cast(source_ptr, target_ptr, LENGTH: tl.constexpr, THROUGH: tl.constexpr):
    at = tl.arange(0, LENGTH)
    tl.store(target_ptr + at, tl.load(source_ptr + at).to(THROUGH))


@triton.jit
def _dot(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    tl.store(out_ptr + at, product)


def cast(source, dtype, through):
    target = torch.empty(source.shape, dtype=dtype, device=DEVICE)
    launch(_cast, (1,), source, target, LENGTH=len(source), THROUGH=through)
    return target


def hard_numbers():
    """Every bf16 pattern; beside each the tie above it, and the fp32 next to the tie."""
    pattern = torch.arange(2**16, dtype=torch.int64) << 16
    bits = torch.cat([pattern, pattern + 0x7FFF, pattern + 0x8000, pattern + 0x8001])
    return bits.to(torch.int32).view(torch.float32).to(DEVICE)  # wraps: the sign bit included


def assert_same_numbers(a, b):
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a[~a.isnan()], b[~b.isnan()])


def test_bf16_casts_round_to_nearest_even():
    x = hard_numbers()  # ties, infinities, NaN, subnormals, overflow to infinity
    assert_same_numbers(cast(x, torch.bfloat16, tl.bfloat16), x.bfloat16())


def test_bf16_widens_exactly():
    x = hard_numbers()[: 2**16].bfloat16()
    assert_same_numbers(cast(x, torch.float32, tl.float32), x.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_bf16_to_and_from_other_types(dtype):
    through = {torch.float16: tl.float16, torch.float64: tl.float64, torch.int32: tl.int32}[dtype]
    x = randn(256, scale=100, dtype=torch.bfloat16)
    assert torch.equal(cast(x, dtype, through), x.to(dtype))
    assert torch.equal(cast(x.to(dtype), torch.bfloat16, tl.bfloat16), x.to(dtype).bfloat16())


def test_bf16_dot_multiplies_numbers():
    a, b = randn(32, 32, dtype=torch.bfloat16), randn(32, 32, dtype=torch.bfloat16, seed=1)
    out = torch.empty(32, 32, device=DEVICE)
    launch(_dot, (1,), a, b, out, N=32)
    instruments.assert_rounded_once(out, a.double() @ b.double(), a.float() @ b.float())


@triton.jit
def _double(x_ptr, out_ptr, n, OVERSHOOT: tl.constexpr, MISSING: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0)
    tl.store(out_ptr + at, 2 * x, mask=at < n + OVERSHOOT - MISSING)


def double(x, overshoot=0, missing=0):
    out = torch.empty_like(x)
    launch(_double, (1,), x, out, x.numel(), OVERSHOOT=overshoot, MISSING=missing, BLOCK=128)
    return out


def test_guarded_memory_lets_a_right_kernel_pass():
    x = randn(100)
    with instruments.guarded_memory():
        assert torch.equal(double(x), 2 * x)


def test_guarded_memory_sees_a_store_past_the_end():
    message = "1 elements were written outside"
    with pytest.raises(AssertionError, match=message), instruments.guarded_memory():
        double(randn(100), overshoot=1)


def test_guarded_memory_shows_what_was_not_written():
    with instruments.guarded_memory():
        assert double(randn(100), missing=1).isnan().sum() == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_guarded_keeps_values_and_strides(layout):
    x = layout(randn(3, 5))
    inside, check = instruments.guarded(x)
    assert inside.stride() == x.stride()
    assert torch.equal(inside, x)
    check()


def test_guarded_takes_integers_expanded_and_empty_tensors():
    for x in (torch.arange(6), torch.arange(3.0).expand(4, 3), torch.empty(0, 5)):
        inside, check = instruments.guarded(x)
        assert torch.equal(inside, x)
        check()


def test_guarded_sees_a_write_to_the_operand():
    inside, check = instruments.guarded(randn(5))
    inside[2] += 1
    with pytest.raises(AssertionError, match=r"an operand of shape \(5,\) was written"):
        check()


def test_rounded_once_passes_one_rounding_and_not_three():
    exact = randn(1000, dtype=torch.float64)
    baseline = exact.bfloat16()
    instruments.assert_rounded_once(baseline, exact, baseline)
    ulp = 2.0 ** (exact.abs().log2().floor() - 7)
    with pytest.raises(AssertionError, match="error"):
        instruments.assert_rounded_once((exact + 1.5 * ulp).bfloat16(), exact, baseline)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_rounded_once_never_passes_what_is_not_finite(poison):
    exact = torch.full((3,), poison, dtype=torch.float64)
    with pytest.raises(AssertionError, match="not finite"):
        instruments.assert_rounded_once(exact.float(), exact, exact.float())


def test_deterministic_sees_one_bit():
    results = iter([torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([-0.0])])
    with pytest.raises(AssertionError, match="repeat 2"):
        instruments.assert_deterministic(lambda: next(results))


def test_hold_against_sees_a_wrong_gradient():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, dy):
            return 2.001 * dy

    def oracle(x):
        return 2 * x

    instruments.hold_against(oracle, oracle, [randn(5)])
    with pytest.raises(AssertionError, match="gradient of operand 0"):
        instruments.hold_against(Double.apply, oracle, [randn(5)])
