"""A loss or gradients that are not finite change nothing: in an eager step, and on the device."""

from dataclasses import replace

import pytest
import torch

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.data.batches import Data
from gpt.data.tokenizers import ByteTokenizer
from gpt.models.packed import GPT
from gpt.runs.run_state import Saver
from gpt.training.optimizers import make_optimizers
from gpt.training.step import DeviceStep, GraphStep, Precision, Step
from kernels.torch_ops import OPS
from kernels.triton_ops import OPS as FUSED
from tests.gpt.configs import LECTURE, draw_tokens, randomise
from tests.runs import metrics, record, run, tensor_files

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
CONFIG = TrainConfig(model=LECTURE, batch_size=2, learning_rate=0.01, grad_clip=1.0, nan="skip")


def torch_fused(*arguments, **options):
    """What a CUDA card is given by `kernels.torch_ops.adamw`."""
    return torch.optim.AdamW(*arguments, **options, fused=True)


def make_step(kind, adamw=torch_fused, bad=(), **changes):
    """A step whose gradients hold a NaN or an infinity at the numbers in `bad`."""
    config = replace(CONFIG, **changes)
    model = randomise(GPT(config.model, OPS)).to(DEVICE)
    tokens = draw_tokens(1, 300)[0].to(DEVICE)
    optimizers = make_optimizers(model, config, adamw)
    data = Data("text", tokens, tokens, ByteTokenizer(), DEVICE)
    step = kind(model, optimizers, data, config, Precision(DEVICE, torch.float32))
    step.now = None
    worst = {number: (float("nan"), float("inf"))[number % 2] for number in bad}

    def spoil(gradient):
        spoilt = gradient.clone()
        spoilt.flatten()[3] = worst.get(step.now, gradient.flatten()[3])
        return spoilt

    model.blocks[0].ffwd.up.weight.register_hook(spoil)
    return step


def take(step, number):
    step.now = number
    if isinstance(step, GraphStep):  # what the graph holds
        step.number.fill_(number)
        return DeviceStep.take(step, step.number)
    return step(number)


def state(step):
    """Everything that an update changes."""
    tensors = [weight.detach().clone() for weight in step.model.parameters()]
    for optimizer in step.optimizers:
        for mine in optimizer.state.values():
            tensors += [value.clone() for value in mine.values()]
    return tensors


def equal(one, other):
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


KINDS = [
    (Step, OPS.adamw),
    (Step, torch_fused),
    (DeviceStep, torch_fused),
    (DeviceStep, FUSED.adamw),
    (GraphStep, torch_fused),
    (GraphStep, FUSED.adamw),
]


@pytest.mark.parametrize(("kind", "adamw"), KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_step_is_none(kind, adamw, optimizer, capsys):
    good = make_step(kind, adamw, optimizer=optimizer)
    spoilt = make_step(kind, adamw, (0, 2, 3), optimizer=optimizer)
    for number in range(5):
        before = state(spoilt)
        take(spoilt, number)
        if number in (0, 2, 3):
            assert equal(before, state(spoilt)[: len(before)])
            continue
        take(good, number)
        assert equal(state(good), state(spoilt))
    assert "skipped" not in capsys.readouterr().out or kind is Step
    spoilt.check()
    assert spoilt.skipped == 3
    said = capsys.readouterr().out
    if kind is not Step:
        assert said.startswith("step 3: the loss is ")
        assert said.endswith("with rows 6 to 7; skipped, as 3 in all\n")
    spoilt.check()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("kind", "adamw"), KINDS)
def test_a_run_stops_before_the_update(kind, adamw):
    step = make_step(kind, adamw, (1, 3), nan="stop")
    take(step, 0)
    before = state(step)
    if kind is not Step:  # the device goes on until it is asked, and changes nothing
        for number in range(1, 4):
            take(step, number)
    ask = step.check if kind is not Step else lambda: take(step, 1)
    with pytest.raises(UserError, match=r"step 1: the loss is .* are not finite, with rows"):
        ask()
    assert equal(before, state(step))


def test_the_device_is_asked_before_a_checkpoint(tmp_path, monkeypatch):
    events, save = [], Saver.save
    monkeypatch.setattr(Step, "check", lambda self: events.append("check"))
    monkeypatch.setattr(Saver, "save", lambda *given: (events.append("save"), save(*given)))
    assert run(tmp_path / "out") == 0
    assert events == ["check", "save"] * 3


def test_the_device_is_asked_with_every_line(monkeypatch):
    asked = []
    step = make_step(GraphStep, log_interval=3)
    monkeypatch.setattr(step, "take", lambda number: torch.zeros(()))  # there is no card
    monkeypatch.setattr(step, "check", lambda: asked.append(int(step.number)))
    for number in range(7):
        step(number)
    assert asked == [2, 5]


# --- train.py -------------------------------------------------------------------------------------

WILD = ["--learning-rate=1e30", "--decay-lr=False", "--warmup-iters=0"]


def test_a_run_that_runs_away_stops_and_names_its_last_checkpoint(tmp_path, capsys):
    folder = tmp_path / "out"
    assert run(folder) == 0
    before = tensor_files(folder)
    capsys.readouterr()
    assert run(folder, "--resume", "--max-iters=20", "--eval-interval=9", *WILD) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "train.py: step " in said
    assert f"the last checkpoint in {folder} is good: go on from it with --resume" in said
    assert tensor_files(folder) == before
    assert run(folder, "--resume", "--max-iters=6") == 0


def test_skipped_steps_are_counted_through_a_resume(tmp_path, monkeypatch, capsys):
    backward = Step.backward

    def spoilt(self, step):
        loss, bad = backward(self, step)
        return loss * (float("nan") if step in (1, 5) else 1.0), bad

    monkeypatch.setattr(Step, "backward", spoilt)
    assert run(tmp_path / "out", "--nan=skip") == 0
    assert record(tmp_path / "out")["skipped"] == 1
    assert run(tmp_path / "out", "--resume", "--max-iters=8") == 0
    assert record(tmp_path / "out")["skipped"] == 2
    assert "step 5: the loss is nan" in capsys.readouterr().out
    losses = [line["loss"] for line in metrics(tmp_path / "out") if "loss" in line]
    assert [step for step, loss in enumerate(losses) if loss is None] == [1, 5]


def test_one_rank_s_bad_step_is_every_rank_s(monkeypatch):
    step = make_step(Step, OPS.adamw)
    monkeypatch.setattr(
        "gpt.training.distributed.any_rank", lambda flag: True
    )  # another rank's was not finite
    before = state(step)
    step(0)
    assert step.skipped == 1
    assert equal(before, state(step))


def test_one_rank_s_bad_step_is_every_rank_s_where_the_host_does_not_wait(monkeypatch):
    step = make_step(DeviceStep)
    monkeypatch.setattr("gpt.training.distributed.total", lambda value: value + 1)  # another rank's
    before = state(step)
    step(0)
    assert equal(before, state(step)[: len(before)])
    step.check()
    assert step.skipped == 1


@pytest.mark.parametrize("kind", [Step, DeviceStep])
def test_gradients_that_are_not_clipped_are_looked_at_too(kind):
    step = make_step(kind, bad=(1, 2), grad_clip=0.0)
    for number in range(3):
        before = state(step)
        take(step, number)
        assert equal(before, state(step)[: len(before)]) == (number in (1, 2))
    step.check()
    assert step.skipped == 2
