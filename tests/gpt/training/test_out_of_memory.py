"""A batch that is too large for memory: the sentence names one that fits, after trying it."""

import re

import pytest
import torch

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.data.batches import Data
from gpt.data.tokenizers import ByteTokenizer
from gpt.models import packed
from gpt.training import out_of_memory
from gpt.training.optimizers import make_optimizers
from gpt.training.step import Precision, Step
from kernels.torch_ops import OPS
from tests.gpt.configs import LECTURE, draw_tokens, randomise
from tests.runs import run


class Small(Data):
    """Data on a machine that has room for so many rows in a pass."""

    room = 0

    def batch(self, seed, first_row, rows, block_size, split="train"):
        if rows > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().batch(seed, first_row, rows, block_size, split)


def make_step(room, batch_size=12, **options):
    config = TrainConfig(model=LECTURE, batch_size=batch_size, **options)
    gpt = randomise(packed.GPT(config.model, OPS))
    tokens = draw_tokens(1, 300)[0]
    data = Small("text", tokens, tokens, ByteTokenizer())
    data.room = room
    optimizers = make_optimizers(gpt, config, torch.optim.AdamW)
    return Step(gpt, optimizers, data, config, Precision(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize(("room", "rows"), [(11, 6), (6, 6), (5, 4), (1, 1)])
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1),
        ({"gradient_accumulation_steps": 3}, 3),
        ({"tokens_per_step": 2 * 12 * LECTURE.block_size}, 2),
    ],
)
def test_the_largest_part_of_the_batch_that_fits(room, rows, options, passes):
    step = make_step(room, **options)
    with pytest.raises(UserError) as refusal:
        out_of_memory.take(step, 3, step.data)
    fits = f"--batch-size {rows} --gradient-accumulation-steps {passes * 12 // rows} fits"
    assert re.search(f"for --batch-size 12; {fits}, and trains the same model$", str(refusal.value))
    assert out_of_memory.take(make_step(12, **options), 3, step.data).isfinite()


def test_not_even_one_sequence():
    step = make_step(0)
    with pytest.raises(
        UserError, match="for a single sequence; give a smaller model or --block-size"
    ):
        out_of_memory.take(step, 0, step.data)


def test_other_errors_and_other_ranks_are_not_tried_around(monkeypatch):
    step = make_step(12)
    monkeypatch.setattr(step, "update", lambda: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        out_of_memory.take(step, 0, step.data)
    step = make_step(1)
    monkeypatch.setattr("gpt.training.distributed.world", lambda: 2)
    with pytest.raises(torch.OutOfMemoryError):
        out_of_memory.take(step, 0, step.data)


def test_train_py_says_it(tmp_path, monkeypatch, capsys):
    batch = Data.batch

    def short(self, seed, first_row, rows, *more):
        if rows > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return batch(self, seed, first_row, rows, *more)

    monkeypatch.setattr(Data, "batch", short)
    assert run(tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "train.py: there is not memory enough for --batch-size 4; --batch-size 1 "
    )
    assert said.count("\n") == 1
