"""`pytest bench`, an operation at a time, so that one that loses the card takes no other along."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench import timed
from bench.figures import REPOSITORY
from bench.stages import ALONE, Outcome, failed, no_time, passed, work_through

GRACE = 60  # seconds beyond its time, for the measurement that was begun: it may have to compile


def work(operation: str, seconds: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.json"
        run = command(operation, file, seconds)
        try:
            code = subprocess.run(
                run, cwd=REPOSITORY, env=os.environ | ALONE, timeout=seconds + GRACE
            ).returncode
        except subprocess.TimeoutExpired:
            return no_time()
        return judge(operation, rows(file), code)


def command(operation: str, file: Path, seconds: float) -> list[str]:
    pytest = [sys.executable, "-m", "pytest", "bench", "-p", "pytest_benchmark.plugin"]
    pytest += ["-rs", "-W", "default", "--operation", operation]
    return [*pytest, "--minutes", str(seconds / 60), f"--benchmark-json={file}"]


def rows(file: Path) -> list[dict]:
    """The rows of figures that a run of pytest-benchmark has left."""
    text = file.read_text() if file.exists() else ""  # empty when nothing was measured
    return [one["extra_info"] for one in json.loads(text)["benchmarks"]] if text else []


def judge(operation: str, measured: list[dict], code: int) -> Outcome:
    groups = {(row["shape"], row["pass"]) for row in measured}
    wanted = sum(len(timed.passes(case)) for case in timed.CARD if case.operation == operation)
    says = f"{len(measured)} figures, {len(groups)} of {wanted} shapes and passes"
    if code != 0:
        return failed(f"{says}; pytest ended with {code}", rows=measured)
    return passed(says, rows=measured) if measured else no_time()


def operations() -> dict[str, int]:
    """Every operation and module, and how many cases it has."""
    return Counter(case.operation for case in timed.CARD)


if __name__ == "__main__":
    work_through(operations(), work)
