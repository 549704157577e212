"""`make prove` from start to end on a fake GPU, with a stage that hangs and one that dies.

All processes are real; the GPU is `tests/rehearsal/fake_gpu.py`, and sizes are small.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import results
from bench.prove import __main__ as prove
from bench.results import REPOSITORY
from tests.rehearsal.fake_gpu import FAULT, NAME
from tests.runs import write_text

SITE = REPOSITORY / "tests" / "rehearsal" / "site"
DYING = "lecture: torch, graph"  # a part of the stage step


def start(folder: Path, fault: str, *options: str) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": f"{SITE}{os.pathsep}{REPOSITORY}",
        "OMP_NUM_THREADS": "1",
        "SHAKESPEARE": str(write_text(folder)),
        FAULT: fault,
        "REHEARSAL": str(folder),  # identifies its processes
    }
    command = [sys.executable, "-m", "bench.prove", f"--out={folder}", "--commit=abc", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes)


def test_plan_completes_although_parts_hang_and_die(tmp_path):
    process = start(tmp_path, f"compile=hangs;{DYING}=dies", "--minutes=9")
    printed, _ = process.communicate()
    log, compile_log = ((tmp_path / name).read_text() for name in prove.LOGS)
    assert process.returncode == 1, printed + log
    assert re.findall(r"^(compile_\w+)", compile_log, re.M) == ["compile_kernels", "compile_step"]
    result = results.read(next(tmp_path.glob("*.json")))
    assert result["gpu"]["name"] == NAME
    stages = result["stages"]
    states = {name: stage["state"] for name, stage in stages.items()}
    assert states == dict.fromkeys(prove.PLAN, "passed") | {"step": "failed"}, printed + log
    parts = stages["step"]["parts"]
    assert parts.pop(DYING)["message"].startswith("ended with 7")
    assert {part["state"] for part in parts.values()} == {"passed"}
    assert parts["lecture: triton, graph"]["figures"]["tokens_per_second"] > 0
    assert "5 losses within" in stages["profile"]["parts"]["lecture"]["message"]
    assert {row["implementation"] for row in result["rows"]} == {"triton", "torch", "torch.compile"}
    assert "not run: repeat, sanitize, ledger" in printed


def test_sigterm_keeps_finished_stages_and_ends_every_process(tmp_path):
    hanging = "lecture: triton, graph=hangs"
    process = start(tmp_path, hanging, "--stages=loss,step", "--minutes=20")
    while process.stdout.readline().partition(":")[0] != "step":
        pass  # the stage before it has ended
    time.sleep(3.0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    result = results.read(next(tmp_path.glob("*.json")))
    assert list(result["stages"]) == ["loss"]
    assert result["stages"]["loss"]["state"] == "passed"
    assert list(tmp_path.glob("*.partial")) == []
    deadline = time.monotonic() + 10  # the kernel needs a moment to remove a killed process
    while (left := _processes_with(f"REHEARSAL={tmp_path}")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def _processes_with(variable: str) -> list[str]:
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in environment.read_bytes():
                found.append(environment.parent.name)
    return found
