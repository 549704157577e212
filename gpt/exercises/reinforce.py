"""Reinforcement learning with a reward that can be checked: is the result of a problem right?

    A = r - mean of the group's r                            r: 1 for the right result, else 0
    loss = mean over tokens of kl * (exp(d) - d - 1) - A log p(token)
    d = log p(token) of the initial model - log p(token)

For each problem a group of answers is sampled from the model. Answers better than the mean of their
group become more likely, the others less likely. This is GRPO (Shao et al. 2024) with one update
per batch of answers, so that there is no ratio to clip. As in Dr. GRPO (Liu et al. 2025) A is not
divided by the group's standard deviation. As in DAPO (Yu et al. 2025) the mean is over the tokens
of all answers, and groups that are all right or all wrong are left out: their A is 0. The kl term
keeps the model near the initial one; it estimates the KL divergence and is never negative (Schulman
2020). The scratchpad earns no reward of its own; only the result counts.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from .. import UserError
from ..config.base import Config, option
from ..config.model import IGNORE_INDEX
from ..data.dataset import Task
from ..data.tasks.arithmetic import END
from ..generation.generate import generate
from ..generation.sampling import Sampling
from ..models.build import Model
from ..training.optimizers import set_learning_rates

GRAD_CLIP = 1.0  # largest norm of all gradients together
WARM_UP = 10  # steps, because the first gradients are mostly noise
ROWS = 2048  # problems per batch of an evaluation


@dataclass(frozen=True)
class ReinforceConfig(Config):
    """The length of the training, the size of its batches, and its optimizer."""

    steps: int = option(100, "number of training steps", at_least=1)
    problems: int = option(128, "problems in a step", at_least=1)
    group: int = option(8, "answers drawn for each problem", at_least=2)
    learning_rate: float = option(1e-3, "AdamW's learning rate, which decays linearly to 0")
    kl: float = option(0.01, "weight of the KL divergence from the initial model")
    seed: int = option(1337, "seed of problems and answers")


def reinforce(
    model: Model,
    task: Task,
    adamw: Callable,
    config: ReinforceConfig,
    report: Callable[[float], None],
) -> None:
    """Train `model`, which must solve some problems already; report each step's mean reward."""
    initial = copy.deepcopy(model).eval().requires_grad_(False)
    weights = list(model.parameters())
    betas = (0.9, 0.99)
    optimizer = adamw(weights, lr=config.learning_rate, betas=betas, eps=1e-8, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["initial_lr"] = config.learning_rate
    generator = torch.Generator(task.device).manual_seed(config.seed)
    model.eval()  # without dropout, so that the probabilities are those of the sampled answers
    for step in range(config.steps):
        scale = min(1.0, (step + 1) / WARM_UP) * (1 - step / config.steps)
        set_learning_rates([optimizer], scale)
        # not in the order of the supervised run with the same seed
        first = step * config.problems
        x, y = task.batch(config.seed + 1, first, config.problems, model.config.block_size)
        x, y = (each.repeat_interleave(config.group, dim=0) for each in (x, y))
        lines, counted = sample_answers(model, task, x, y, 1.0, generator)
        reward = rewards(task, lines, counted, y).view(-1, config.group)
        report(reward.mean().item())
        mixed = reward.amin(1) < reward.amax(1)  # (problems,)
        if not mixed.any():
            continue
        rows = mixed.repeat_interleave(config.group)
        loss = policy_loss(model, initial, task, lines[rows], counted[rows], reward[mixed], config)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, GRAD_CLIP)
        if not (loss + norm).isfinite():
            raise UserError(f"step {step}: the loss is {loss:.4g}; use a lower --learning-rate")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def accuracy(model: Model, task: Task) -> tuple[float, int]:
    """The fraction of held-out problems that greedy answers solve, and the number of problems."""
    solved = []
    whole = task.validation(model.config.block_size)
    for x, y in zip(*(each.split(ROWS) for each in whole), strict=True):
        solved.append(rewards(task, *sample_answers(model, task, x, y, 0.0), y))
    right = torch.cat(solved).double()
    return right.mean().item(), len(right)


def sample_answers(
    model: Model,
    task: Task,
    x: Tensor,
    y: Tensor,
    temperature: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Answer the problems in a task's rows x and y (rows, T).

    Returns lines (rows, T + 1), each a problem and its answer, and a mask of the same shape that
    marks the tokens of the answers, END included.
    """
    T = x.shape[1]
    asked = (y != IGNORE_INDEX).int().argmax(1) + 1  # length of each problem
    lines = torch.full((len(x), T + 1), END, device=x.device)
    counted = torch.zeros_like(lines, dtype=torch.bool)
    sampling = Sampling(temperature, vocab_size=task.tokenizer.vocab_size)
    for length in asked.unique().tolist():
        rows = (asked == length).nonzero()[:, 0]
        lines[rows, :length] = x[rows, :length]
        going = torch.ones(len(rows), dtype=torch.bool)
        prompts = x[rows, :length]
        tokens = generate(model, prompts, T + 1 - length, sampling, generator=generator)
        for place, token in enumerate(tokens, start=length):
            lines[rows[going], place] = token[going].to(x.device)
            counted[rows[going], place] = True
            going &= token != END
            if not going.any():
                break
    return lines, counted


def rewards(task: Task, lines: Tensor, counted: Tensor, y: Tensor) -> Tensor:
    """1 if the result is right to the last character, else 0: (rows,) fp32."""
    found = []
    for line, is_answer, right in zip(lines.cpu(), counted.cpu(), y.cpu(), strict=True):
        answers = (line[is_answer], right[right != IGNORE_INDEX])
        written, expected = (
            task.tokenizer.decode(tokens.tolist()).rpartition("]")[2] for tokens in answers
        )
        found.append(written == expected)
    return torch.tensor(found, device=lines.device).float()


def policy_loss(
    model: Model,
    initial: Model,
    task: Task,
    lines: Tensor,  # (rows, T + 1)
    counted: Tensor,  # (rows, T + 1)
    reward: Tensor,  # (groups, group)
    config: ReinforceConfig,
) -> Tensor:
    """The loss of the module's docstring, ()."""
    advantage = (reward - reward.mean(1, keepdim=True)).view(-1, 1)  # (rows, 1)
    logp = log_probabilities(model, task, lines)  # (rows, T)
    d = log_probabilities(initial, task, lines) - logp
    counted = counted[:, 1:]
    return ((config.kl * (d.exp() - d - 1) - advantage * logp) * counted).sum() / counted.sum()


def log_probabilities(model: Model, task: Task, lines: Tensor) -> Tensor:
    """log p of every token after the first: lines (rows, T + 1) -> (rows, T)."""
    logits = model(lines[:, :-1])[0][..., : task.tokenizer.vocab_size]
    return -F.cross_entropy(logits.float().mT, lines[:, 1:], reduction="none")
