"""The functions of `tests.numerics` pass for correct results and fail for wrong ones."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.common.launch import launch
from tests import numerics
from tests.operands import randn


@triton.jit
def _double(x_ptr, out_ptr, n, OVERSHOOT: tl.constexpr, MISSING: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0)
    tl.store(out_ptr + at, 2 * x, mask=at < n + OVERSHOOT - MISSING)


def double(x, overshoot=0, missing=0):
    out = torch.empty_like(x)
    launch(_double, (1,), x, out, x.numel(), OVERSHOOT=overshoot, MISSING=missing, BLOCK=128)
    return out


def test_guarded_memory_detects_missing_elements_and_a_store_past_the_end():
    x = randn(100)
    with numerics.guarded_memory():
        assert torch.equal(double(x), 2 * x)
        assert double(x, missing=1).isnan().sum() == 1
    message = "1 elements were written outside"
    with pytest.raises(AssertionError, match=message), numerics.guarded_memory():
        double(x, overshoot=1)


def test_rounded_once_passes_for_one_rounding_and_fails_for_three():
    exact = randn(1000, dtype=torch.float64)
    baseline = exact.bfloat16()
    numerics.assert_rounded_once(baseline, exact, baseline)
    ulp = 2.0 ** (exact.abs().log2().floor() - 7)
    with pytest.raises(AssertionError, match="error"):
        numerics.assert_rounded_once((exact + 1.5 * ulp).bfloat16(), exact, baseline)
