"""If a batch does not fit in memory, the error names a batch size that was tried and fits."""

import pytest
import torch

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.data.batches import TokenDataset
from gpt.models.packed import GPT
from gpt.training.out_of_memory import take_step
from gpt.training.step import EagerStep
from kernels.torch_ops import OPS
from tests.gpt.configs import LECTURE, randomise
from tests.gpt.training.steps import all_equal, small_step, state_of
from tests.runs import run


class Limited(TokenDataset):
    """A dataset whose batches of more than `room` rows run out of memory."""

    def batch(self, seed, first_row, rows, block_size, split="train"):
        if rows > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().batch(seed, first_row, rows, block_size, split)


def make_step(room, **options):
    config = TrainConfig(model=LECTURE, batch_size=12, **options)
    step = small_step(EagerStep, randomise(GPT(LECTURE, OPS)), config, dataset=Limited)
    step.gradients.data.room = room
    return step


@pytest.mark.parametrize(
    ("room", "rows", "options", "passes"),
    [
        (11, 6, {}, 1),
        (6, 6, {"gradient_accumulation_steps": 3}, 3),
        (5, 4, {"tokens_per_step": 2 * 12 * 8}, 2),
        (1, 1, {}, 1),
    ],
)
def test_error_names_the_largest_divisor_of_the_batch_size_that_fits(room, rows, options, passes):
    with pytest.raises(UserError) as error:
        take_step(make_step(room, **options), 3)
    smaller = f"--batch-size {rows} --gradient-accumulation-steps {passes * 12 // rows}"
    assert f"--batch-size 12 does not fit in memory; use {smaller}, which" in str(error.value)


def test_a_model_that_fits_with_no_batch_size_is_rejected():
    with pytest.raises(UserError, match="not even one sequence fits in memory"):
        take_step(make_step(0), 0)


@pytest.mark.parametrize("taken", [0, 1])
def test_trying_smaller_batches_changes_no_weight_and_no_optimizer_state(taken):
    step = make_step(12)
    for number in range(taken):
        assert take_step(step, number).isfinite()
    before = state_of(step)
    step.gradients.data.room = 3
    with pytest.raises(UserError, match="use --batch-size 3"):
        take_step(step, taken)
    assert all_equal(before, state_of(step))


def test_other_errors_and_errors_on_several_ranks_are_raised(monkeypatch):
    step = make_step(12)
    monkeypatch.setattr(step.gradients, "clip", lambda: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        take_step(step, 0)
    step = make_step(1)
    monkeypatch.setattr("gpt.training.distributed.world_size", lambda: 2)
    with pytest.raises(torch.OutOfMemoryError):
        take_step(step, 0)


def test_train_py_reports_a_batch_size_that_fits(tmp_path, monkeypatch, capsys):
    batch = TokenDataset.batch

    def limited(self, seed, first_row, rows, *more):
        if rows > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return batch(self, seed, first_row, rows, *more)

    monkeypatch.setattr(TokenDataset, "batch", limited)
    assert run(tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: --batch-size 4 does not fit in memory; use --batch-size 1 ")
