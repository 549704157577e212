"""Attention: fp64, causality, windows, dropout with a known mask, layouts, every tile."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies
from torch.autograd import gradcheck

from kernels import KeyRanges, torch_ops
from kernels.common import launch
from kernels.flash_attention.attention import attention, attention_qkv
from tests.kernels.flash_attention.plain import SEED, hold, largest_logit, operands, plain_attention
from tests.numerics import differentiate, guarded_memory
from tests.operands import DEVICE, DTYPES, layouts, randn, sizes

FP32, FP16 = torch.float32, torch.float16
LARGE_LOGITS = [(FP32, 10.0**power) for power in (1, 2, 3, 4, 5, 6, 9)]
LARGE_LOGITS += [(dtype, largest) for dtype in DTYPES[1:] for largest in (100.0, 1e4)]
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1]], device=DEVICE)
PADDED = KeyRanges.of_padding(torch.tensor([[0, 1, 1, 1, 0], [0] * 5], device=DEVICE) > 0, 5)
# with fewer tokens some gradients are exactly 0, and the plain computation is exact by chance
several = sizes(70).filter(lambda size: size >= 7)


# --- the definition -------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [0, 512], ids=["sdpa", "matrix products"])
@pytest.mark.parametrize(
    ("Tq", "Tk", "H", "Hkv", "options"),
    [
        (5, 5, 2, 2, {"window": 1}),
        (9, 9, 4, 2, {"window": 3}),
        (7, 4, 2, 2, {"window": 4}),
        (3, 7, 4, 2, {"causal": False}),
        (7, 3, 3, 1, {}),
        (7, 4, 2, 2, {"causal": "bottom_right"}),
        (4, 7, 2, 1, {"causal": "bottom_right", "window": 2}),
        (7, 4, 2, 2, {"window": 2}),
        (7, 4, 4, 2, {"softcap": 0.5}),
        (5, 5, 4, 2, {"causal": False, "ranges": PADDED}),
        (5, 5, 4, 2, {"window": 2, "ranges": PADDED}),
    ],
)
def test_the_plain_computation_agrees_with_pytorch(monkeypatch, short, Tq, Tk, H, Hkv, options):
    """It is the reference below and also takes a mask; Tq and Tk may differ."""
    monkeypatch.setattr(torch_ops, "SHORT", short)
    tensors = [tensor.double() for tensor in operands(2, H, Hkv, Tq, Tk, 8)]
    actual, expected = (
        differentiate(partial(function, scale=0.3, **options), tensors, [tensors[0]])
        for function in (torch_ops.attention, plain_attention)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("B", "H", "Hkv", "Tq", "Tk", "D", "options"),
    [
        (2, 1, 1, 1, 1, 1, {}),
        (1, 1, 1, 5, 5, 1, {"ranges": KeyRanges.of_documents(DOCUMENTS)}),
        (1, 2, 1, 3, 3, 2, {"scale": 0.7}),
        (1, 1, 1, 2, 3, 1, {"causal": False}),
        (1, 2, 1, 4, 4, 2, {"window": 2}),
        (1, 2, 1, 3, 3, 1, {"dropout_p": 0.4, "seed": SEED}),
        (1, 1, 1, 3, 2, 1, {"causal": "bottom_right"}),
        (1, 2, 1, 3, 3, 1, {"softcap": 0.7}),
    ],
)
def test_gradients_match_the_definition(B, H, Hkv, Tq, Tk, D, options):
    tensors = [tensor.double().requires_grad_() for tensor in operands(B, H, Hkv, Tq, Tk, D)]
    assert gradcheck(partial(attention, **options), tensors, fast_mode=True)


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("T", "D", "window", "p"),
    [
        (7, 16, 0, 0.0),
        (31, 80, 0, 0.0),
        (64, 64, 0, 0.0),
        (65, 20, 0, 0.2),
        (129, 16, 0, 0.0),
        (7, 16, 2, 0.0),
        (129, 16, 34, 0.0),
        (193, 64, 65, 0.0),
    ],
)
def test_as_exact_as_the_plain_computation(T, D, window, p, dtype):
    hold(operands(1, 2, 2, T, T, D, dtype), p, window=window)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_token_sees_itself(dtype):
    """out is v, dv is dout, and dq and dk are 0 up to the roundings of dP - delta."""
    q, k, v = operands(2, 2, 2, 1, 1, 16, dtype)
    dout = randn(2, 2, 1, 16, dtype=dtype, seed=3)
    (out,), (dq, dk, dv) = differentiate(attention, (q, k, v), [dout])
    # its weight is 1: exactly in 16 bits, in fp32 up to the roundings of its logit
    weight = 4 * (1 + largest_logit(q, k)) * torch.finfo(FP32).eps if dtype == FP32 else 0.0
    torch.testing.assert_close((out, dv), (v, dout), rtol=weight, atol=0.0)
    roundings = 16 * torch.finfo(torch.float32).eps * (dout * v).float().abs().sum(-1, True)
    assert (dq.float().abs() <= roundings * k.float().abs()).all()
    assert (dk.float().abs() <= roundings * q.float().abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_far_from_zero(sign, dtype):
    """2^207 and 2^-207: only differences within a row may be exponentiated."""
    q, k, v = operands(1, 2, 2, 33, 40, 16, dtype)
    hold((q + 6, k + 6 * sign, v), causal=False)


@pytest.mark.parametrize(("dtype", "largest"), LARGE_LOGITS, ids=str)
def test_large_logits(dtype, largest):
    """From 1e4 on most rows have one weight of 1, and a dS of exactly 0."""
    q, k, v = operands(1, 2, 2, 65, 65, 16, dtype)
    factor = (largest / largest_logit(q, k)) ** 0.5
    hold((q * factor, k * factor, v))


@pytest.mark.parametrize(
    ("H", "Hkv", "Tq", "Tk", "Dv", "dtype", "options"),
    [
        (2, 2, 33, 70, 16, FP32, {}),
        (2, 2, 70, 33, 16, FP32, {}),
        (2, 1, 1, 65, 16, FP32, {"causal": False}),
        (6, 2, 33, 33, 16, FP32, {"window": 5}),
        (2, 1, 70, 33, 16, FP32, {"causal": False, "p": 0.2}),
        (2, 1, 33, 70, 16, FP32, {"window": 20, "p": 0.2}),
        (2, 2, 70, 45, 16, FP32, {"window": 26, "p": 0.2}),
        (2, 1, 98, 98, 16, FP32, {"window": 40, "p": 0.2}),
        (2, 1, 33, 75, 16, FP32, {"causal": "bottom_right", "p": 0.2}),
        (2, 1, 75, 33, 16, FP32, {"causal": "bottom_right"}),
        (2, 2, 33, 130, 16, FP32, {"causal": "bottom_right", "window": 40}),
        (1, 1, 130, 45, 16, FP32, {"window": 40}),
        (4, 2, 33, 70, 16, FP32, {"softcap": 3.0, "causal": False}),
        (4, 2, 70, 33, 16, FP16, {"softcap": 50.0, "window": 20}),
        (4, 2, 33, 70, 40, FP32, {"causal": False}),
        (4, 2, 70, 33, 7, FP16, {}),
        (2, 1, 45, 70, 24, FP32, {"softcap": 3.0, "p": 0.2, "causal": "bottom_right"}),
    ],
)
def test_heads_alignment_and_modified_scores(H, Hkv, Tq, Tk, Dv, dtype, options):
    """Rows that see no key have an output and gradients of 0."""
    hold(operands(1, H, Hkv, Tq, Tk, 16, dtype, Dv), **options)


@pytest.mark.parametrize("logit", [1e-3, 30.0])
def test_a_softcap_far_above_or_below_the_logits(logit):
    """tanh keeps its relative precision near 0, and ends at 1."""
    q, k, v = operands(1, 2, 2, 33, 33, 16)
    hold((q * logit, k, v), softcap=1.0)
    hold((q, k, v), softcap=1e4)


def test_the_largest_head():
    hold(operands(1, 1, 1, 33, 33, 256, torch.float16))
    hold(operands(1, 1, 1, 33, 33, 200))


@settings(max_examples=12)
@given(
    several,
    several,
    strategies.sampled_from([(1, 1), (2, 1), (2, 2)]),
    layouts(),
    strategies.sampled_from([0.0, 1 / 65536, 0.2, 0.9, 1.0]),
)
def test_any_shape_layout_and_rate(Tq, Tk, heads, layout, p):
    tensors = [layout(tensor) for tensor in operands(1, *heads, Tq, Tk, 20)]
    hold(tensors, p, scale=0.5)


# --- properties -----------------------------------------------------------------------------------


@settings(max_examples=12)
@given(strategies.data())
def test_causality_is_bitwise(data):
    """Outputs before t keep their bits whatever the tokens from t on are."""
    T = data.draw(sizes(130))
    t = data.draw(strategies.integers(0, T - 1))
    qkv = randn(1, T, 3 * 16)
    changed = qkv.clone()
    changed[:, t:] = randn(1, T - t, 3 * 16, seed=5, scale=100.0)
    before, after = attention_qkv(qkv, 1), attention_qkv(changed, 1)
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t:], after[:, t:])


def test_saved_memory_grows_with_T_and_not_with_its_square():
    kept = []
    tensors = [tensor.requires_grad_() for tensor in operands(1, 2, 2, 65, 65, 16)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attention(*tensors)
    assert sum(x.numel() for x in kept) == 4 * 2 * 65 * 16 + 2 * 2 * 65  # q, k, v, out; m, z


# --- windows --------------------------------------------------------------------------------------


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


# --- tiles and launches ---------------------------------------------------------------------------


def tiles_of(family):
    with launch.target(family):
        names = ("attention", "attention_q", "attention_kv")
        return [launch.tile(name, torch.device("meta")) for name in names]


FAMILIES = {repr(tiles_of(family)): family for family in launch.FAMILIES}.values()  # each tile once


@pytest.mark.parametrize("options", [{}, {"p": 0.5}, {"window": 40}], ids=str)
@pytest.mark.parametrize("D", [64, 128, 256])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tile_of_16_bits(family, D, options):
    """The mask of dropout does not depend on the tiles."""
    with launch.target(family):  # 144: more than the largest tile, and a part of each
        hold(operands(1, 1, 1, 144, 144, D, torch.float16), **options)


@pytest.mark.parametrize("D", [64, 128, 256])
def test_every_tile_of_32_bits(D):
    hold(operands(1, 1, 1, 65, 33, D), 0.5)


@pytest.mark.parametrize(
    ("D", "options"), [(64, {}), (72, {"p": 0.5}), (128, {"window": 40}), (20, {})], ids=str
)
def test_tiles_read_through_descriptors(monkeypatch, D, options):
    """Rows and channels past the last ones are zeros. Rows of 40 bytes cannot be described."""
    monkeypatch.setitem(launch.TILES, "attention_described", {80: {64: 0, 128: 0}})
    tensors, described = operands(1, 2, 1, 70, 150, D, torch.bfloat16), D != 20
    with launch.record(90) as launches:
        attention(*tensors)
    assert launches[0].options["DESCRIBED"] == described
    with launch.target(90):
        hold(tensors, **options)


def test_groups_of_heads(monkeypatch):
    monkeypatch.setattr("kernels.flash_attention.options.TOGETHER", 2 * 20 * 16 * 4)
    hold(operands(2, 6, 3, 20, 20, 16))  # two heads in a group


def test_rows_that_begin_within_a_tile(monkeypatch):
    """dK and dV of keys 32 to 63 begin at row 32, from where a tile of 64 rows passes the end."""
    tiles = launch.TILES["attention_kv_fp32"][80] | {64: (64, 32, 4, 1, None)}
    monkeypatch.setitem(launch.TILES, "attention_kv_fp32", {80: tiles})
    hold(operands(1, 2, 2, 64, 64, 16))


def test_empty_batch_heads_rows_or_keys():
    for B, H, Tq, Tk in ((0, 2, 3, 3), (2, 0, 3, 3), (2, 2, 0, 3), (2, 2, 3, 0)):
        Hkv = max(H, 1)
        tensors = [tensor.requires_grad_() for tensor in operands(B, H, Hkv, Tq, Tk, 16)]
        with guarded_memory():
            out = attention(*tensors)
            gradients = torch.autograd.grad(out, tensors, out)
        assert out.shape == (B, H, Tq, 16)
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
    assert attention_qkv(randn(2, 0, 96), 2).shape == (2, 0, 32)
