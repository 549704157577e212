"""Reinforcement where the reward can be checked: a task's problems, their results right or wrong.

    A = r - mean of the group's r                            r: 1 for the right result, else 0
    loss = mean over tokens of kl * (exp(d) - d - 1) - A log p(token)
    d = log p(token) of the model that it began as - log p(token)

For each problem a group of answers is drawn from the model; those better than their group's mean
become likelier, the others less likely: GRPO (Shao et al. 2024) with one update for each drawing,
so that there is no ratio to clip. As in Dr. GRPO (Liu et al. 2025) A is not divided by the group's
deviation, and as in DAPO (Yu et al. 2025) the mean is over the tokens of all answers, and groups
whose answers are all right or all wrong, which have nothing to tell, are left out. The second term
holds the model near its beginning: an estimate of the KL divergence that is never below zero
(Schulman 2020). The scratchpad earns nothing by itself: what counts is the result.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from gpt import UserError
from gpt.config.model import IGNORE_INDEX
from gpt.data.tasks.arithmetic import END, Task
from gpt.generation.generate import generate
from gpt.training.optimizers import set_learning_rates

GRAD_CLIP = 1.0  # largest norm of all gradients together
WARM_UP = 10  # steps: the first directions are mostly chance
ROWS = 2048  # answered together in an evaluation


@dataclass(frozen=True)
class ReinforceConfig:
    """How long, on how many answers, and how far from where the model began."""

    steps: int = 100
    problems: int = 128  # in a step
    group: int = 8  # answers to each
    learning_rate: float = 1e-3  # AdamW's, which goes down to 0 in a straight line
    kl: float = 0.01  # how strongly the model is held near its beginning
    seed: int = 1337


def reinforce(
    model, task: Task, adamw: Callable, config: ReinforceConfig, say: Callable[[float], None]
) -> None:
    """Train `model`, which knows the task somewhat; say(mean reward) after each step."""
    beginning = copy.deepcopy(model).eval().requires_grad_(False)
    weights = list(model.parameters())
    betas = (0.9, 0.99)
    optimizer = adamw(weights, lr=config.learning_rate, betas=betas, eps=1e-8, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["initial_lr"] = config.learning_rate
    generator = torch.Generator(task.device).manual_seed(config.seed)
    model.eval()  # the answers are drawn without dropout, and so their probabilities are
    for step in range(config.steps):
        scale = min(1.0, (step + 1) / WARM_UP) * (1 - step / config.steps)
        set_learning_rates([optimizer], scale)
        # problems that the supervised run of the same seed has not seen in this order
        first = step * config.problems
        x, y = task.batch(config.seed + 1, first, config.problems, model.config.block_size)
        x, y = (each.repeat_interleave(config.group, dim=0) for each in (x, y))
        lines, counted = draw_answers(model, task, x, y, 1.0, generator)
        reward = rewards(task, lines, counted, y).view(-1, config.group)
        say(reward.mean().item())
        told = reward.amin(1) < reward.amax(1)  # (problems,)
        if not told.any():
            continue
        rows = told.repeat_interleave(config.group)
        loss = policy_loss(model, beginning, task, lines[rows], counted[rows], reward[told], config)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, GRAD_CLIP)
        if not (loss + norm).isfinite():
            raise UserError(f"step {step}: the loss is {loss:.4g}; choose a lower --learning-rate")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def accuracy(model, task: Task) -> tuple[float, int]:
    """The share of held-out problems whose result is right, the likeliest token always; of many."""
    right = []
    whole = task.validation(model.config.block_size)
    for x, y in zip(*(each.split(ROWS) for each in whole), strict=True):
        right.append(rewards(task, *draw_answers(model, task, x, y, 0.0), y))
    right = torch.cat(right).double()
    return right.mean().item(), len(right)


def draw_answers(model, task: Task, x, y, temperature: float, generator=None):
    """The problems of a task's rows x and y (rows, T), each with an answer of the model's.

    Returns lines (rows, T + 1), and which of their tokens are the answer, its END included.
    """
    T = x.shape[1]
    asked = (y != IGNORE_INDEX).int().argmax(1) + 1  # tokens of each problem
    lines = torch.full((len(x), T + 1), END, device=x.device)
    counted = torch.zeros_like(lines, dtype=torch.bool)
    rule = {"temperature": temperature, "vocab_size": task.tokenizer.vocab_size}
    for length in asked.unique().tolist():
        rows = (asked == length).nonzero()[:, 0]
        lines[rows, :length] = x[rows, :length]
        going = torch.ones(len(rows), dtype=torch.bool)
        tokens = generate(model, x[rows, :length], T + 1 - length, generator=generator, **rule)
        for place, token in enumerate(tokens, start=length):
            lines[rows[going], place] = token[going].to(x.device)
            counted[rows[going], place] = True
            going &= token != END
            if not going.any():
                break
    return lines, counted


def rewards(task: Task, lines, counted, y):
    """1 for the right result, to the last character, 0 for another or none: (rows,)."""
    found = []
    for line, is_answer, right in zip(lines.cpu(), counted.cpu(), y.cpu(), strict=True):
        answers = (line[is_answer], right[right != IGNORE_INDEX])
        written, expected = (
            task.tokenizer.decode(tokens.tolist()).rpartition("]")[2] for tokens in answers
        )
        found.append(written == expected)
    return torch.tensor(found, device=lines.device).float()


def policy_loss(model, beginning, task: Task, lines, counted, reward, config: ReinforceConfig):
    """The loss above: lines and counted (rows, T + 1), reward (groups, group) -> ()."""
    advantage = (reward - reward.mean(1, keepdim=True)).view(-1, 1)  # (rows, 1)
    logp = log_probabilities(model, task, lines)  # (rows, T)
    d = log_probabilities(beginning, task, lines) - logp
    counted = counted[:, 1:]
    return ((config.kl * (d.exp() - d - 1) - advantage * logp) * counted).sum() / counted.sum()


def log_probabilities(model, task: Task, lines):
    """Of each token after the first, given those before it: lines (rows, T + 1) -> (rows, T)."""
    logits = model(lines[:, :-1])[0][..., : task.tokenizer.vocab_size]
    return -F.cross_entropy(logits.float().mT, lines[:, 1:], reduction="none")
