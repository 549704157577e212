"""Triton's interpreter rounds bf16 as a GPU does."""

import torch
import triton
import triton.language as tl

from kernels.common.launch import launch
from tests.operands import DEVICE


@triton.jit
def _cast(source_ptr, target_ptr, LENGTH: tl.constexpr, THROUGH: tl.constexpr):
    at = tl.arange(0, LENGTH)
    tl.store(target_ptr + at, tl.load(source_ptr + at).to(THROUGH))


def cast(source, dtype, through):
    target = torch.empty(source.shape, dtype=dtype, device=DEVICE)
    launch(_cast, (1,), source, target, LENGTH=len(source), THROUGH=through)
    return target


def hard_numbers():
    """Every bf16 bit pattern, the tie above each, and the fp32 numbers next to the tie."""
    pattern = torch.arange(2**16, dtype=torch.int64) << 16
    bits = torch.cat([pattern, pattern + 0x7FFF, pattern + 0x8000, pattern + 0x8001])
    return bits.to(torch.int32).view(torch.float32).to(DEVICE)  # wraps: the sign bit included


def assert_same_numbers(a, b):
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a[~a.isnan()], b[~b.isnan()])


def test_bf16_casts_round_to_nearest_even():
    x = hard_numbers()  # ties, infinities, NaN, subnormals, overflow to infinity
    assert_same_numbers(cast(x, torch.bfloat16, tl.bfloat16), x.bfloat16())
    x = x[: 2**16].bfloat16()  # and widen exactly
    assert_same_numbers(cast(x, torch.float32, tl.float32), x.float())
