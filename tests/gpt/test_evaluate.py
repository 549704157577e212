"""The validation loss counts every position once, and leaves no trace in the training."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gpt import evaluate as evaluation
from gpt import model
from gpt.data import Data
from gpt.presets import TrainConfig
from gpt.step import Precision
from gpt.tokenizer import ByteTokenizer
from kernels.native import OPS
from tests.gpt.configs import LECTURE, draw_tokens, randomise

FP32 = Precision(torch.device("cpu"), torch.float32)
CONFIG = TrainConfig(model=replace(LECTURE, dropout=0.5), batch_size=4)


def make(length=101):
    gpt = randomise(model.GPT(CONFIG.model, OPS))
    return gpt, Data("text", draw_tokens(1, 300)[0], draw_tokens(1, length, 1)[0], ByteTokenizer())


def by_hand(gpt, tokens, block_size):
    """Token by token: what each window's positions say about the token after them."""
    gpt.eval()
    losses = []
    for start in range(0, len(tokens) - 1, block_size):
        x = tokens[start : min(start + block_size, len(tokens) - 1)]
        with torch.no_grad():
            log_probabilities = F.log_softmax(gpt(x[None])[0][0].double(), dim=-1)
        for position in range(len(x)):
            losses.append(-log_probabilities[position, tokens[start + position + 1]].item())
    assert len(losses) == len(tokens) - 1
    return sum(losses) / len(losses)


@pytest.mark.parametrize("length", [2, 9, 10, 96, 97, 98, 101])  # around multiples of the block
@pytest.mark.parametrize("tokens_of_a_pass", [8, 24, 16_384])
def test_every_position_counts_once(length, tokens_of_a_pass, monkeypatch):
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", tokens_of_a_pass)
    gpt, data = make(length)
    expected = by_hand(gpt, data.val, CONFIG.model.block_size)
    assert evaluation.evaluate(gpt, data, CONFIG, FP32) == pytest.approx(expected, 1e-6)


def test_nanogpt_s_estimate_is_the_mean_over_random_batches():
    gpt, data = make()
    gpt.eval()
    losses = []
    for index in range(3):
        x, y = data.batch(CONFIG.seed, 4 * index, 4, CONFIG.model.block_size, "val")
        logits = gpt(x)[0].detach().double()
        losses.append(F.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
    estimate = evaluation.evaluate(gpt, data, replace(CONFIG, eval_iters=3), FP32)
    assert estimate == pytest.approx(sum(losses) / 3, 1e-6)


def test_evaluation_draws_nothing_and_goes_back_to_training():
    gpt, data = make()
    gpt.train()
    state = torch.get_rng_state()
    first = evaluation.evaluate(gpt, data, CONFIG, FP32)
    assert evaluation.evaluate(gpt, data, CONFIG, FP32) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert gpt.training
    assert all(parameter.grad is None for parameter in gpt.parameters())
