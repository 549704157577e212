"""`make prove` from beginning to end on a fake GPU, with a stage that hangs and one that dies.

Every process is the real one; only the GPU is not (`tests/rehearsal/fake_gpu.py`), and sizes are
small.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import results_file
from bench.prove import __main__ as prove
from bench.results_file import REPOSITORY
from tests.rehearsal.fake_gpu import FAULT, NAME

SITE = REPOSITORY / "tests" / "rehearsal" / "site"
HANGING, DYING = "kernels", "lecture: torch, graph"  # parts of the stages compile and step


def start(folder: Path, fault: str, *options: str) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": f"{SITE}{os.pathsep}{REPOSITORY}",
        "OMP_NUM_THREADS": "1",
        "SHAKESPEARE": "python-docs",
        FAULT: fault,
        "REHEARSAL": str(folder),  # by which its processes are known
    }
    command = [sys.executable, "-m", "bench.prove", f"--out={folder}", "--commit=abc", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes)


def result_of(folder: Path) -> dict:
    (path,) = folder.glob("*.json")
    return results_file.read(path)


def test_the_whole_plan_runs_whatever_one_part_does(tmp_path):
    process = start(tmp_path, f"{HANGING}=hangs;{DYING}=dies", "--minutes=5")
    printed, _ = process.communicate()
    log = (tmp_path / prove.LOG).read_text()
    assert process.returncode == 1, printed + log  # a stage has failed
    result = result_of(tmp_path)
    assert result["card"]["name"] == NAME
    assert set(result["ceilings"]) == {"copy_bytes_per_second", "matmul_flops_per_second"}
    stages = result["stages"]
    assert list(stages) == list(prove.PLAN)
    states = {name: stage["state"] for name, stage in stages.items()}
    assert states.pop("step") == "failed"
    assert set(states.values()) == {"passed"}, printed + log
    parts = stages["step"]["parts"]
    assert parts.pop(DYING)["says"].startswith("ended with 7")
    assert {part["state"] for part in parts.values()} == {"passed"}
    assert parts["lecture: triton, graph"]["figures"]["tokens_per_second"] > 0
    assert "5 losses within" in stages["profile"]["parts"]["lecture"]["says"]
    assert {row["rival"] for row in result["rows"]} == {"triton", "torch", "torch.compile"}
    assert "no time was left" in printed.splitlines()[0]  # for the stage that hangs
    assert "not done: decode, repeat, sanitize, ledger, soak, ladder" in printed


def test_what_was_found_before_a_kill_is_kept(tmp_path):
    hanging = "lecture: triton, graph=hangs"
    process = start(tmp_path, hanging, "--stages=loss,step", "--minutes=20")
    log = tmp_path / prove.LOG
    while process.poll() is None and not _mentions(log, "bench.prove.stages.step"):
        time.sleep(0.2)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    result = result_of(tmp_path)
    assert list(result["stages"]) == ["loss"]
    assert result["stages"]["loss"]["state"] == "passed"
    assert list(tmp_path.glob("*.part")) == []
    deadline = time.monotonic() + 10  # a process that is killed takes a moment to go
    while (left := _processes_with(f"REHEARSAL={tmp_path}")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def _mentions(log: Path, text: str) -> bool:
    return log.exists() and text in log.read_text()


def _processes_with(variable: str) -> list[str]:
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in environment.read_bytes():
                found.append(environment.parent.name)
        except OSError:
            continue
    return found
