"""Saves that fail or are killed at a given call to the file system.

`python -m tests.gpt.runs.saving FOLDER` kills a save with SIGKILL at every call, checks what is
left each time, and prints the calls.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch

from gpt.files import remove_partial
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
    """The step of a checkpoint, after checking its tensors."""
    record, tensors = load(folder, name, kinds)
    for kind in kinds:
        expected = tensors_of(record["step"])[kind]
        torch.testing.assert_close(tensors[kind], expected, rtol=0, atol=0)
    return record["step"]


def assert_old_or_new(folder, old, new):
    """Check that both checkpoints are whole and `last` is not newer; return its step."""
    best, last = step_of(folder, "best", ("weights",)), step_of(folder, "last")
    assert (best, last) in ((old, old), (new, old), (new, new)), (best, last)
    return last


NAMES = (
    (os, "open"),
    (os, "fsync"),
    (os, "replace"),
    (checkpoint, "save_file"),
    (Path, "write_bytes"),
    (Path, "unlink"),
)


@contextlib.contextmanager
def faults(when, strike):
    """Call `strike(half)` before the `when`-th call to the file system; yield the calls so far.

    `half()` writes half of the file.
    """
    calls = []

    def wrapped(function, name):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == when:
                strike(lambda: half(function, name, arguments, options))
            return function(*arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in NAMES:
            patch = mock.patch.object(owner, name, wrapped(getattr(owner, name), name))
            stack.enter_context(patch)
        yield calls


def half(function, name, arguments, options):
    if name in WRITERS:
        function(*arguments, **options)
        path = Path(arguments[1] if name == "save_file" else arguments[0])
        os.truncate(path, path.stat().st_size // 2)


def kill(half):
    half()
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder):
    save_step(folder, 0)
    with faults(0, None) as calls:
        save_step(folder, 1)
    kept = {"old": 0, "new": 0}
    for when, name in enumerate(calls, start=1):
        step, process = when + 1, os.fork()
        if process == 0:
            with faults(when, kill):
                save_step(folder, step)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), f"{name}, call {when}, was not reached"
        assert os.WTERMSIG(status) == signal.SIGKILL
        last = assert_old_or_new(folder, step - 1, step)
        kept["new" if last == step else "old"] += 1
        save_step(folder, step)  # the next save succeeds and removes what is not needed
        remove_partial(folder)
        assert len(list(folder.iterdir())) == 5, list(folder.iterdir())
    print(json.dumps({"calls": calls, **kept}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
