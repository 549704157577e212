"""A training step: accumulation, clipping, the data that it sees."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.data.batches import Data
from gpt.data.tokenizers import ByteTokenizer
from gpt.models import packed
from gpt.training import distributed
from gpt.training.optimizers import make_optimizers
from gpt.training.step import DeviceStep, Precision, Step, choose_step, passes_per_step
from kernels.torch_ops import OPS
from tests.gpt.configs import LECTURE, draw_tokens, randomise

CPU, BF16 = torch.device("cpu"), torch.bfloat16
CONFIG = TrainConfig(model=LECTURE, batch_size=6, learning_rate=0.01)


class Watched(Data):
    """Data that keeps the batches which it gave."""

    def batch(self, *arguments, **options):
        self.given = [*getattr(self, "given", []), super().batch(*arguments, **options)]
        return self.given[-1]


def make_step(config, dtype=torch.float64):
    gpt = randomise(packed.GPT(config.model, OPS)).to(dtype)
    tokens = draw_tokens(1, 300)[0]
    data = Watched("text", tokens, tokens, ByteTokenizer())
    optimizers = make_optimizers(gpt, config, torch.optim.AdamW)
    return Step(gpt, optimizers, data, config, Precision(CPU, torch.float32))


def after(step, count=3):
    losses = torch.stack([step(number) for number in range(count)])
    return losses, [parameter.detach() for parameter in step.model.parameters()]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulated_passes_are_one_large_batch(optimizer):
    large = replace(CONFIG, optimizer=optimizer, grad_clip=0.5)
    small = replace(large, batch_size=2, gradient_accumulation_steps=3)
    losses, weights = after(make_step(large))
    small_losses, small_weights = after(make_step(small))
    assert torch.allclose(losses, small_losses, rtol=1e-12)
    # fp64 gradients; Muon's products are rounded to fp32
    tolerance = 1e-9 if optimizer == "adamw" else 1e-5
    for weight, other in zip(weights, small_weights, strict=True):
        assert torch.allclose(weight, other, atol=tolerance)


def test_a_step_sees_rows_that_follow_from_its_number():
    config = replace(CONFIG, batch_size=2, gradient_accumulation_steps=3, seed=9)
    step = make_step(config)
    step(4)
    seen = torch.cat([x for x, _ in step.data.given])
    expected, _ = Data.batch(step.data, 9, 4 * 6, 6, LECTURE.block_size)
    assert torch.equal(seen, expected)
    assert not torch.equal(seen, Data.batch(step.data, 9, 5 * 6, 6, LECTURE.block_size)[0])


def test_the_loss_is_the_mean_over_the_step_s_rows_before_the_update():
    step = make_step(replace(CONFIG, batch_size=3, gradient_accumulation_steps=2))
    x, y = Data.batch(step.data, CONFIG.seed, 0, 6, LECTURE.block_size)
    with torch.no_grad():
        expected = step.model(x, y)[1]
    loss = step(0)
    assert loss.shape == ()
    assert not loss.requires_grad
    assert torch.allclose(loss, expected, rtol=1e-12)


def test_clipping_limits_the_norm_of_all_gradients_together():
    def update(grad_clip):
        step = make_step(replace(CONFIG, grad_clip=grad_clip))
        parameters = list(step.model.parameters())
        step.optimizers = [torch.optim.SGD(parameters, lr=1.0)]
        step.optimizers[0].param_groups[0]["initial_lr"] = 1.0
        before = [parameter.detach().clone() for parameter in parameters]
        step(0)
        return torch.cat(
            [(b - p.detach()).flatten() for b, p in zip(before, parameters, strict=True)]
        )

    whole = update(0.0)
    assert whole.norm() > 0.1
    clipped = update(0.1)
    assert clipped.norm() == pytest.approx(0.1, 1e-4)
    assert torch.allclose(clipped / clipped.norm(), whole / whole.norm(), atol=1e-9)
    assert torch.equal(update(1e9), whole)


def test_gradients_do_not_run_into_the_next_step():
    step = make_step(CONFIG)
    step(0)
    assert all(parameter.grad is None for parameter in step.model.parameters())


def test_tokens_per_step_are_passes():
    config = replace(CONFIG, batch_size=2)  # times 8 tokens
    assert passes_per_step(config) == 1
    assert passes_per_step(replace(config, gradient_accumulation_steps=5)) == 5
    assert passes_per_step(replace(config, tokens_per_step=48)) == 3
    with pytest.raises(UserError, match="no multiple of the 16 tokens"):
        passes_per_step(replace(config, tokens_per_step=40))
    with pytest.raises(UserError, match="not both"):
        passes_per_step(replace(config, tokens_per_step=16, gradient_accumulation_steps=1))


def test_a_graph_is_for_a_cuda_card():
    data = Data("text", torch.arange(9), torch.arange(9), ByteTokenizer())
    precision = Precision(CPU, torch.float32)
    assert choose_step(CONFIG, precision, data)[0] is Step
    assert choose_step(replace(CONFIG, step="eager"), precision, data)[0] is Step
    compiled = replace(CONFIG, step="compile")
    assert choose_step(compiled, precision, data) == (Step, "eager, the model by torch.compile")
    assert (compiled.compiles_model, CONFIG.compiles_model) == (True, False)
    with pytest.raises(UserError, match="use --step eager"):
        choose_step(replace(CONFIG, step="graph"), precision, data)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_on_gpus_do_not_wait_for_them(parallel, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    gpu = torch.device("cuda")
    data = SimpleNamespace(source=gpu)
    kind, reason = choose_step(replace(CONFIG, parallel=parallel), Precision(gpu, BF16), data)
    assert kind is DeviceStep
    assert reason == "eager, ranks exchange gradients"
