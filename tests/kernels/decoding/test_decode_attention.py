"""Decode attention over the cache: against fp64, at the edges of tiles, parts and the block."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import torch_ops
from kernels.common import launch
from kernels.decoding.decode_attention import decode_attention
from tests.numerics import hold_against
from tests.operands import DEVICE, DTYPES, dtypes, randn, stepped

# elements of a tile of keys, fewest keys per part, programs from which on no parts are needed
PARTS, WHOLE = (64, 16, 1_000), (64, 16, 1)
FLOATS = DTYPES if DEVICE == "cuda" else (*DTYPES, torch.float64)  # compiled ones have no fp64
QK_NORM, TURNED = {"qk_norm": True}, {"turned": True}
BOTH = QK_NORM | TURNED


@pytest.fixture(params=[PARTS, WHOLE], ids=["parts", "whole"])
def tile(request, monkeypatch):
    monkeypatch.setitem(launch.TILES, "decode_attention", {80: request.param})


def angles(T, D, dtype):
    """cos and sin (T, D) of an angle per pair of channels."""
    angle = randn(T, D // 2, seed=3).repeat(1, 2)
    sign = torch.ones(D, device=DEVICE)
    sign[: D // 2] = -1
    return angle.cos().to(dtype), (angle.sin() * sign).to(dtype)


def hold(positions, H, T, D, dtype, *, Hkv=None, window=0, qk_norm=False, turned=False, scale=1.0):
    """Compare output and cache, with the new key and value, with fp64."""
    B, Hkv = len(positions), Hkv or H
    position = stepped(torch.tensor(positions, device=DEVICE))

    def call(function, qkv, cache, cos, sin):
        cache = cache.clone()
        options = {"window": window, "qk_norm": qk_norm, "cos": cos, "sin": sin}
        return function(qkv, cache, position, **options), cache

    operands = (
        randn(B, (H + 2 * Hkv) * D, dtype=dtype, scale=scale),
        randn(2, B, Hkv, T, D, dtype=dtype, seed=1),
        *(angles(T, D, dtype) if turned else (None, None)),
    )
    # a computed new key is rounded before it is used, so the baseline rounds it, too
    compute = dtype if qk_norm or turned else None
    functions = (partial(call, f) for f in (decode_attention, torch_ops.decode_attention))
    hold_against(*functions, operands, backward=False, compute=compute)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize(
    ("H", "dtype", "options"),
    [
        *((2, dtype, BOTH) for dtype in FLOATS),
        *((2, torch.float16, options) for options in ({}, QK_NORM, TURNED)),
        *((1, torch.float16, {"window": window}) for window in (1, 15, 16, 17, 33, 40)),
        (4, torch.float32, BOTH | {"Hkv": 2}),
        (6, torch.float32, BOTH | {"Hkv": 2, "window": 17}),
        (3, torch.float32, BOTH | {"Hkv": 1}),
        (1, torch.float32, {"scale": 1e4}),  # scores that would overflow
    ],
    ids=str,
)
def test_the_edges_of_tiles_and_parts(H, dtype, options):
    hold([0, 1, 15, 16, 17, 31, 32, 39], H, 40, 6, dtype, **options)


@given(
    st.data(),
    st.integers(1, 3),
    st.integers(1, 150),
    st.sampled_from([1, 2, 3, 7, 33, 65]),
    dtypes(),
)
def test_any_size_with_the_tiles_of_a_gpu(data, H, T, D, dtype):
    positions = data.draw(st.lists(st.integers(0, T - 1), min_size=1, max_size=3))
    hold(positions, H, T, D, dtype)


@pytest.mark.parametrize("window", [0, 17])
def test_rows_of_one_position(window):
    hold([20, 20], 2, 40, 6, torch.float32, Hkv=1, window=window)


def test_the_largest_number_of_parts():
    hold([1_000, 2_079], 1, 2_080, 2, torch.float32)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize(
    ("position", "window"),
    [(0, 0), (15, 0), (16, 5), (37, 1), (37, 5), (37, 16), (37, 20), (39, 0)],
)
def test_only_the_window_is_read_and_only_the_new_position_is_written(position, window):
    qkv = randn(1, 3 * 2 * 8)
    cache = randn(2, 1, 2, 40, 8, seed=1)
    poisoned = cache.clone()
    poisoned[:, :, :, position:] = float("nan")
    poisoned[:, :, :, : max(0, position + 1 - window) if window else 0] = float("nan")
    before, at = poisoned.clone(), torch.tensor([position], device=DEVICE)
    out = decode_attention(qkv, cache, at, window=window)
    assert torch.equal(decode_attention(qkv, poisoned, at, window=window), out)
    before[:, 0, :, position] = qkv.view(3, 2, 8)[1:]
    torch.testing.assert_close(poisoned, before, rtol=0, atol=0, equal_nan=True)


def test_launches_depend_only_on_the_shapes():
    """One grid for all positions, as a CUDA graph needs, and one launch for many rows."""

    def grids(B, T=1024):
        cache = torch.empty(2, B, 12, T, 64, device="meta")
        position = torch.empty(B, dtype=torch.int64, device="meta")
        with launch.record(90) as recorded:
            decode_attention(torch.empty(B, 3 * 12 * 64, device="meta"), cache, position)
        return [one.grid for one in recorded]

    assert grids(1) == [(12, 16), (12,)]
    assert grids(64) == [(12 * 64, 1)]
    assert grids(70_000) == [(12 * 70_000, 1)]  # more than CUDA allows on another axis
    assert grids(1, T=10_000) == [(12, 20), (12,)]  # at most 32 parts, here of 512 keys
