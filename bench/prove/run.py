"""Runs a stage of `make prove` as a process, with a time limit, whatever happens in it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.prove.stage import Outcome, failed, no_time
from bench.results import REPOSITORY

SOFT_LIMIT = 0.85  # of its time, after which a stage starts no further part; at 1 it is killed


def run_stage(
    module: str, seconds: float, log: Path, arguments: list[str] = ()
) -> dict[str, Outcome]:
    """Run a stage until each part has an outcome or the time is over.

    If the process ends in a part, that part has failed and the stage starts again without it.
    """
    deadline = time.monotonic() + seconds
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        while (left := deadline - time.monotonic()) > 0:
            skip = [f"--skip={part}" for part in outcomes]
            with start(module, left, log, report, [*arguments, *skip]) as process:
                code = wait(process, left)
            written = json.loads(report.read_text()) if report.exists() else {}
            report.unlink(missing_ok=True)
            outcomes |= {part: outcome for part, outcome in written.items() if outcome}
            if code == 0:
                return outcomes
            reason = failed(f"ended with {code}: {_last_line(log)}") if code else no_time()
            current = [part for part, outcome in written.items() if outcome is None]
            outcomes |= dict.fromkeys(current or [module.rpartition(".")[2]], reason)
            if not current:  # it failed before its first part
                return outcomes
    return outcomes


@contextlib.contextmanager
def beside(module: str, seconds: float, log: Path, arguments: list[str] = ()) -> Iterator[None]:
    """Run a stage at the same time as the block, and wait for both. Its outcomes are not used."""
    deadline = time.monotonic() + seconds
    log = log.with_name(f"{module.rpartition('.')[2]}.log")
    with (
        tempfile.TemporaryDirectory() as folder,
        start(module, seconds, log, Path(folder) / "report.json", arguments) as process,
    ):
        yield
        wait(process, deadline - time.monotonic())


@contextlib.contextmanager
def start(module: str, seconds: float, log: Path, report: Path, arguments: list[str]):
    """Start the process of a stage; on exit, kill it with every process that it has started."""
    command = [sys.executable, "-m", "bench.prove.stage", module, f"--report={report}"]
    command += [f"--seconds={SOFT_LIMIT * seconds:.1f}", *arguments]
    with log.open("a") as file:
        file.write(f"\n$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=file, stderr=file, start_new_session=True
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit code, or None if the process still runs after `seconds`."""
    try:
        return process.wait(timeout=max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        return None


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
