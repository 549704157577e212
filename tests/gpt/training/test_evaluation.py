"""The validation loss counts every position once and does not change the training."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gpt.config.model import IGNORE_INDEX
from gpt.config.train import TrainConfig
from gpt.data.batches import TokenDataset
from gpt.data.tokenizers import ByteTokenizer
from gpt.models import packed, reference
from gpt.training import distributed, evaluation
from gpt.training.precision import Precision
from kernels.torch_ops import OPS
from tests.gpt.configs import LECTURE, draw_tokens, randomise

FP32 = Precision(torch.device("cpu"), torch.float32)
CONFIG = TrainConfig(model=replace(LECTURE, dropout=0.5), batch_size=4)


def make(length=101):
    """A model, and a text whose validation split has `length` tokens."""
    text, val = draw_tokens(1, 300)[0], draw_tokens(1, length, 1)[0]
    data = TokenDataset("text", text, val, ByteTokenizer())
    return randomise(packed.GPT(CONFIG.model, OPS)), data


def evaluate(gpt, data):
    batches = evaluation.validation_batches(data, CONFIG.model.block_size)
    return evaluation.evaluate(gpt, batches, FP32)


def by_hand(gpt, tokens, block_size):
    """The mean loss over all positions of all windows, in fp64."""
    gpt.eval()
    losses = []
    for start in range(0, len(tokens) - 1, block_size):
        x = tokens[start : min(start + block_size, len(tokens) - 1)]
        with torch.no_grad():
            log_probabilities = F.log_softmax(gpt(x[None])[0][0].double(), dim=-1)
        targets = tokens[start + 1 : start + len(x) + 1]
        losses += (-log_probabilities[range(len(x)), targets]).tolist()
    assert len(losses) == len(tokens) - 1
    return sum(losses) / len(losses)


@pytest.mark.parametrize("length", [2, 9, 10, 96, 97, 98])  # around multiples of the block
@pytest.mark.parametrize("tokens_of_a_pass", [8, 24, 16_384])
def test_every_position_counts_once(length, tokens_of_a_pass, monkeypatch):
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", tokens_of_a_pass)
    gpt, data = make(length)
    expected = by_hand(gpt, data.val, CONFIG.model.block_size)
    assert evaluate(gpt, data) == pytest.approx(expected, 1e-6)


def test_estimate_of_nanogpt_is_the_mean_over_random_batches():
    gpt, data = make()
    gpt.eval()
    losses = []
    for index in range(3):
        x, y = data.batch(CONFIG.seed, 4 * index, 4, CONFIG.model.block_size, "val")
        logits = gpt(x)[0].detach().double()
        losses.append(F.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
    batches = evaluation.random_batches(data, CONFIG.seed, 3, 4, CONFIG.model.block_size)
    assert evaluation.evaluate(gpt, batches, FP32) == pytest.approx(sum(losses) / 3, 1e-6)


def test_evaluation_draws_no_random_number_and_restores_training_mode():
    gpt, data = make()
    gpt.train()
    state = torch.get_rng_state()
    first = evaluate(gpt, data)
    assert evaluate(gpt, data) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert gpt.training
    assert all(parameter.grad is None for parameter in gpt.parameters())


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_ranks_take_equally_many_passes_and_count_every_position_once(
    world, implementation, monkeypatch
):
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", 24)
    gpt, data = make(83)  # four batches of three windows
    if implementation == "reference":
        gpt = randomise(reference.GPT(CONFIG.model))
    expected = by_hand(gpt, data.val, CONFIG.model.block_size)
    passes, totals = [], []
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    one = torch.ones(2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda total: totals.append(total) or one)
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        called = []
        hook = gpt.register_forward_pre_hook(lambda *_, called=called: called.append(1))
        evaluate(gpt, data)
        hook.remove()
        passes.append(len(called))
    assert passes == [-(-4 // world)] * world
    loss_sum, count = sum(totals).tolist()
    assert count == 82
    assert loss_sum / count == pytest.approx(expected, 1e-6)


@pytest.mark.parametrize("length", [9, 82, 83, 101])
@pytest.mark.parametrize("tokens_of_a_pass", [8, 24, 32, 16_384])
def test_equal_batches_have_one_shape_and_pad_the_last(length, tokens_of_a_pass, monkeypatch):
    """So that one compiled model or one CUDA graph serves all of them."""
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", tokens_of_a_pass)
    _, data = make(length)
    x, y = data.validation(CONFIG.model.block_size)
    batches = evaluation.equal_batches(x, y)
    assert len({each.shape for pair in batches for each in pair}) == 1
    assert batches[0][0].numel() <= max(tokens_of_a_pass, CONFIG.model.block_size)
    for whole, parts in ((x, 0), (y, 1)):
        together = torch.cat([batch[parts] for batch in batches])
        assert torch.equal(together[: len(whole)], whole)
    assert (together[len(y) :] == IGNORE_INDEX).all()
