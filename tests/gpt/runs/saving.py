"""Small checkpoints whose tensors follow from their step."""

import torch

from gpt.files import Folder
from gpt.runs.checkpoint import load, save

KINDS = ("weights", "optimizer", "random")


def tensors_of(step, size=5):
    return {
        "weights": {"a.weight": torch.full((size, 3), float(step)), "b": torch.arange(size)},
        "optimizer": {"0/a.weight/exp_avg": torch.full((size, 3), step / 7)},
        "random": {"cpu": torch.arange(9, dtype=torch.uint8)},
    }


def save_step(folder, step, names=None, **record):
    names = names or {"best": ("weights",), "last": KINDS}
    with Folder(folder) as held:
        save(held, names, tensors_of(step), {"step": step, **record})


def step_of(folder, name, kinds=KINDS):
    """The step of a checkpoint, after checking its tensors."""
    record, tensors = load(folder, name, kinds)
    for kind in kinds:
        expected = tensors_of(record["step"])[kind]
        torch.testing.assert_close(tensors[kind], expected, rtol=0, atol=0)
    return record["step"]
