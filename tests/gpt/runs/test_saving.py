"""A save that fails or is killed at any call leaves the old checkpoint or the new one."""

import contextlib
import errno
import os
from pathlib import Path
from unittest import mock

import pytest

from gpt import UserError
from gpt.files import remove_partial
from gpt.runs import checkpoint
from tests.gpt.runs.saving import save_step, step_of


class Killed(BaseException):
    """Stands for SIGKILL: the program does not catch it, and no later call reaches the disk."""


ERRORS = [OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EROFS)]
WRITERS = ("save_file", "write_bytes")
CALLS = (
    *((os, "open"), (os, "fsync"), (os, "replace")),
    *((checkpoint, "save_file"), (Path, "write_bytes"), (Path, "unlink")),
)


@contextlib.contextmanager
def fault(when, error):
    """Raise `error` at the `when`-th call to the file system; yield the calls so far.

    A call that writes leaves half of its file.
    """
    calls = []

    def wrapped(function, name):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == when and name in WRITERS:
                function(*arguments, **options)
                path = Path(arguments[1] if name == "save_file" else arguments[0])
                os.truncate(path, path.stat().st_size // 2)
            if len(calls) == when or (isinstance(error, Killed) and len(calls) > when):
                raise error
            return function(*arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in CALLS:
            patch = mock.patch.object(owner, name, wrapped(getattr(owner, name), name))
            stack.enter_context(patch)
        yield calls


@pytest.mark.parametrize("error", [*ERRORS, Killed()], ids=str)
def test_a_fault_at_any_call_leaves_the_old_or_the_new_checkpoint(tmp_path, error):
    save_step(tmp_path, 0)
    with fault(0, None) as calls:
        save_step(tmp_path, 1)
    # a file is flushed before it is renamed, and its name before another file refers to it
    tensors = ["save_file", "open", "fsync", "replace"]
    folder, json_file = ["open", "fsync"], ["write_bytes", "open", "fsync", "replace"]
    expected = [*tensors * 3, *folder, *json_file, *folder, *json_file, *folder]
    assert calls[: len(expected)] == expected
    assert set(calls[len(expected) :]) == {"unlink"}  # the checkpoint is complete

    for when, name in enumerate(calls, start=1):
        old, new = when, when + 1
        if isinstance(error, Killed):
            raised = pytest.raises(Killed)
        elif name == "unlink":
            raised = contextlib.nullcontext()
        else:
            message = rf"of step {new} could not be saved .*{error.strerror}.*\Z"
            raised = pytest.raises(UserError, match=message)
        with fault(when, error), raised:
            save_step(tmp_path, new)
        best, last = step_of(tmp_path, "best", ("weights",)), step_of(tmp_path, "last")
        assert (best, last) in ((old, old), (new, old), (new, new))
        assert last == new or name != "unlink"
        assert isinstance(error, Killed) or not list(tmp_path.glob("*.partial"))
        save_step(tmp_path, new)  # the next save succeeds and removes what is not needed
        remove_partial(tmp_path)
        assert len(list(tmp_path.iterdir())) == 5
