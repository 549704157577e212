"""A checkpoint that is saved over another one, and what may stand in the folder afterwards.

As a program it is killed at every step of a save, by `kill -9` of the process itself, and checks
what it left: `python -m tests.gpt.runs.saving FOLDER` prints how many steps there are.
"""

import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch

from gpt.runs import checkpoint
from gpt.runs.checkpoint import load, save

KINDS = ("weights", "optimizer", "random")
WRITERS = ("save_file", "write_bytes")


def tensors_of(step, size=5):
    return {
        "weights": {"a.weight": torch.full((size, 3), float(step)), "b": torch.arange(size)},
        "optimizer": {"0/a.weight/exp_avg": torch.full((size, 3), step / 7)},
        "random": {"cpu": torch.arange(9, dtype=torch.uint8)},
    }


def save_step(folder, step, names=None, **record):
    names = names or {"best": ("weights",), "last": KINDS}
    save(folder, names, tensors_of(step), {"step": step, **record})


def step_of(folder, name, kinds=KINDS):
    """The step of a checkpoint that is whole."""
    record, tensors = load(folder, name, kinds)
    for kind in kinds:
        expected = tensors_of(record["step"])[kind]
        assert tensors[kind].keys() == expected.keys()
        for key, tensor in expected.items():
            assert tensors[kind][key].equal(tensor)
            assert tensors[kind][key].dtype == tensor.dtype
    return record["step"]


def assert_old_or_new(folder, old, new):
    """Both checkpoints are whole, and `last` is not ahead of `best`."""
    best, last = step_of(folder, "best", ("weights",)), step_of(folder, "last")
    assert (best, last) in ((old, old), (new, old), (new, new)), (best, last)
    return last


class Faults:
    """Calls `strike(half)` at the `when`-th call into the file system; `half` does half of it.

    `calls` are the names of those that were made.
    """

    NAMES = (
        (os, "open"),
        (os, "fsync"),
        (os, "replace"),
        (checkpoint, "save_file"),
        (Path, "write_bytes"),
        (Path, "unlink"),
    )

    def __init__(self, when, strike):
        self.when, self.strike, self.calls = when, strike, []
        self.patches = [
            mock.patch.object(owner, name, self.wrapped(getattr(owner, name), name))
            for owner, name in self.NAMES
        ]

    def wrapped(self, function, name):
        def call(*arguments, **options):
            self.calls.append(name)
            if len(self.calls) == self.when:
                self.strike(lambda: half(function, name, arguments, options))
            return function(*arguments, **options)

        return call

    def __enter__(self):
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *error):
        for patch in self.patches:
            patch.stop()


def half(function, name, arguments, options):
    """A file of half its length; other calls are done or not."""
    if name not in WRITERS:
        return
    function(*arguments, **options)
    path = Path(arguments[1] if name == "save_file" else arguments[0])
    os.truncate(path, path.stat().st_size // 2)


def kill_before(half):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_half_way(half):
    half()
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder):
    save_step(folder, 0)
    with Faults(0, None) as faults:
        save_step(folder, 1)
    step, kept = 1, {"old": 0, "new": 0}
    for when, name in enumerate(faults.calls, start=1):
        for strike in (kill_before, kill_half_way) if name in WRITERS else (kill_before,):
            step += 1
            process = os.fork()
            if process == 0:
                with Faults(when, strike):
                    save_step(folder, step)
                os._exit(0)
            _, status = os.waitpid(process, 0)
            assert os.WIFSIGNALED(status), f"{name}, call {when}, was not reached"
            assert os.WTERMSIG(status) == signal.SIGKILL
            last = assert_old_or_new(folder, step - 1, step)
            kept["new" if last == step else "old"] += 1
            save_step(folder, step)  # it goes on from there, and clears up
            checkpoint.remove_partial(folder)
            assert len(list(folder.iterdir())) == 5, list(folder.iterdir())
    print(json.dumps({"calls": faults.calls, **kept}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
