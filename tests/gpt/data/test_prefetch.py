"""Batches that a thread has ready are those of the direct path, bit for bit."""

import threading

import numpy as np
import pytest
import torch

from gpt.data import prefetch
from gpt.data.batches import Data
from gpt.data.prefetch import Prefetched
from gpt.data.tokenizers import ByteTokenizer
from gpt.training import distributed
from gpt.training.step import Step
from tests.gpt.training.test_step import CONFIG, after, make_step
from tests.numerics import DEVICE


def mapped(folder, length=5000):
    tokens = np.random.default_rng(0).integers(0, 60_000, length).astype("<u2")
    tokens.tofile(folder / "train.bin")
    train = torch.from_numpy(np.memmap(folder / "train.bin", dtype="<u2", mode="c"))
    return Data("text", train.view(torch.int16), train[:500], ByteTokenizer(), DEVICE)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def assert_same(batches, data, *arguments):
    for one, other in zip(batches.batch(*arguments), data.batch(*arguments), strict=True):
        assert one.device.type == torch.device(DEVICE).type
        assert torch.equal(one, other)


@pytest.mark.parametrize("world", [1, 3])
def test_batches_are_those_of_the_direct_path(tmp_path, monkeypatch, world):
    monkeypatch.setattr(distributed, "world", lambda: world)
    data, gathered = mapped(tmp_path), []
    gather = prefetch.gather

    def watched(tokens, seed, first_row, *sizes):
        gathered.append(first_row)
        return gather(tokens, seed, first_row, *sizes)

    monkeypatch.setattr(prefetch, "gather", watched)
    with Prefetched(data) as batches:
        for number in range(30):
            assert_same(batches, data, 7, (2 + number * world) * 4, 4, 16)
    assert gathered[:30] == [(2 + number * world) * 4 for number in range(30)]  # each once


def test_whoever_asks_for_others_gets_them(tmp_path):
    data = mapped(tmp_path)
    with Prefetched(data) as batches:
        for arguments in [(7, 0, 4, 16), (7, 4, 4, 16), (7, 80, 4, 16), (7, 84, 4, 16)]:
            assert_same(batches, data, *arguments)
        assert_same(batches, data, 7, 0, 4, 16, "val")
        for arguments in [(7, 88, 4, 16), (8, 92, 4, 16), (8, 96, 2, 8)]:
            assert_same(batches, data, *arguments)


def test_a_batch_that_is_given_stays_as_it_is(tmp_path):
    data = mapped(tmp_path)
    with Prefetched(data) as batches:
        given = [batches.batch(7, 4 * number, 4, 16)[0] for number in range(3 * prefetch.AHEAD)]
        for number, x in enumerate(given):
            assert torch.equal(x, data.batch(7, 4 * number, 4, 16)[0])


def test_the_thread_ends_with_the_context(tmp_path):
    assert threads() == []
    with Prefetched(mapped(tmp_path)) as batches:
        batches.batch(7, 0, 4, 16)
        assert len(threads()) == 1
    assert threads() == []
    with pytest.raises(IndexError), Prefetched(mapped(tmp_path)) as batches:
        batches.batch(7, 0, 4, 100_000)
    assert threads() == []


def test_an_error_of_the_thread_is_raised_where_its_batch_is_asked_for(tmp_path):
    data = mapped(tmp_path)
    with Prefetched(data) as batches:
        with pytest.raises(IndexError, match="out of bounds"):
            batches.batch(7, 0, 4, 100_000)  # no file has a block as large
        assert_same(batches, data, 7, 0, 4, 16)
    assert threads() == []


def test_steps_on_it_are_the_steps(tmp_path):
    step = make_step(CONFIG)
    losses, weights = after(step)
    other = make_step(CONFIG)
    with Prefetched(other.data) as batches:
        config, precision = other.config, other.precision
        step = Step(other.model, other.optimizers, batches, config, precision)
        again, same_weights = after(step)
    assert torch.equal(losses, again)
    for weight, same in zip(weights, same_weights, strict=True):
        assert torch.equal(weight, same)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned buffers are for a GPU")
def test_a_card_s_buffers_are_pinned_and_wait_for_its_copies(tmp_path):
    data = mapped(tmp_path)
    with Prefetched(data) as batches:
        torch.cuda._sleep(100_000_000)  # copies come late
        given = [batches.batch(7, 4 * number, 4, 16)[0] for number in range(3 * prefetch.AHEAD)]
        assert batches._coming[0][1].result().chunk.is_pinned()
    for number, x in enumerate(given):
        assert torch.equal(x, data.batch(7, 4 * number, 4, 16)[0])
