"""A loss or gradients that are not finite change no weight, eagerly and on the device."""

from dataclasses import replace

import pytest
import torch

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.models.packed import GPT
from gpt.runs.run_state import Saver
from gpt.training import distributed
from gpt.training.gradients import Gradients
from gpt.training.step import DeviceStep, EagerStep, GraphStep
from kernels import triton_ops
from kernels.torch_ops import OPS
from tests.gpt.configs import LECTURE, randomise
from tests.gpt.training.steps import DEVICE, all_equal, fused_adamw, small_step, state_of
from tests.runs import metrics, record, run, tensor_files

SMALL = replace(LECTURE, n_layer=1, n_embd=16)
CONFIG = TrainConfig(model=SMALL, batch_size=2, learning_rate=0.01, nan="skip")
EAGER = EagerStep, OPS.adamw
FUSED = [(kind, fused_adamw) for kind in (EagerStep, DeviceStep, GraphStep)]
TRITON = [(kind, triton_ops.OPS.adamw) for kind in (DeviceStep, GraphStep)]


def make_step(kind, adamw=fused_adamw, bad=(), **changes):
    """A step whose gradients hold a NaN or an infinity at the step numbers in `bad`."""
    model = randomise(GPT(SMALL, OPS)).to(DEVICE)
    step = small_step(kind, model, replace(CONFIG, **changes), adamw)
    worst = {number: (float("nan"), float("inf"))[number % 2] for number in bad}

    def spoil(gradient):
        spoilt = gradient.clone()
        spoilt.flatten()[3] = worst.get(step.now, gradient.flatten()[3])
        return spoilt

    model.blocks[0].ffwd.up.weight.register_hook(spoil)
    return step


def take(step, number):
    step.now = number
    if isinstance(step, GraphStep):  # what the graph captures
        step.number.fill_(number)
        return step.run(step.number)
    return step(number)


def is_unchanged(before, step):
    """Whether the step is in state `before`, except for what its optimizers have allocated."""
    return all_equal(before, state_of(step)[: len(before)])


@pytest.mark.parametrize(
    ("kind", "adamw", "optimizer", "grad_clip"),
    [
        *((*kind, "adamw", 1.0) for kind in (EAGER, *FUSED, TRITON[1])),
        *((*kind, "adamw", 0.0) for kind in (EAGER, FUSED[1], TRITON[0])),
        *((*kind, "muon", 1.0) for kind in (EAGER, FUSED[2], TRITON[0])),
    ],
)
def test_nan_skip_leaves_out_steps_that_are_not_finite(kind, adamw, optimizer, grad_clip, capsys):
    options = {"optimizer": optimizer, "grad_clip": grad_clip}
    good, spoilt = make_step(kind, adamw, **options), make_step(kind, adamw, (0, 2, 3), **options)
    for number in range(5):
        before = state_of(spoilt)
        take(spoilt, number)
        if number in (0, 2, 3):
            assert is_unchanged(before, spoilt)
            continue
        take(good, number)
        assert all_equal(state_of(good), state_of(spoilt))
    assert "skipped" not in capsys.readouterr().out or kind is EagerStep
    spoilt.check()
    assert spoilt.policy.skipped == 3
    printed = capsys.readouterr().out
    if kind is not EagerStep:
        assert printed.startswith("step 3: the loss is ")
        assert printed.endswith("on rows 6 to 7; skipped (3 skipped steps in total)\n")
    spoilt.check()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("kind", "adamw"), [EAGER, *FUSED, TRITON[1]])
def test_nan_stop_raises_with_the_weights_of_the_step_before(kind, adamw):
    step = make_step(kind, adamw, (1, 3), nan="stop")
    take(step, 0)
    before = state_of(step)
    if kind is not EagerStep:  # the device continues until the check, and changes nothing
        for number in range(1, 4):
            take(step, number)
    with pytest.raises(UserError, match=r"step 1: the loss is .* are not finite, on rows"):
        take(step, 1) if kind is EagerStep else step.check()
    assert all_equal(before, state_of(step))


def test_a_device_step_checks_once_per_log_interval(monkeypatch):
    checked = []
    step = make_step(GraphStep, log_interval=3)
    monkeypatch.setattr(step, "take", lambda number: torch.zeros(()))  # no GPU is needed
    monkeypatch.setattr(step, "check", lambda: checked.append(int(step.number)))
    for number in range(7):
        step(number)
    assert checked == [2, 5]


@pytest.mark.parametrize("kind", [EagerStep, DeviceStep])
def test_a_step_that_is_not_finite_on_another_rank_is_skipped(kind, monkeypatch):
    step = make_step(kind)
    monkeypatch.setattr(distributed, "any_rank", lambda flag: [True])
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda value: value + 1)
    before = state_of(step)
    take(step, 0)
    assert is_unchanged(before, step)
    step.check()
    assert step.policy.skipped == 1


def test_train_py_checks_the_device_before_each_checkpoint(tmp_path, monkeypatch):
    events, save = [], Saver.save
    monkeypatch.setattr(EagerStep, "check", lambda self: events.append("check"))
    saved = lambda *given, **options: (events.append("save"), save(*given, **options))  # noqa: E731
    monkeypatch.setattr(Saver, "save", saved)
    assert run(tmp_path / "out") == 0
    assert events == ["check", "save"] * 3


def test_train_py_stops_at_a_loss_that_is_not_finite_and_names_the_checkpoint(tmp_path, capsys):
    folder = tmp_path / "out"
    assert run(folder) == 0
    before = tensor_files(folder)
    capsys.readouterr()
    diverging = ["--learning-rate=1e14", "--decay-lr=False", "--warmup-iters=0"]
    assert run(folder, "--resume", "--max-iters=20", "--eval-interval=9", *diverging) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.py: step " in line
    assert "the run's last checkpoint is intact: continue from it with --resume" in line
    assert tensor_files(folder) == before
    assert run(folder, "--resume", "--max-iters=6") == 0


def test_resume_continues_the_count_of_skipped_steps(tmp_path, monkeypatch, capsys):
    call = Gradients.__call__

    def spoilt(self, step):
        loss, norm = call(self, step)
        return loss * (float("nan") if step in (1, 5) else 1.0), norm

    monkeypatch.setattr(Gradients, "__call__", spoilt)
    assert run(tmp_path / "out", "--nan=skip") == 0
    assert record(tmp_path / "out")["skipped"] == 1
    assert run(tmp_path / "out", "--resume", "--max-iters=8") == 0
    assert record(tmp_path / "out")["skipped"] == 2
    assert "step 5: the loss is nan" in capsys.readouterr().out
    losses = [line["loss"] for line in metrics(tmp_path / "out") if "loss" in line]
    assert [step for step, loss in enumerate(losses) if loss is None] == [1, 5]
