"""A training step: accumulation, clipping, its batches, and the class that `--step` selects."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.data.batches import TokenDataset
from gpt.models.packed import GPT
from gpt.training import distributed
from gpt.training.make_step import batch_plan, choose_step
from gpt.training.precision import Precision
from gpt.training.step import DeviceStep, EagerStep, GraphStep
from kernels.torch_ops import OPS
from tests.gpt.configs import LECTURE, randomise
from tests.gpt.training.ranks import error_of_step
from tests.gpt.training.steps import small_step, weights_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIG = TrainConfig(model=LECTURE, batch_size=6, learning_rate=0.01)


class Watched(TokenDataset):
    """A dataset that records its batches."""

    def batch(self, *arguments, **options):
        self.given = [*getattr(self, "given", []), super().batch(*arguments, **options)]
        return self.given[-1]


def make_step(**changes):
    model = randomise(GPT(LECTURE, OPS)).double()
    return small_step(EagerStep, model, replace(CONFIG, **changes), dataset=Watched)


@pytest.mark.parametrize(("batch_size", "passes"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_every_target_counts_alike_however_passes_share_the_rows(batch_size, passes):
    """tests/gpt/training/test_distributed.py has the same for ranks."""
    assert error_of_step(batch_size, passes) < 1e-13


def test_rows_depend_on_the_step_number_and_the_loss_is_their_mean_before_the_update():
    step = make_step(batch_size=2, gradient_accumulation_steps=3, seed=9)
    data, model = step.gradients.data, step.gradients.model
    x, y = TokenDataset.batch(data, 9, 4 * 6, 6, LECTURE.block_size)
    with torch.no_grad():
        expected = model(x, y)[1]
    loss = step(4)
    assert torch.equal(torch.cat([rows for rows, _ in data.given]), x)
    assert not torch.equal(x, TokenDataset.batch(data, 9, 5 * 6, 6, LECTURE.block_size)[0])
    assert loss.shape == ()
    assert not loss.requires_grad
    assert torch.allclose(loss, expected, rtol=1e-12)


def test_clipping_limits_the_norm_of_all_gradients_together():
    def update(grad_clip):
        step = make_step(grad_clip=grad_clip)
        sgd = torch.optim.SGD(step.gradients.model.parameters(), lr=1.0)
        sgd.param_groups[0]["initial_lr"] = 1.0
        step.gradients.optimizers = [sgd]
        before = weights_of(step)
        step(0)
        pairs = zip(before, weights_of(step), strict=True)
        return torch.cat([(old - new).flatten() for old, new in pairs])

    whole, clipped = update(0.0), update(0.1)
    assert whole.norm() > 0.1
    assert clipped.norm() == pytest.approx(0.1, 1e-4)
    assert torch.allclose(clipped / clipped.norm(), whole / whole.norm(), atol=1e-9)
    assert torch.equal(update(1e9), whole)


@pytest.mark.parametrize(
    ("ranks", "steps", "passes"),
    [
        *((1, 0, 1), (1, 5, 5), (2, 0, 1), (2, 6, 3)),
        (2, 3, "3, .* is not a multiple of the 2 ranks"),
    ],
)
def test_passes_of_a_step_on_every_rank(ranks, steps, passes, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    config = replace(CONFIG, gradient_accumulation_steps=steps)
    if isinstance(passes, int):
        assert batch_plan(config).passes == passes
    else:
        with pytest.raises(UserError, match=passes):
            batch_plan(config)


@pytest.mark.parametrize(
    ("device", "ranks", "changes", "kind", "reason"),
    [
        (CPU, 1, {}, EagerStep, "eager because the device is cpu"),
        (CPU, 1, {"step": "eager"}, EagerStep, "eager"),
        (CPU, 1, {"step": "compile"}, EagerStep, "eager, with the model compiled by torch.compile"),
        (GPU, 1, {}, GraphStep, "one CUDA graph"),
        (GPU, 2, {}, DeviceStep, "eager because ranks exchange gradients"),
    ],
)
def test_the_step_that_is_chosen(device, ranks, changes, kind, reason, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    source = torch.device("cuda", 0) if device == GPU else device  # a tensor's device has an index
    config, data = replace(CONFIG, **changes), SimpleNamespace(source=source)
    precision = Precision(device, torch.bfloat16)
    chosen, printed = choose_step(config, precision, data)
    assert chosen is kind
    assert printed == reason
    assert config.compiles_model == (config.step == "compile")
    if "because" in reason:
        with pytest.raises(UserError, match=reason.removeprefix("eager ")):
            choose_step(replace(config, step="graph"), precision, data)
