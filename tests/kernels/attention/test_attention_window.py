"""Attention over a sliding window: which keys are seen, and which tiles are visited."""

from functools import partial

import pytest
import torch

from kernels.attention.attention import attention
from tests.kernels.attention.plain_attention import assert_one_weight, operands
from tests.numerics import DTYPES, differentiate, randn


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_window_of_one_is_the_token_itself(dtype):
    tensors, dout = operands(1, 2, 2, 70, 70, 16, dtype), randn(1, 2, 70, 16, dtype=dtype, seed=3)
    (out,), (_, _, dv) = differentiate(partial(attention, window=1), tensors, [dout])
    assert_one_weight(out, tensors[2], *tensors[:2])
    assert_one_weight(dv, dout, *tensors[:2])


@pytest.mark.parametrize("window", [70, 71, 2**31])
def test_a_window_of_all_keys_changes_no_bit(window):
    tensors, dout = operands(1, 2, 1, 70, 70, 16), randn(1, 2, 70, 16, seed=3)
    inside = differentiate(partial(attention, window=window), tensors, [dout])
    for actual, expected in zip(inside, differentiate(attention, tensors, [dout]), strict=True):
        assert all(map(torch.equal, actual, expected))


def test_no_tile_outside_the_window_is_visited():
    """Time grows with T W: NaN in a visited tile would reach the result although it is masked."""
    M = N = 32  # tiles of fp32; those of dK and dV have half the rows
    T, window, far = 6 * M, 20, 4 * M
    tensors, dout = operands(1, 1, 1, T, T, 16), randn(1, 1, T, 16, seed=3)
    run = partial(attention, window=window)
    (out,), (dq, dk, dv) = differentiate(run, tensors, [dout])
    q, k, v = (tensor.clone() for tensor in tensors)
    k[:, :, : far - N], v[:, :, : far - N] = float("nan"), float("nan")
    (some,), (some_dq, _, _) = differentiate(run, (q, k, v), [dout])
    assert torch.equal(some[:, :, far:], out[:, :, far:])
    assert torch.equal(some_dq[:, :, far:], dq[:, :, far:])
    q, dout = tensors[0].clone(), dout.clone()
    seen = far + window - 1  # rows from here on see no key before `far`
    seen = -(-seen // (M // 2)) * (M // 2)
    q[:, :, seen:], dout[:, :, seen:] = float("nan"), float("nan")
    _, (_, some_dk, some_dv) = differentiate(run, (q, *tensors[1:]), [dout])
    assert torch.equal(some_dk[:, :, :far], dk[:, :, :far])
    assert torch.equal(some_dv[:, :, :far], dv[:, :, :far])
