"""The losses of both splits are those of their definitions and do not change the training."""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gpt.config.train import TrainConfig
from gpt.data.batches import TokenDataset
from gpt.data.tokenizers import ByteTokenizer
from gpt.models.build import build
from gpt.runs.loop import split_losses
from gpt.training import distributed, evaluation
from gpt.training.precision import Precision
from kernels.torch_ops import OPS
from tests.gpt.configs import LECTURE, draw_tokens, randomise

FP32 = Precision(torch.device("cpu"), torch.float32)
CONFIG = TrainConfig(model=replace(LECTURE, dropout=0.5), batch_size=4)
BLOCK = LECTURE.block_size


def make(length=101, ops=OPS):
    """A model, and a text whose validation split has `length` tokens."""
    text, val = draw_tokens(1, 300)[0], draw_tokens(1, length, 1)[0]
    data = TokenDataset("text", text, val, ByteTokenizer())
    return randomise(build(CONFIG.model, ops)), data


def by_hand(gpt, tokens):
    """The mean loss over all positions of all windows, in fp64."""
    gpt.eval()
    losses = []
    for start in range(0, len(tokens) - 1, BLOCK):
        x = tokens[start : min(start + BLOCK, len(tokens) - 1)]
        with torch.no_grad():
            log_probabilities = F.log_softmax(gpt(x[None])[0][0].double(), dim=-1)
        targets = tokens[start + 1 : start + len(x) + 1]
        losses += (-log_probabilities[range(len(x)), targets]).tolist()
    assert len(losses) == len(tokens) - 1
    return sum(losses) / len(losses)


@pytest.mark.parametrize("length", [2, 9, 10, 83, 97])  # around multiples of the block
@pytest.mark.parametrize("limit", [8, 24])
@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("ops", [OPS, None])
def test_every_position_counts_once_in_batches_of_one_shape(world, length, limit, ops, monkeypatch):
    """Equally many on every rank; one compiled model or one CUDA graph serves all of them."""
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", limit)
    gpt, data = make(length, ops)
    totals, one = [], torch.ones(2)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "any_rank", lambda *flags: flags)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda total: totals.append(total) or one)
    shapes = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        batches = list(evaluation.validation_batches(data, BLOCK))
        evaluation.evaluate(gpt, batches, FP32)
        shapes.append([each.shape for batch in batches for each in batch])
    assert shapes == [shapes[0]] * world
    assert len(set(shapes[0])) == 1
    assert shapes[0][0].numel() <= max(limit, BLOCK)
    loss_sum, count = sum(totals).tolist()
    assert count == length - 1
    assert loss_sum / count == pytest.approx(by_hand(gpt, data.val), 1e-6)


def test_validation_batches_are_made_one_at_a_time(tmp_path):
    """Of a sparse file that no memory holds as int64."""
    tokens = torch.from_numpy(np.memmap(tmp_path / "val.bin", "<u2", "w+", shape=10**10))
    data = TokenDataset("text", tokens, tokens, ByteTokenizer())
    batches = islice(evaluation.validation_batches(data, 1024), 3)
    assert [x.shape for batch in batches for x in batch] == [(16, 1024)] * 6


@pytest.mark.parametrize("eval_iters", [0, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_losses_of_both_splits_are_those_of_the_same_weights(eval_iters, world, monkeypatch):
    """Of random rows that are not trained on, or of the whole validation split."""
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", 4 * BLOCK)
    gpt, data = make()
    run = SimpleNamespace(config=replace(CONFIG, eval_iters=eval_iters), data=data)
    run.parallel_model, run.precision, sums = gpt, FP32, []
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "any_rank", lambda *flags: flags)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda one: sums.append(one) or one)
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        split_losses(run)
    gpt.eval()
    for number, split in enumerate(("train", "val")):
        total = sum(sums[number::2])
        # four batches of four rows have room for the 13 rows of the validation split
        x, y = data.batch(~CONFIG.seed, 0, 4 * (eval_iters or 4), BLOCK, split)
        logits = gpt(x)[0].detach().double()
        expected = F.cross_entropy(logits.flatten(0, 1), y.flatten()).item()
        if split == "val" and not eval_iters:
            expected = by_hand(gpt, data.val)
        assert total[0] / total[1] == pytest.approx(expected, 1e-6)


def test_evaluation_draws_no_random_number_and_restores_training_mode():
    gpt, data = make()
    gpt.train()
    state = torch.get_rng_state()
    evaluation.evaluate(gpt, evaluation.validation_batches(data, BLOCK), FP32)
    assert torch.equal(torch.get_rng_state(), state)
    assert gpt.training
    assert all(parameter.grad is None for parameter in gpt.parameters())
