"""Rewards for right results only, the loss of the equation, and answers that improve."""

import math
from dataclasses import replace

import pytest
import torch

import kernels
from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.config.presets import PRESETS
from gpt.data.tasks import open_task
from gpt.data.tasks.arithmetic import CODES, END, TOKENIZER
from gpt.exercises import reinforce as reinforcement
from gpt.exercises.reinforce import (
    ReinforceConfig,
    accuracy,
    policy_loss,
    reinforce,
    rewards,
    sample_answers,
)
from gpt.models.packed import GPT
from gpt.models.reference import GPT as Reference
from gpt.training.optimizers import make_optimizers
from tests.gpt.configs import randomise

OPS = kernels.load("torch")
CALCULATOR, ADDITION = open_task("calculator"), open_task("addition-1")


def make(block_size, kind=GPT):
    sizes = {"block_size": block_size, "n_layer": 1, "n_head": 2, "n_embd": 16}
    config = ModelConfig(vocab_size=TOKENIZER.vocab_size + 3, **sizes)  # three are padding
    return Reference(config) if kind is Reference else GPT(config, OPS)


@pytest.mark.parametrize("kind", [GPT, Reference])
def test_answers_follow_their_problems_and_count_up_to_their_end(kind):
    x, y = CALCULATOR.batch(1, 0, 24, 35)
    model = randomise(make(35, kind=kind)).eval()
    generator = torch.Generator().manual_seed(0)
    lines, counted = sample_answers(model, CALCULATOR, x, y, 1.0, generator)
    assert lines.shape == counted.shape == (24, 36)
    assert lines.max() < TOKENIZER.vocab_size
    lengths, ended = set(), 0
    for row in range(24):
        asked = int((y[row] != IGNORE_INDEX).int().argmax()) + 1
        lengths.add(asked)
        assert torch.equal(lines[row, :asked], x[row, :asked])
        assert TOKENIZER.decode(x[row, asked - 1 : asked].tolist()) == "="
        ends = (lines[row, asked:] == END).nonzero()[:, 0].tolist()
        last = asked + ends[0] if ends else 35
        assert counted[row].nonzero()[:, 0].tolist() == list(range(asked, last + 1))
        assert (lines[row, last + 1 :] == END).all()
        ended += last < 35
    assert lengths == {6, 8}
    assert ended


def test_the_reward_depends_on_the_result_and_not_on_the_scratchpad():
    y = CALCULATOR.batch(1, 0, 1, 35)[1]
    right = TOKENIZER.decode(y[0][y[0] != IGNORE_INDEX].tolist())
    result = right.partition("]")[2]
    answers = {
        right: 1.0,
        f"[12,34]{result}": 1.0,
        result: 1.0,
        result.rstrip("\n"): 0.0,  # without an end
        f"[12,34]0{result}": 0.0,
        "[12,34]1\n": 0.0,
        "\n": 0.0,
    }
    for answer, expected in answers.items():
        line = torch.from_numpy(TOKENIZER.encode("9" + answer))
        counted = torch.tensor([[False] + [True] * len(answer)])
        assert rewards(CALCULATOR, line[None], counted, y).tolist() == [expected], answer


def test_the_loss_equals_its_equation():
    config = ReinforceConfig(group=3, kl=0.5)
    model, initial = randomise(make(7)).double(), randomise(make(7), seed=1).double()
    generator = torch.Generator().manual_seed(2)
    lines = torch.randint(TOKENIZER.vocab_size, (6, 8), generator=generator)
    counted = torch.rand((6, 8), generator=generator) > 0.4
    counted[:, 0] = False
    reward = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    loss = policy_loss(model, initial, ADDITION, lines, counted, reward, config)
    tables = [
        m(lines[:, :-1])[0][..., : TOKENIZER.vocab_size].exp().tolist() for m in (model, initial)
    ]
    advantages = [2 / 3, -1 / 3, -1 / 3, 1 / 3, 1 / 3, -2 / 3]
    total = 0.0
    for row in range(6):
        for t in range(7):
            if counted[row, t + 1]:
                token = lines[row, t + 1]
                p, q = (table[row][t][token] / sum(table[row][t]) for table in tables)
                kl = q / p - math.log(q / p) - 1
                total += 0.5 * kl - advantages[row] * math.log(p)
    assert loss.item() == pytest.approx(total / int(counted.sum()), rel=1e-5)


class Adds(torch.nn.Module):
    """Gives the right sum if a <= b, and does not end the other answers."""

    config = PRESETS["addition"].model

    def forward(self, x):
        a, b = x[:, 0] - CODES["0"], x[:, 2] - CODES["0"]
        line = torch.full((len(x), 13), CODES["7"])
        line[:, 4], line[:, 5] = (a + b) % 10 + CODES["0"], (a + b) // 10 + CODES["0"]
        line[a <= b, 6] = END
        logits = torch.nn.functional.one_hot(line, TOKENIZER.vocab_size).float()
        return logits[:, 1 : x.shape[1] + 1], None


def test_accuracy_is_the_fraction_of_held_out_problems_solved():
    _, a, b = ADDITION.held_out
    share, problems = accuracy(Adds(), ADDITION)
    assert problems == len(a)
    assert share == pytest.approx((a <= b).double().mean().item())
    assert 0.2 < share < 0.8


def supervised(steps=120):
    """A model that solves some problems."""
    torch.manual_seed(0)
    sizes = {"vocab_size": TOKENIZER.vocab_size, "block_size": 7, "n_layer": 1, "n_embd": 32}
    config = replace(PRESETS["addition"].model, **sizes)
    model = GPT(config, OPS)
    model.initialise()
    optimizers = make_optimizers(model, replace(PRESETS["addition"], model=config), OPS.adamw)
    for step in range(steps):
        model(*ADDITION.batch(0, 64 * step, 64, 7))[1].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model


def test_a_model_that_solves_some_problems_improves():
    model, reported = supervised(), []
    config = ReinforceConfig(steps=40, problems=32, learning_rate=3e-3)
    reinforce(model, ADDITION, OPS.adamw, config, reported.append)
    assert len(reported) == 40
    errors = [1 - sum(some) / 10 for some in (reported[:10], reported[-10:])]
    assert errors[1] < 0.7 * errors[0]
    assert not model.training


def test_a_loss_that_is_not_finite_stops_training(monkeypatch):
    def loss(model, *_):
        return model.lm_head.weight.sum() * float("nan")

    monkeypatch.setattr(reinforcement, "policy_loss", loss)
    with pytest.raises(UserError, match="step 0: the loss is nan; use a lower --learning-rate"):
        reinforce(supervised(100), ADDITION, OPS.adamw, ReinforceConfig(), lambda reward: None)
