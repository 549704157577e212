"""Attention over a sliding window, and grouped heads in the packed projection."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies
from torch.autograd import gradcheck

from kernels import torch_ops
from kernels.attention.attention import attention, attention_qkv
from kernels.common import launch
from tests.kernels.attention.plain_attention import (
    SEED,
    assert_one_weight,
    hold,
    operands,
    plain_attention,
)
from tests.numerics import DTYPES, assert_deterministic, differentiate, hold_against, randn, sizes


@pytest.mark.parametrize("short", [0, 512], ids=["fused", "by products"])
@pytest.mark.parametrize(
    ("Tq", "Tk", "H", "Hkv", "window"),
    [(5, 5, 2, 2, 1), (9, 9, 4, 2, 3), (3, 7, 4, 1, 2), (7, 4, 2, 2, 4), (9, 9, 6, 3, 0)],
)
def test_natives_window_is_the_plain_one(monkeypatch, Tq, Tk, H, Hkv, window, short):
    monkeypatch.setattr(torch_ops, "SHORT", short)
    tensors = [tensor.double() for tensor in operands(2, H, Hkv, Tq, Tk, 8)]
    actual = differentiate(partial(torch_ops.attention, window=window), tensors, [tensors[0]])
    expected = differentiate(partial(plain_attention, window=window), tensors, [tensors[0]])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("T", "D", "window"),
    [(7, 16, 2), (7, 16, 6), (65, 20, 5), (129, 16, 34), (130, 16, 64), (257, 64, 65)],
)
def test_as_exact_as_the_plain_computation(T, D, window, dtype):
    hold(operands(1, 1, 1, T, T, D, dtype), window=window)


@pytest.mark.parametrize(
    ("H", "Hkv", "Tq", "Tk", "window", "p"),
    [
        (4, 2, 33, 33, 5, 0.0),
        (2, 1, 33, 70, 20, 0.2),
        (2, 2, 70, 45, 26, 0.2),
        (2, 1, 130, 130, 40, 0.2),
    ],
)
def test_cross_attention_grouped_heads_and_dropout(H, Hkv, Tq, Tk, window, p):
    hold(operands(1, H, Hkv, Tq, Tk, 16), p, window=window)


@settings(max_examples=6)
@given(
    sizes(130).filter(lambda size: size >= 7), strategies.integers(5, 140), strategies.booleans()
)
def test_any_length_and_window(T, window, dropped):
    hold(operands(1, 1, 1, T, T, 16, torch.float16), 0.2 * dropped, window=window)


@pytest.mark.parametrize("D", [64, 128, 256])
@pytest.mark.parametrize("family", launch.FAMILIES)
def test_every_tile(family, D):
    with launch.target(family):
        hold(operands(1, 1, 1, 260, 260, D, torch.float16), window=70)


def test_gradients_are_derivatives():
    tensors = [tensor.double().requires_grad_() for tensor in operands(1, 2, 1, 4, 4, 2)]
    assert gradcheck(partial(attention, window=2, scale=0.7), tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_window_of_one_is_the_token_itself(dtype):
    tensors, dout = operands(1, 2, 2, 70, 70, 16, dtype), randn(1, 2, 70, 16, dtype=dtype, seed=3)
    (out,), (_, _, dv) = differentiate(partial(attention, window=1), tensors, [dout])
    assert_one_weight(out, tensors[2], *tensors[:2])
    assert_one_weight(dv, dout, *tensors[:2])


@pytest.mark.parametrize("window", [70, 71, 2**31])
def test_a_window_over_all_is_none(window):
    tensors, dout = operands(1, 2, 1, 70, 70, 16), randn(1, 2, 70, 16, seed=3)
    inside = differentiate(partial(attention, window=window), tensors, [dout])
    for actual, expected in zip(inside, differentiate(attention, tensors, [dout]), strict=True):
        assert all(map(torch.equal, actual, expected))


def test_no_tile_outside_the_window_is_visited():
    """Time grows with T W: a product with NaN is NaN, whatever is masked later."""
    M = N = 32  # of fp32's tiles; those of the gradients of keys take half the rows
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


def test_the_same_bits_every_time():
    tensors = operands(1, 2, 1, 130, 130, 16, torch.float16)
    upstream = [randn(1, 2, 130, 16, dtype=torch.float16, seed=4)]
    run = partial(attention, window=40, dropout_p=0.3, seed=SEED)
    assert_deterministic(lambda: sum(differentiate(run, tensors, upstream), ()), repeats=2)


# --- the packed projection ------------------------------------------------------------------------


@pytest.mark.parametrize("table", [torch_ops.attention_qkv, attention_qkv])
@pytest.mark.parametrize(("H", "Hkv", "window"), [(2, 2, 7), (4, 2, 0), (6, 2, 20), (3, 1, 5)])
def test_packed_is_attention_of_the_parts(table, H, Hkv, window):
    def plain(qkv):
        q, k, v = qkv.view(2, 33, H + 2 * Hkv, 8).transpose(1, 2).split((H, Hkv, Hkv), dim=1)
        return plain_attention(q, k, v, window=window).transpose(1, 2).reshape(2, 33, H * 8)

    qkv = randn(2, 33, (H + 2 * Hkv) * 8)
    ours = partial(table, n_head=H, n_kv_head=Hkv, window=window)
    hold_against(ours, plain, (qkv,), compute=qkv.dtype, gradient_factor=3.0)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"window": -1}, {"window": 2, "causal": False}])
def test_a_window_that_makes_no_sense(options):
    q, k, v = operands(1, 2, 2, 3, 3, 16)
    with pytest.raises(ValueError, match="only where it is causal"):
        attention(q, k, v, **options)
    with pytest.raises(ValueError, match="only where it is causal"):
        attention_qkv(randn(1, 3, 96), 2, **options)
    if "causal" in options:
        with pytest.raises(ValueError, match="only where it is causal"):
            torch_ops.attention(q, k, v, **options)


def test_rows_that_see_no_key():
    q, k, v = operands(1, 2, 2, 9, 6, 16)
    assert attention(q, k, v, window=4).isfinite().all()  # the last row sees the last key
    with pytest.raises(ValueError, match=r"see no key in a window of 3: q \(1, 2, 9, 16\)"):
        attention(q, k, v, window=3)


@pytest.mark.parametrize("n_kv_head", [0, 3, 4])
def test_packed_heads_that_are_no_groups(n_kv_head):
    with pytest.raises(ValueError, match=r"\(H \+ 2 Hkv\)|a multiple of Hkv, not \(4, 3\)"):
        attention_qkv(torch.zeros(1, 3, 80), 4, n_kv_head=n_kv_head)
