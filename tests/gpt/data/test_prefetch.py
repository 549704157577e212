"""Batches read ahead by a thread equal those of the direct path, bit for bit."""

import threading

import numpy as np
import pytest
import torch

from gpt.data import prefetch
from gpt.data.batches import TokenDataset
from gpt.data.prefetch import Prefetched
from gpt.data.tokenizers import ByteTokenizer
from tests.operands import DEVICE


def mapped(folder, length=5000):
    tokens = np.random.default_rng(0).integers(0, 60_000, length).astype("<u2")
    tokens.tofile(folder / "train.bin")
    train = torch.from_numpy(np.memmap(folder / "train.bin", dtype="<u2", mode="c"))
    return TokenDataset("text", train.view(torch.int16), train[:500], ByteTokenizer(), DEVICE)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def assert_same(batches, data, *arguments):
    for one, other in zip(batches.batch(*arguments), data.batch(*arguments), strict=True):
        assert one.device.type == torch.device(DEVICE).type
        assert torch.equal(one, other)


@pytest.mark.parametrize("world", [1, 3])
def test_consecutive_batches_equal_those_of_the_direct_path(tmp_path, monkeypatch, world):
    data, gathered = mapped(tmp_path), []
    gather = prefetch.gather

    def watched(tokens, seed, first_row, *sizes):
        gathered.append(first_row)
        return gather(tokens, seed, first_row, *sizes)

    monkeypatch.setattr(prefetch, "gather", watched)
    with Prefetched(data, world) as batches:
        for number in range(30):
            assert_same(batches, data, 7, (2 + number * world) * 4, 4, 16)
    assert gathered[:30] == [(2 + number * world) * 4 for number in range(30)]  # each once


def test_other_batches_are_read_on_demand(tmp_path):
    data = mapped(tmp_path)
    with Prefetched(data) as batches:
        for first_row in (0, 4, 80, 84):
            assert_same(batches, data, 7, first_row, 4, 16)
        for arguments in [(7, 0, 4, 16, "val"), (7, 88, 4, 16), (8, 92, 4, 16), (8, 96, 2, 8)]:
            assert_same(batches, data, *arguments)


def test_the_thread_ends_with_the_context_and_raises_in_batch(tmp_path):
    data = mapped(tmp_path)
    assert threads() == []
    with Prefetched(data) as batches:
        with pytest.raises(IndexError, match="out of bounds"):
            batches.batch(7, 0, 4, 100_000)  # the file is shorter than the block
        assert_same(batches, data, 7, 0, 4, 16)
        assert len(threads()) == 1
    assert threads() == []
