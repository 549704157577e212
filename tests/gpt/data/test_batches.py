"""Batches are a function of (seed, row) alone; windows cover a split, every position once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data.batches import Data, random_integers, windows
from gpt.data.tokenizers import ByteTokenizer


def make_data(train, val=None):
    val = train if val is None else val
    return Data("text", torch.as_tensor(train), torch.as_tensor(val), ByteTokenizer())


def splitmix64(seed, place):
    """Steele, Lea and Flood 2014 in Python's own integers."""
    mask = (1 << 64) - 1
    z = (place + seed * 0xD1342543DE82EF95) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


def test_the_generator_is_splitmix64():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    drawn = random_integers(0, 1, 4, 1 << 62, "cpu").tolist()
    assert drawn == [value % (1 << 62) for value in published]


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 2**40))
def test_the_generator_in_plain_integers(seed, first, limit):
    drawn = random_integers(seed, first, 3, limit, "cpu").tolist()
    expected = [splitmix64(seed, first + i) % (1 << 63) % limit for i in range(3)]
    assert drawn == expected


def test_every_start_is_as_likely():
    drawn = random_integers(1337, 0, 20_000, 10, "cpu")
    counts = torch.bincount(drawn, minlength=10)
    deviation = (20_000 * 0.1 * 0.9) ** 0.5
    assert (counts - 2000).abs().max() < 5 * deviation


def test_y_is_x_one_token_ahead():
    x, y = make_data(torch.arange(100)).batch(seed=1, first_row=0, rows=7, block_size=5)
    assert x.shape == y.shape == (7, 5)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert torch.equal(x, x[:, :1] + torch.arange(5))


def test_a_batch_is_a_function_of_seed_and_row_alone():
    data = make_data(torch.arange(1000))
    torch.manual_seed(0)
    whole, _ = data.batch(3, 0, 8, 4)
    torch.manual_seed(1)
    torch.rand(5)
    data.batch(3, 50, 8, 4)
    assert torch.equal(data.batch(3, 0, 8, 4)[0], whole)
    halves = torch.cat([data.batch(3, 0, 4, 4)[0], data.batch(3, 4, 4, 4)[0]])
    assert torch.equal(halves, whole)
    assert not torch.equal(data.batch(4, 0, 8, 4)[0], whole)
    assert not torch.equal(data.batch(3, 8, 8, 4)[0], whole)


def test_the_first_and_the_last_window_occur_and_none_beyond():
    x, y = make_data(torch.arange(8)).batch(1, 0, 500, 5)  # starts 0, 1, 2
    assert x[:, 0].unique().tolist() == [0, 1, 2]
    assert y.max() == 7


def test_batches_of_the_validation_split():
    data = make_data(torch.arange(50), torch.arange(1000, 1050))
    assert data.batch(1, 0, 4, 5, "val")[0].min() >= 1000
    assert data.batch(1, 0, 4, 5)[0].max() < 50


def test_a_mapped_token_file_gives_the_same_batches(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 60_000, 500).astype("<u2")
    tokens.tofile(tmp_path / "train.bin")
    mapped = torch.from_numpy(np.memmap(tmp_path / "train.bin", dtype="<u2", mode="c"))
    x, y = make_data(mapped).batch(1, 0, 8, 16)
    expected_x, expected_y = make_data(tokens.astype(np.int32)).batch(1, 0, 8, 16)
    assert torch.equal(x, expected_x)
    assert torch.equal(y, expected_y)


@given(st.integers(2, 60), st.integers(1, 20))
def test_windows_hold_every_position_once_and_in_order(length, block_size):
    tokens = torch.randperm(1000)[:length]
    x, y = windows(tokens, block_size)
    assert x.shape == y.shape == (-(-(length - 1) // block_size), block_size)
    counted = y != IGNORE_INDEX
    assert torch.equal(x[counted], tokens[:-1])
    assert torch.equal(y[counted], tokens[1:])
    assert counted.flatten().sum() == length - 1


def test_data_moves_as_a_whole():
    moved = make_data(torch.arange(9)).to("meta")
    assert moved.train.is_meta
    assert moved.val.is_meta
    assert moved.name == "text"


@pytest.mark.parametrize(("train", "val"), [(8, 9), (9, 8), (1, 9)])
def test_a_block_that_a_split_cannot_fill_is_refused(train, val):
    with pytest.raises(
        UserError, match="needs at least 9; give more text or a smaller --block-size"
    ):
        make_data(torch.arange(train), torch.arange(val)).check_model(ModelConfig(block_size=8))
    make_data(torch.arange(9), torch.arange(9)).check_model(ModelConfig(block_size=8))
