"""AdamW's groups, the schedule, and Muon, each against its own definition."""

import math
from dataclasses import replace

import pytest
import torch

from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig
from gpt.models import packed, reference
from gpt.models.layouts import lecture_from_packed, packed_from_lecture
from gpt.training.optimizers import (
    Muon,
    blocks_matrices,
    learning_rate_scale,
    make_optimizers,
    orthogonalise,
)
from kernels.torch_ops import OPS
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, randomise

ADAMW = torch.optim.AdamW


def train_config(config=LECTURE, **changes):
    return TrainConfig(model=config, **changes)


def names_of(group, gpt):
    names = {id(parameter): name for name, parameter in gpt.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


# --- AdamW ----------------------------------------------------------------------------------------


def test_the_lecture_decays_all_and_has_one_group():
    gpt = packed.GPT(LECTURE, OPS)
    (adamw,) = make_optimizers(gpt, train_config(weight_decay=0.01), ADAMW)
    (group,) = adamw.param_groups
    assert names_of(group, gpt) == {name for name, _ in gpt.named_parameters()}
    assert (group["weight_decay"], group["lr"], group["betas"]) == (0.01, 3e-4, (0.9, 0.999))


def test_nanogpt_decays_matrices_alone():
    gpt = packed.GPT(CONFIGS["gpt2"], OPS)
    config = train_config(CONFIGS["gpt2"], decay_all=False, weight_decay=0.1, beta2=0.95)
    (adamw,) = make_optimizers(gpt, config, ADAMW)
    decayed, others = adamw.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert names_of(decayed, gpt) == {"token_embedding_table.weight"} | {
        "position_embedding_table.weight",
        *(
            f"blocks.{i}.{module}.weight"
            for i in range(2)
            for module in ("sa.qkv", "sa.proj", "ffwd.up", "ffwd.down")
        ),
    }
    assert names_of(decayed, gpt) | names_of(others, gpt) == {n for n, _ in gpt.named_parameters()}
    assert all(group["betas"] == (0.9, 0.95) for group in adamw.param_groups)


def test_a_group_without_parameters_is_left_out():
    gpt = packed.GPT(CONFIGS["modern"], OPS)
    config = train_config(CONFIGS["modern"], decay_all=False, optimizer="muon")
    adamw, muon = make_optimizers(gpt, config, ADAMW)
    assert all(group["params"] for group in adamw.param_groups + muon.param_groups)


# --- the schedule ---------------------------------------------------------------------------------


def nanogpt_learning_rate(it, learning_rate, min_lr, warmup_iters, lr_decay_iters):
    """nanoGPT's get_lr, written down from its description."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


@pytest.mark.parametrize("step", [0, 1, 99, 100, 101, 2500, 4999, 5000, 5001, 9000])
def test_the_schedule_is_nanogpt_s(step):
    config = replace(PRESETS["shakespeare-char"], lr_decay_iters=5000)
    expected = nanogpt_learning_rate(step, 1e-3, 1e-4, 100, 5000)
    assert config.learning_rate * learning_rate_scale(step, config) == pytest.approx(
        expected, 1e-12
    )


def test_the_schedule_ends_with_the_run_unless_told():
    config = train_config(decay_lr=True, max_iters=40, min_lr=3e-5, warmup_iters=3)
    assert learning_rate_scale(40, config) == pytest.approx(0.1)
    assert learning_rate_scale(39, config) > 0.1
    assert learning_rate_scale(20, replace(config, lr_decay_iters=20)) == pytest.approx(0.1)


def test_without_decay_the_learning_rate_stays_after_the_warm_up():
    config = train_config(warmup_iters=4)
    scales = [learning_rate_scale(step, config) for step in range(7)]
    assert scales == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("end", [4, 5, 6])
def test_a_warm_up_as_long_as_the_run_divides_by_nothing(end):
    config = train_config(decay_lr=True, warmup_iters=5, max_iters=end)
    assert all(0 < learning_rate_scale(step, config) <= 1 for step in range(5))


# --- Muon -----------------------------------------------------------------------------------------


def with_singular_values(rows, columns, values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))
    k = len(values)
    return u[:, :k], torch.tensor(values, dtype=torch.float64), v[:, :k]


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (16, 8), (8, 16), (3, 7)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_the_values(rows, columns):
    k = min(rows, columns)
    u, s, v = with_singular_values(rows, columns, torch.linspace(0.05, 1.0, k).tolist())
    (out,) = orthogonalise((u * s @ v.mT)[None])
    s = s / s.norm()  # the Frobenius norm
    for _ in range(5):  # what five steps do to each value
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert torch.allclose(out, u * s @ v.mT, atol=1e-6)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.65
    assert values.max() < 1.25


def test_matrices_of_a_batch_do_not_know_of_each_other():
    batch = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = orthogonalise(batch * torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1))
    for index in range(3):
        alone = orthogonalise(batch[index : index + 1])[0]
        assert torch.allclose(whole[index], alone, atol=1e-4)


def by_hand(weight, gradients, lr, momentum=0.95):
    """Two or more steps of Muon on one matrix, from the paper's description."""
    buffer = torch.zeros_like(weight)
    for gradient in gradients:
        buffer = momentum * buffer + (1 - momentum) * gradient
        update = (1 - momentum) * gradient + momentum * buffer
        u, s, v = torch.linalg.svd(update, full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        rows, columns = weight.shape
        weight = weight - lr * max(1, rows / columns) ** 0.5 * (u * s @ v)
    return weight


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_muon_s_steps_by_hand(shape):
    generator = torch.Generator().manual_seed(3)
    start, *gradients = torch.randn(4, *shape, dtype=torch.float64, generator=generator)
    weight = torch.nn.Parameter(start.clone())
    muon = Muon([(weight, 1)], lr=0.1, dtype=torch.float64)
    for gradient in gradients:
        weight.grad = gradient.clone()
        muon.step()
    assert torch.allclose(weight.detach(), by_hand(start, gradients, 0.1), atol=1e-6)


def test_packed_matrices_are_orthogonalised_apart():
    generator = torch.Generator().manual_seed(4)
    start, gradient = torch.randn(2, 12, 6, dtype=torch.float64, generator=generator)
    weight = torch.nn.Parameter(start.clone())
    weight.grad = gradient
    Muon([(weight, 3)], lr=0.1, dtype=torch.float64).step()
    parts = zip(start.split(4), gradient.split(4), strict=True)
    expected = torch.cat([by_hand(part, [its_gradient], 0.1) for part, its_gradient in parts])
    assert torch.allclose(weight.detach(), expected, atol=1e-6)


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest():
    gpt = packed.GPT(LECTURE, OPS)
    counts = {id(weight): count for weight, count in blocks_matrices(gpt)}
    named = {n: counts[id(p)] for n, p in gpt.named_parameters() if id(p) in counts}
    assert named == {
        f"blocks.{i}.{module}.weight": count
        for i in range(2)
        for module, count in (("sa.qkv", 6), ("sa.proj", 1), ("ffwd.up", 1), ("ffwd.down", 1))
    }
    adamw, muon = make_optimizers(gpt, train_config(optimizer="muon"), ADAMW)
    of_adamw = set().union(*(names_of(group, gpt) for group in adamw.param_groups))
    of_muon = set().union(*(names_of(group, gpt) for group in muon.param_groups))
    assert of_muon == set(named)
    assert of_adamw == {name for name, _ in gpt.named_parameters()} - of_muon
    assert all(group["lr"] == group["initial_lr"] == 0.02 for group in muon.param_groups)


@pytest.mark.parametrize("name", ["lecture", "modern", "grouped"])
def test_muon_is_the_same_for_the_reference_and_the_fused_model(name):
    config = CONFIGS[name]
    lecture = randomise(reference.GPT(config)).double()
    packed_model = packed.GPT(config, OPS).double()
    packed_model.load_state_dict(packed_from_lecture(lecture.state_dict(), config))
    for gpt in (lecture, packed_model):
        optimizers = make_optimizers(
            gpt, train_config(config, optimizer="muon"), ADAMW, torch.float64
        )
        for step in range(3):
            gpt(draw_tokens(2, 8, step), draw_tokens(2, 8, step + 10))[1].backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    expected = lecture.state_dict()
    for name, weight in lecture_from_packed(packed_model.state_dict(), config).items():
        assert torch.allclose(weight.double(), expected[name].double(), atol=1e-6), name
