"""A save that fails or is killed at any call leaves the old checkpoint or the new one."""

import errno
import json
import os
import subprocess
import sys

import pytest

from gpt import UserError
from tests.gpt.runs.saving import assert_old_or_new, faults, save_step, step_of


def test_kill_9_at_any_call_leaves_the_old_or_the_new_checkpoint(tmp_path):
    command = [sys.executable, "-m", "tests.gpt.runs.saving", str(tmp_path)]
    counted = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    calls = counted["calls"]
    # a file is flushed before it is renamed, and its name before another file refers to it
    tensors = ["save_file", "open", "fsync", "replace"]
    folder, json_file = ["open", "fsync"], ["write_bytes", "open", "fsync", "replace"]
    expected = [*tensors * 3, *folder, *json_file, *folder, *json_file, *folder]
    assert calls[: len(expected)] == expected
    assert set(calls[len(expected) :]) == {"unlink"}
    assert counted["old"] + counted["new"] == len(calls)
    assert counted["new"] >= 2  # killed while removing old files


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_an_error_at_any_call_leaves_the_old_or_the_new_checkpoint(tmp_path, number):
    def fail(half):
        if number == errno.ENOSPC:
            half()
        raise OSError(number, os.strerror(number))

    save_step(tmp_path, 0)
    with faults(0, fail) as calls:
        save_step(tmp_path, 1)
    for when, name in enumerate(calls, start=1):
        old = step_of(tmp_path, "last")
        with faults(when, fail):
            if name == "unlink":  # the checkpoint is complete
                save_step(tmp_path, old + 1)
            else:
                with pytest.raises(UserError, match="could not be saved") as error:
                    save_step(tmp_path, old + 1)
                assert os.strerror(number) in str(error.value)
                assert "\n" not in str(error.value)
        assert_old_or_new(tmp_path, old, old + 1)
        assert not list(tmp_path.glob("*.partial"))
