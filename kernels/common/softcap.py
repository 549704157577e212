"""Soft-capped logits, x -> c tanh(x / c) (Gemma 2, 2024), in attention and in the losses."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 is an instruction, and exp is not


@triton.jit
def tanh(x):
    """tanh x; in fp32 by its series near 0, where 1 - e^(-2 |x|) would cancel."""
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    t = (1.0 - e) / (1.0 + e)
    t = tl.where(x < 0.0, -t, t)
    if x.dtype == tl.float32:
        y = x * x
        series = x * (1.0 + y * (-1 / 3 + y * (2 / 15 - y * (17 / 315))))
        t = tl.where(y < 0.04, series, t)
    return t
