"""AdamW's groups, the learning rate schedule, and Muon, each against its definition."""

import math
from dataclasses import replace

import pytest
import torch

from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig
from gpt.models import packed
from gpt.training.muon import Muon
from gpt.training.optimizers import block_matrices, make_optimizers, schedule_of
from kernels.torch_ops import OPS
from tests.gpt.configs import CONFIGS, LECTURE

ADAMW = torch.optim.AdamW
CONFIG = TrainConfig(model=LECTURE)
MATRICES = {  # of the blocks -> how many matrices each packs, with two heads
    f"blocks.{layer}.{name}.weight": count
    for layer in range(2)
    for name, count in (("sa.qkv", 6), ("sa.proj", 1), ("ffwd.up", 1), ("ffwd.down", 1))
}


def names_of(gpt, *groups):
    names = {id(parameter): name for name, parameter in gpt.named_parameters()}
    return {names[id(parameter)] for group in groups for parameter in group["params"]}


def test_decay_all_puts_all_parameters_into_one_group_as_the_lecture_does():
    gpt = packed.GPT(LECTURE, OPS)
    (adamw,) = make_optimizers(gpt, replace(CONFIG, weight_decay=0.01), ADAMW)
    (group,) = adamw.param_groups
    assert names_of(gpt, group) == {name for name, _ in gpt.named_parameters()}
    assert (group["weight_decay"], group["lr"], group["betas"]) == (0.01, 3e-4, (0.9, 0.999))


def test_without_decay_all_only_matrices_decay_as_in_nanogpt():
    gpt = packed.GPT(CONFIGS["gpt2"], OPS)
    config = replace(CONFIG, decay_all=False, weight_decay=0.1, beta2=0.95)
    (adamw,) = make_optimizers(gpt, config, ADAMW)
    decayed, others = adamw.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    tables = {"token_embedding_table.weight", "position_embedding_table.weight"}
    assert names_of(gpt, decayed) == tables | set(MATRICES)
    assert names_of(gpt, decayed, others) == {name for name, _ in gpt.named_parameters()}
    assert all(group["betas"] == (0.9, 0.95) for group in adamw.param_groups)


def nanogpt_learning_rate(it, learning_rate, min_lr, warmup_iters, lr_decay_iters):
    """get_lr of nanoGPT, from its description."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


@pytest.mark.parametrize("warmup", [0, 1, 100, 4999, 5001, 6000])
@pytest.mark.parametrize("end", [{"lr_decay_iters": 5000}, {"max_iters": 5000}])
def test_schedule_equals_that_of_nanogpt(warmup, end):
    """A warm-up past the end of the decay never reaches the full rate."""
    config = replace(PRESETS["shakespeare-char"], warmup_iters=warmup, **end)
    for step in (0, 1, 99, 100, 101, 2500, *range(4997, 5004), 5999, 6000, 6001, 9000):
        expected = nanogpt_learning_rate(step, 1e-3, 1e-4, warmup, 5000)
        assert config.learning_rate * schedule_of(config)(step) == pytest.approx(expected, 1e-12)


def test_the_learning_rate_is_constant_without_decay_lr_whatever_the_warm_up():
    schedule = schedule_of(replace(CONFIG, learning_rate=0.0, warmup_iters=4, max_iters=6))
    assert {schedule(step) for step in range(9)} == {1.0}


def newton_schulz(s):
    """What the four iterations of Muon do to the singular values of a matrix."""
    s = s / s.norm()  # the Frobenius norm
    for _ in range(4):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def by_hand(weight, gradients, lr, decay, momentum=0.95):
    """The steps of Muon on one matrix (Jordan et al. 2024), with decay (Liu et al. 2025)."""
    buffer = torch.zeros_like(weight)
    for gradient in gradients:
        buffer = momentum * buffer + (1 - momentum) * gradient
        update = (1 - momentum) * gradient + momentum * buffer
        u, s, v = torch.linalg.svd(update, full_matrices=False)
        rows, columns = weight.shape
        scale = max(1, rows / columns) ** 0.5
        weight = weight - lr * (scale * (u * newton_schulz(s) @ v) + decay * weight)
    return weight


@pytest.mark.parametrize(
    ("packed", "rows", "columns", "decay"),
    [(1, 6, 4, 0.0), (1, 4, 6, 0.5), (3, 4, 6, 0.0), (3, 5, 5, 0.5)],
)
def test_muon_orthogonalises_each_packed_matrix_by_its_definition(packed, rows, columns, decay):
    generator = torch.Generator().manual_seed(3)
    shape = (4, packed, rows, columns)
    start, *gradients = torch.randn(shape, dtype=torch.float64, generator=generator)
    gradients = [g * torch.tensor([1.0, 100.0, 10.0])[:packed, None, None] for g in gradients]
    weight = torch.nn.Parameter(start.flatten(0, 1).clone())
    muon = Muon([(weight, packed)], lr=0.1, weight_decay=decay, dtype=torch.float64)
    for gradient in gradients:
        weight.grad = gradient.flatten(0, 1)
        muon.step()
    parts = [by_hand(start[i], [g[i] for g in gradients], 0.1, decay) for i in range(packed)]
    assert torch.allclose(weight.detach(), torch.cat(parts), atol=1e-6)


def test_muon_takes_gradients_with_any_strides_and_leaves_weights_without_one():
    start = torch.randn((3, 4, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    *weights, other = (torch.nn.Parameter(values.clone()) for values in start[[0, 0, 2]])
    muon = Muon([(weight, 1) for weight in (*weights, other)], lr=0.1, dtype=torch.float64)
    weights[0].grad, weights[1].grad = start[1], start[1].T.contiguous().T
    muon.step()
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], start[0])
    assert torch.equal(other, start[2])


def test_muon_takes_the_block_matrices_and_adamw_the_rest():
    gpt = packed.GPT(LECTURE, OPS)
    counts = {id(weight): count for weight, count in block_matrices(gpt)}
    named = {n: counts[id(p)] for n, p in gpt.named_parameters() if id(p) in counts}
    assert named == MATRICES
    adamw, muon = make_optimizers(gpt, replace(CONFIG, optimizer="muon", weight_decay=0.2), ADAMW)
    assert names_of(gpt, *muon.param_groups) == set(MATRICES)
    rest = {name for name, _ in gpt.named_parameters()} - set(MATRICES)
    assert names_of(gpt, *adamw.param_groups) == rest
    assert all(group["lr"] == group["initial_lr"] == 0.02 for group in muon.param_groups)
    assert all(group["weight_decay"] == 0.2 for group in muon.param_groups)
