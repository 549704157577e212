"""`pytest bench`, one operation at a time, in this process: starting another takes too long."""

import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from bench.prove.stage import Outcome, failed, no_time, passed
from bench.prove.stages.parity import CONTEXT_LOST, NO_PLUGINS
from bench.workloads import timed

PARTS = Counter(case.operation for case in timed.GPU)  # weighted by the number of cases


def work(operation: str, seconds: float) -> Outcome:
    os.environ |= NO_PLUGINS
    command = ["bench", "-p", "pytest_benchmark.plugin", "-rs", "-W", "default"]
    command += [f"--operation={operation}", f"--minutes={seconds / 60}"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.json"
        code = pytest.main([*command, f"--benchmark-json={file}"])
        if code == CONTEXT_LOST:
            os._exit(CONTEXT_LOST)  # the stage starts again without this operation
        text = file.read_text() if file.exists() else ""  # empty if nothing was measured
    benchmarks = json.loads(text)["benchmarks"] if text else []
    return judge(operation, [one["extra_info"] for one in benchmarks], code)


def judge(operation: str, rows: list[dict], code: int) -> Outcome:
    groups = {(row["shape"], row["precision"], row["pass"]) for row in rows}
    count = sum(len(timed.passes(case)) for case in timed.GPU if case.operation == operation)
    message = f"{len(rows)} measurements, {len(groups)} of {count} shapes and passes"
    if code != 0:
        return failed(f"{message}; pytest ended with {code}", rows=rows)
    return passed(message, rows=rows) if rows else no_time()
