"""`pytest bench`, an operation at a time, in this process: a new one would start too slowly.

One that loses the GPU takes the process along, and the stage begins again without it.
"""

import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from bench import workloads
from bench.prove.stages import ALONE, Outcome, failed, no_time, passed

CONTEXT_LOST = 3  # exit code: the GPU refuses everything after a kernel's illegal access


def work(operation: str, seconds: float) -> Outcome:
    os.environ |= ALONE
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.json"
        code = pytest.main(arguments(operation, file, seconds))
        if code == CONTEXT_LOST:
            os._exit(CONTEXT_LOST)
        return judge(operation, rows(file), code)


def arguments(operation: str, file: Path, seconds: float) -> list[str]:
    chosen = ["bench", "-p", "pytest_benchmark.plugin", "-rs", "-W", "default"]
    chosen += ["--operation", operation, "--minutes", str(seconds / 60)]
    return [*chosen, f"--benchmark-json={file}"]


def rows(file: Path) -> list[dict]:
    """The rows of figures that a run of pytest-benchmark has left."""
    text = file.read_text() if file.exists() else ""  # empty when nothing was measured
    return [one["extra_info"] for one in json.loads(text)["benchmarks"]] if text else []


def judge(operation: str, measured: list[dict], code: int) -> Outcome:
    groups = {(row["shape"], row["precision"], row["pass"]) for row in measured}
    wanted = sum(
        len(workloads.passes(case)) for case in workloads.CARD if case.operation == operation
    )
    says = f"{len(measured)} figures, {len(groups)} of {wanted} shapes and passes"
    if code != 0:
        return failed(f"{says}; pytest ended with {code}", rows=measured)
    return passed(says, rows=measured) if measured else no_time()


def parts() -> dict[str, float]:
    """Every operation and module, and how many cases it has."""
    return Counter(case.operation for case in workloads.CARD)
