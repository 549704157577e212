"""Dropout masks: Philox itself, one mask for all tiles, the rate, and no correlation."""

import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.common import philox
from kernels.common.launch import launch
from tests.operands import DEVICE

SEED = 0x0123456789ABCDEF


@triton.jit
def _write(
    keep_ptr,  # (R, C)
    seed_ptr,  # ()
    stream,  # or head
    batch,  # None: a mask of rows
    threshold, R, C,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
    seed = tl.load(seed_ptr)
    rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    if batch is None:
        keep = philox.keep_in_rows(seed, stream, rows, threshold, COLUMNS)
    else:
        keep = philox.keep_in_tile(seed, stream, batch, row, column, threshold, ROWS, COLUMNS)
    inside = (rows[:, None] < R) & (columns[None, :] < C)
    tl.store(keep_ptr + rows[:, None] * C + columns[None, :], keep.to(tl.int8), inside)


def seed_of(value):
    return torch.tensor(value, dtype=torch.int64, device=DEVICE)


def mask_of(seed, stream, batch, R, C, p, tile):
    """The mask (R, C) of rows, or of a head of a batch, written in tiles."""
    keep = torch.full((R, C), 7, dtype=torch.int8, device=DEVICE)
    threshold, _ = philox.threshold_and_scale(p)
    grid = (triton.cdiv(R, tile[0]), triton.cdiv(C, tile[1]))
    operands = keep, seed_of(seed), stream, batch, threshold, R, C
    launch(_write, grid, *operands, ROWS=tile[0], COLUMNS=tile[1])
    return keep.bool()


# counter, key -> words after 7 rounds, from the test vectors of Random123 by the authors
VECTORS = [
    ([0] * 4, 0, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
    ([0xFFFFFFFF] * 4, -1, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0A4093822,
        [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_the_authors_test_vectors(counter, key, words):
    assert philox._philox(seed_of(key), *counter).tolist() == words


seeds = st.integers(-(2**63), 2**63 - 1)
rates = st.sampled_from([1 / 65536, 0.1, 0.2, 0.5, 0.9, 1 - 1 / 65536])


@settings(max_examples=8)
@given(
    seeds,
    st.integers(0, 2**31 - 1),
    st.integers(1, 34),
    st.integers(1, 100),
    rates,
    st.sampled_from([(16, 128), (4, 256)]),
    st.sampled_from([(16, 32), (32, 64), (64, 32), (16, 128)]),
)
def test_masks_do_not_depend_on_the_tile(seed, stream, R, C, p, tile_of_rows, tile):
    expected = philox.rows_kept(seed_of(seed), stream, R, C, p)
    assert torch.equal(mask_of(seed, stream, None, R, C, p, tile_of_rows), expected)
    expected = philox.attention_kept(seed_of(seed), 2, 3, R, C, p)[1, 2]
    assert torch.equal(mask_of(seed, 2, 1, R, C, p, tile), expected)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.2, 0.5, 0.9])
def test_the_rate_is_within_four_sigma(p):
    threshold, scale = philox.threshold_and_scale(p)
    rate = threshold / 65536
    assert abs(rate - p) <= 0.5 / 65536
    assert scale * (1 - rate) == pytest.approx(1, rel=1e-15)
    rows = philox.rows_kept(seed_of(SEED), 0, 256, 512, p)
    for kept in (rows, philox.attention_kept(seed_of(SEED), 2, 4, 128, 128, p)):
        sigma = math.sqrt(rate * (1 - rate) / kept.numel())
        assert abs(1 - kept.double().mean().item() - rate) < 4 * sigma


def correlation(a, b, p):
    """The correlation of two masks in units of its standard deviation under independence."""
    a, b = a.double() - (1 - p), b.double() - (1 - p)
    return ((a * b).mean() / (p * (1 - p)) * math.sqrt(a.numel())).item()


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_seeds_streams_rows_and_columns_are_uncorrelated(p):
    kept, next_step, other_half = (  # the upper word of the seed matters, too
        philox.attention_kept(seed_of(SEED + more), 2, 2, 128, 128, p) for more in (0, 1, 2**32)
    )
    rows, stream = (philox.rows_kept(seed_of(SEED), stream, 128, 256, p) for stream in (0, 1))
    below = torch.ones(128, 128, dtype=torch.bool, device=DEVICE).tril(-1)
    pairs = {
        "stream": (rows, stream),
        "transposed": (kept[..., below], kept.mT[..., below]),
        "seed": (kept, next_step),
        "upper word of the seed": (kept, other_half),
        "batch": (kept[0], kept[1]),
        "head": (kept[:, 0], kept[:, 1]),
        "head against batch": (kept[0, 1], kept[1, 0]),
    }
    for cells, mask in (("tiles", kept), ("rows", rows)):
        for distance in (1, 2, 4, 8, 16, 32, 64):
            pairs[f"rows {distance}, {cells}"] = (mask[..., distance:, :], mask[..., :-distance, :])
            pairs[f"columns {distance}, {cells}"] = (mask[..., distance:], mask[..., :-distance])
    for name, pair in pairs.items():
        assert abs(correlation(*pair, p)) < 4.5, name


def test_rates_of_0_and_1_are_exact():
    assert philox.threshold_and_scale(0.0) == (0, 1.0)
    assert philox.threshold_and_scale(1.0)[1] == 0.0
    assert philox.rows_kept(seed_of(1), 0, 64, 64, 0.0).all()
    assert philox.attention_kept(seed_of(1), 1, 1, 64, 64, 0.0).all()
    # one in 65,536 draws has the smallest or largest value: enough are drawn that some do
    for batch in (None, 0):
        assert mask_of(1, 0, batch, 512, 512, 0.0, (64, 128)).all()
    assert not philox.rows_kept(seed_of(1), 0, 1024, 512, 1.0).any()
    assert not philox.attention_kept(seed_of(1), 1, 1, 64, 64, 1.0).any()


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_a_rate_outside_0_to_1_is_an_error(p):
    with pytest.raises(ValueError, match="give a probability from 0 to 1"):
        philox.threshold_and_scale(p)
