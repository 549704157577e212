"""train.py as a process: exit codes, error messages, signals, kill -9, a full disk."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sample
from tests.gpt.training.ranks import on_two_ranks
from tests.runs import CPU, SIZES, full_disk, metrics, record, run, tensor_files, write_text

ROOT = Path(__file__).parent.parent
# the process blocks when its output pipe is full, after about 1,000 lines
LONG = ["--max-iters=40000", "--eval-interval=50", "--log-interval=1", "--sample=0"]
LONG += ["--lr-decay-iters=40000"]  # the same schedule whatever --max-iters is
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@contextlib.contextmanager
def started(folder, *options, launcher=()):
    """Start train.py with its output in pipes; it is killed on leaving the context."""
    variables = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    with subprocess.Popen(
        [sys.executable, *launcher, ROOT / "train.py", *options, f"--out-dir={folder / 'out'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def new_run(folder):
    return ["--preset=shakespeare-char", f"--data={write_text(folder)}", *SIZES, *CPU, *LONG]


def read_until(process, start):
    """Read the output up to the first line that begins with `start`."""
    for line in process.stdout:
        if line.startswith(start):
            return
    pytest.fail(process.stderr.read())


def finish(process):
    """Wait; return the exit code, the rest of stdout, and stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def assert_equal_runs(folder, expected):
    assert tensor_files(folder) == tensor_files(expected)
    assert metrics(folder) == metrics(expected)


def test_signals_and_kill_9_lose_nothing(tmp_path, capsys):
    """SIGINT here, SIGTERM below and in test_train.py."""
    out_dir = tmp_path / "out"
    with started(tmp_path, *new_run(tmp_path)) as process:
        read_until(process, "iter 3:")
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
    assert code == 0
    assert "Traceback" not in err
    assert "stop" in err
    reached = record(out_dir)["step"]
    assert reached >= 3
    assert f"stopped by SIGINT after step {reached}" in out
    assert f"python train.py --resume --out-dir {out_dir}\n" in out

    with started(tmp_path, "--resume") as process:
        read_until(process, f"iter {reached + 20}:")
        # during training, no other process may train in the folder, and all may read
        for options in ([], ["--resume"]):
            assert run(out_dir, *options) == 2
            assert "another train.py is" in capsys.readouterr().err
        assert not (tmp_path / "out.1").exists()
        assert sample.main(["--device=cpu", "--max-new-tokens=5", f"--out-dir={out_dir}"]) == 0
        assert process.poll() is None
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL

    length = f"--max-iters={record(out_dir)['step'] + 30}"
    assert run(out_dir, "--resume", length) == 0
    assert run(tmp_path / "whole", *LONG, length) == 0
    assert_equal_runs(out_dir, tmp_path / "whole")
    assert not list(out_dir.glob("*.partial"))


def test_a_second_signal_stops_immediately(tmp_path):
    long = "--gradient-accumulation-steps=20000"  # one step takes a minute
    with started(tmp_path, *new_run(tmp_path), long) as process:
        read_until(process, "step 0: train loss")
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert "stop" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert code == -signal.SIGINT
    assert err == ""


def test_ranks_stop_together_and_resume_exactly(tmp_path):
    with started(tmp_path, *new_run(tmp_path), launcher=TWO_RANKS) as torchrun:
        read_until(torchrun, "iter 3:")
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text()
        assert len(children.split()) == 2
        # as a batch system does: to every process, and torchrun forwards the signal to its ranks
        for process in (*children.split(), torchrun.pid):
            os.kill(int(process), signal.SIGTERM)
        _, out, err = finish(torchrun)
    reached = record(tmp_path / "out")["step"]
    assert f"stopped by SIGTERM after step {reached}" in out
    assert err.count("\nstopping") == 2  # each rank counted the signal once
    assert "FutureWarning" not in err

    length = f"--max-iters={reached + 3}"
    resumed, whole = (f"--out-dir={tmp_path / name}" for name in ("out", "whole"))
    on_two_ranks(["--resume", length, resumed], [*new_run(tmp_path), length, whole])
    assert_equal_runs(tmp_path / "out", tmp_path / "whole")


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="there is a GPU")
def test_triton_without_a_gpu_is_an_error_that_names_the_alternative(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert run(tmp_path / "out", "--kernels=triton") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: the Triton kernels cannot run here: ")
    assert "--kernels torch" in line
    assert not (tmp_path / "out").exists()


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, capsys):
    out_dir = tmp_path / "out"
    assert run(out_dir, "--max-iters=4", "--lr-decay-iters=8") == 0
    before = tensor_files(out_dir)
    capsys.readouterr()
    with full_disk(20_000):  # the file of weights is larger
        assert run(out_dir, "--resume", "--max-iters=8") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: the checkpoint of step 6 ")
    assert "File too large" in line
    assert tensor_files(out_dir) == before
    assert record(out_dir)["step"] == 4
    assert run(out_dir, "--resume", "--max-iters=8") == 0
