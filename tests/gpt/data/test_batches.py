"""Batches depend on (seed, row) alone; windows predict every position of a split once."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data import batches
from gpt.data.arithmetic import Addition
from gpt.data.batches import TokenDataset, random_integers
from gpt.data.tokenizers import ByteTokenizer


def make_data(train, val=None):
    val = train if val is None else val
    return TokenDataset("text", torch.as_tensor(train), torch.as_tensor(val), ByteTokenizer())


def splitmix64(seed, place):
    """Steele, Lea and Flood 2014, in Python integers."""
    mask = (1 << 64) - 1
    z = (place + seed * 0xD1342543DE82EF95) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 2**40))
def test_random_integers_are_those_of_splitmix64(seed, first, limit):
    assert [splitmix64(0, 1), splitmix64(0, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    drawn = random_integers(seed, first, 3, limit, "cpu").tolist()
    assert drawn == [splitmix64(seed, first + i) % (1 << 63) % limit for i in range(3)]


def test_windows_of_consecutive_tokens_from_the_first_to_the_last():
    data = make_data(torch.arange(8), torch.arange(20, 28))
    for split, starts in (("train", [0, 1, 2]), ("val", [20, 21, 22])):
        x, y = data.batch(seed=1, first=0, rows=500, block_size=5, split=split)
        assert x.shape == y.shape == (500, 5)
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x, x[:, :1] + torch.arange(5))
        assert torch.equal(y, x + 1)
        assert x[:, 0].unique().tolist() == starts


@pytest.mark.parametrize("name", ["text", "addition-3"])
def test_a_batch_depends_on_seed_and_row_alone(name):
    data = make_data(torch.arange(1000)) if name == "text" else Addition(name)
    torch.manual_seed(0)
    whole, _ = data.batch(3, 40, 8, 43)
    torch.manual_seed(1)
    data.batch(3, 50, 8, 43)
    halves = torch.cat([data.batch(3, first, 4, 43)[0] for first in (40, torch.tensor(44))])
    assert torch.equal(halves, whole)
    assert not torch.equal(data.batch(4, 40, 8, 43)[0], whole)
    assert not torch.equal(data.batch(3, 48, 8, 43)[0], whole)


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i4", "<i8"])
def test_a_memory_mapped_file_gives_the_same_batches(tmp_path, dtype):
    tokens = np.random.default_rng(0).integers(0, 250 if dtype == "u1" else 60_000, 500)
    tokens.astype(dtype).tofile(tmp_path / "train.bin")
    mapped = torch.from_numpy(np.memmap(tmp_path / "train.bin", dtype=dtype, mode="c"))
    for views in [mapped, mapped.view(torch.int16)] if dtype == "<u2" else [mapped]:
        data, expected = make_data(views), make_data(tokens)
        pairs = zip(data.batch(1, 0, 8, 16), expected.batch(1, 0, 8, 16), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
        assert torch.equal(data.validation(16)[1], expected.validation(16)[1])


@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 9))
def test_validation_rows_hold_every_position_once_and_in_order(length, block_size, rows):
    tokens = torch.randperm(1000)[:length]
    data, count = make_data(tokens), -(-(length - 1) // block_size)
    assert data.validation_rows(block_size) == count
    parts = [data.validation(block_size, first, rows) for first in range(0, count, rows)]
    x, y = (torch.cat(each) for each in zip(*parts, strict=True))
    assert x.shape == y.shape == (count, block_size)
    counted = y != IGNORE_INDEX
    assert torch.equal(x[counted], tokens[:-1])
    assert torch.equal(y[counted], tokens[1:])


@pytest.mark.parametrize(("train", "val"), [(8, 9), (9, 8), (1, 9)])
def test_check_model_refuses_a_block_longer_than_a_split(train, val):
    with pytest.raises(UserError, match="at least 9; give more text or a smaller --block-size"):
        make_data(torch.arange(train), torch.arange(val)).check_model(ModelConfig(block_size=8))
    make_data(torch.arange(9), torch.arange(9)).check_model(ModelConfig(block_size=8))


def test_the_fingerprint_depends_on_all_tokens_or_on_blocks_of_a_large_split(monkeypatch):
    def seen():
        """The tokens on which the fingerprint depends."""
        tokens = torch.arange(40)
        whole = make_data(tokens).fingerprint()
        changed = [make_data(tokens + (tokens == index)).fingerprint() for index in range(40)]
        return [index for index in range(40) if changed[index] != whole]

    sha256 = hashlib.sha256(np.arange(40).tobytes()).hexdigest()
    assert make_data(torch.arange(40)).fingerprint()["val"] == {"tokens": 40, "sha256": sha256}
    assert seen() == list(range(40))
    monkeypatch.setattr(batches, "BLOCK", 4)
    monkeypatch.setattr(batches, "HASHED", 3)
    assert seen() == [0, 1, 2, 3, 16, 17, 18, 19, 36, 37, 38, 39]
