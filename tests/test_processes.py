"""train.py as a process: its exit code, its one sentence, signals, kill -9, a full disk."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sample
from tests.runs import CPU, SIZES, metrics, record, run, tensor_files, write_text

ROOT = Path(__file__).parent.parent
# a run that nobody reads waits at the latest when its pipe is full, some 1,000 lines later
LONG = ["--max-iters=40000", "--eval-interval=50", "--log-interval=1", "--sample=0"]
LONG += ["--lr-decay-iters=40000"]  # whatever the length of a part
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@contextlib.contextmanager
def started(folder, *options, launcher=(), environment=(), **more):
    """train.py as a user starts it, its output in pipes; it does not outlive the context."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    variables |= dict(environment)
    with subprocess.Popen(
        [sys.executable, *launcher, ROOT / "train.py", *options, f"--out-dir={folder / 'out'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        **more,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def fresh(folder):
    return ["--preset=shakespeare-char", f"--data={write_text(folder)}", *SIZES, *CPU, *LONG]


def until_line(process, *beginnings):
    """Read its lines until one begins so."""
    for line in process.stdout:
        if line.startswith(beginnings):
            return
    pytest.fail(process.stderr.read())


def end(process):
    """Exit code, the rest of stdout, stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_signals_and_kill_9_lose_nothing(tmp_path, capsys):
    reached = 0
    for number, options in ((signal.SIGTERM, fresh(tmp_path)), (signal.SIGINT, ["--resume"])):
        with started(tmp_path, *options) as process:
            until_line(process, f"iter {reached + 3}:")
            process.send_signal(number)
            code, out, err = end(process)
        assert code == 0
        assert "once more stops at once" in err
        assert "Traceback" not in err
        before, reached = reached, record(tmp_path / "out")["step"]
        assert reached >= before + 3
        name = signal.Signals(number).name
        assert f"stopped by {name} after step {reached}, which is saved; go on with: " in out
        assert f"python train.py --resume --out-dir {tmp_path / 'out'}\n" in out

    with started(tmp_path, "--resume") as process:
        until_line(process, f"iter {reached + 20}:")
        # it is at work: nobody else may train there, and everybody may read
        before = record(tmp_path / "out")["train"]
        for options in ([], ["--resume"]):
            assert run(tmp_path / "out", *options) == 2
            said = capsys.readouterr().err
            assert f"another train.py is at work in {tmp_path / 'out'}; wait for it or" in said
        assert not (tmp_path / "out.1").exists()
        assert record(tmp_path / "out")["train"] == before
        speak = ["--device=cpu", "--max-new-tokens=5", f"--out-dir={tmp_path / 'out'}"]
        assert sample.main(speak) == 0
        assert process.poll() is None
        process.kill()
        assert end(process)[0] == -signal.SIGKILL

    # where it was killed does not count, but what it had saved by then
    length = f"--max-iters={record(tmp_path / 'out')['step'] + 30}"
    assert run(tmp_path / "out", "--resume", length) == 0
    assert run(tmp_path / "whole", *LONG, length) == 0
    assert tensor_files(tmp_path / "out") == tensor_files(tmp_path / "whole")
    assert metrics(tmp_path / "out") == metrics(tmp_path / "whole")
    assert not list((tmp_path / "out").glob("*.partial"))


def test_a_second_signal_stops_at_once(tmp_path):
    long = "--gradient-accumulation-steps=20000"  # a minute, should this test be killed
    with started(tmp_path, *fresh(tmp_path), long) as process:
        until_line(process, "step 0: val loss")
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert "once more stops at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        code, _, err = end(process)
    assert code == -signal.SIGINT
    assert err == ""


def test_ranks_stop_together_and_go_on_in_every_bit(tmp_path):
    with started(tmp_path, *fresh(tmp_path), launcher=TWO_RANKS) as torchrun:
        until_line(torchrun, "iter 3:")
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text()
        assert len(children.split()) == 2
        # as a batch system does it: all hear of it, and the ranks once more from torchrun
        for process in (*children.split(), torchrun.pid):
            os.kill(int(process), signal.SIGTERM)
        _, out, err = end(torchrun)
    reached = record(tmp_path / "out")["step"]
    assert f"stopped by SIGTERM after step {reached}, which is saved" in out
    assert err.count("once more stops at once") == 2

    length = f"--max-iters={reached + 3}"
    for folder, options in ((tmp_path, ["--resume"]), (tmp_path / "whole", fresh(tmp_path))):
        with started(folder, *options, length, launcher=TWO_RANKS) as run:
            assert end(run)[0] == 0
    assert tensor_files(tmp_path / "out") == tensor_files(tmp_path / "whole" / "out")
    assert metrics(tmp_path / "out") == metrics(tmp_path / "whole" / "out")


def test_triton_where_it_cannot_run(tmp_path):
    if "TRITON_INTERPRET" not in os.environ:
        pytest.skip("there is a GPU here")
    options, compiled = [*fresh(tmp_path), "--kernels=triton"], {"TRITON_INTERPRET": "0"}
    with started(tmp_path, *options, environment=compiled) as process:
        code, _, err = end(process)
    assert code == 2
    assert err.startswith("train.py: --kernels triton cannot run here: ")
    assert "use --kernels torch" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tmp_path):
    assert run(tmp_path / "out", "--max-iters=4", "--lr-decay-iters=8") == 0
    before = tensor_files(tmp_path / "out")

    def limit():  # less than the weights take
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    with started(tmp_path, "--resume", "--max-iters=8", preexec_fn=limit) as process:
        code, _, err = end(process)
    assert code == 2
    assert err.count("\n") == 1
    assert "train.py: the checkpoint of step 6 could not be saved" in err
    assert "File too large" in err
    assert "go on from it with --resume when there is room" in err
    assert tensor_files(tmp_path / "out") == before
    assert record(tmp_path / "out")["step"] == 4
    assert not list((tmp_path / "out").glob("*.partial"))
    assert run(tmp_path / "out", "--resume", "--max-iters=8") == 0
    assert run(tmp_path / "whole", "--max-iters=8") == 0
    assert tensor_files(tmp_path / "out") == tensor_files(tmp_path / "whole")
