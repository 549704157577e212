"""If a batch does not fit in memory, the error names a batch size that was tried and fits."""

import pytest

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


@pytest.fixture
def limit(monkeypatch):
    """Call it with a number of rows: larger batches then run out of memory."""
    batch = TokenDataset.batch

    def limit(room, error="[enforce fail] DefaultCPUAllocator: can't allocate memory"):
        def limited(self, seed, first_row, rows, *more):
            if rows > room and seed >= 0:  # not at an evaluation
                raise RuntimeError(error)
            return batch(self, seed, first_row, rows, *more)

        monkeypatch.setattr(TokenDataset, "batch", limited)

    return limit


def make_step(**options):
    config = TrainConfig(model=LECTURE, batch_size=12, **options)
    return small_step(EagerStep, randomise(GPT(LECTURE, OPS)), config)


@pytest.mark.parametrize(
    ("room", "options", "message"),
    [
        (11, {}, "use --batch-size 6 --gradient-accumulation-steps 2, which"),
        (6, {"gradient_accumulation_steps": 3}, "6 --gradient-accumulation-steps 6, which"),
        (5, {"tokens_per_step": 2 * 12 * 8}, "4 --gradient-accumulation-steps 6, which"),
        (1, {}, "--batch-size 1 --gradient-accumulation-steps 12, which"),
        (0, {}, "not even one sequence fits in memory"),
    ],
)
def test_error_names_the_largest_divisor_of_the_batch_size_that_fits(limit, room, options, message):
    limit(room)
    with pytest.raises(UserError, match=message):
        take_step(make_step(**options), 3)


@pytest.mark.parametrize("taken", [0, 1])
def test_trying_smaller_batches_changes_no_weight_and_no_optimizer_state(limit, taken):
    step = make_step()
    for number in range(taken):
        assert take_step(step, number).isfinite()
    before = state_of(step)
    limit(3)
    with pytest.raises(UserError, match="use --batch-size 3"):
        take_step(step, taken)
    assert all_equal(before, state_of(step))


def test_other_errors_and_errors_on_several_ranks_are_raised(limit, monkeypatch):
    limit(1, "another error")
    with pytest.raises(RuntimeError, match="another error"):
        take_step(make_step(), 0)
    limit(1)
    monkeypatch.setattr("gpt.training.distributed.world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        take_step(make_step(), 0)


def test_train_py_reports_a_batch_size_that_fits(limit, tmp_path, capsys):
    limit(1)
    assert run(tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: --batch-size 4 does not fit in memory; use --batch-size 1 ")
