"""The tests of the model and of the kernels, compiled: they run interpreted without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.prove.stages import ALONE, failed, outcomes, passed
from bench.results_file import REPOSITORY

# part -> the tests, and which share of them
TESTS = {
    "tests/gpt": ("tests/gpt", None),  # CUDA graphs are of a model
    "tests/kernels, a quarter": ("tests/kernels", "1/4"),
    "tests/kernels, the rest": ("tests/kernels", "3/4"),
}
FIRST = ["tests/kernels, a quarter", "tests/gpt"]  # where there is not time for all
WORKERS = 12  # they compile most of the time, each on one core


def work(part: str, seconds: float) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes"
        tests, share = TESTS[part]
        ended = run(tests, share, file=file, seconds=seconds)
        return judge(read(file), ended)


def run(tests: str, share: str | None, *options: str, file: Path, seconds: float) -> str | None:
    """Run `tests`, or a share of them, with pytest's `options`; their outcomes go to `file`.

    Returns None, or why not all of them have run.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        tests,
        "-p",
        "bench.prove.stages.outcomes",
        "--tb=short",
    ]
    command += options
    command += ["-W", "default"]  # a library's deprecation there says nothing of our numbers
    if importlib.util.find_spec("xdist"):
        command += ["-p", "xdist.plugin", "-n", str(min(WORKERS, os.cpu_count() or 1))]
    environment = os.environ | ALONE | {outcomes.FILE: str(file)}
    if share:
        environment[outcomes.SHARE] = share
    try:
        code = subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return "the time was over before the last test"
    return None if code in (0, 1) else f"pytest ended with {code}"  # 1: tests have failed


def read(file: Path) -> list[tuple[str, str, str]]:
    """(test, outcome, what it said) of every test that has run."""
    return (
        [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    )


def judge(ran: list[tuple[str, str, str]], ended: str | None) -> dict:
    counts = Counter(outcome for _, outcome, _ in ran)
    says = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    says = says or "no test has run"
    lines = [f"{test}: {_last_line(text)}" for test, outcome, text in ran if outcome == "failed"]
    if lines:
        return failed(says, lines=lines)
    if ended or not counts["passed"]:
        return failed(f"{says}; {ended}" if ended else says)
    return passed(says)


def _last_line(text: str) -> str:
    """What went wrong, of a traceback: the last line that pytest marks with an E."""
    lines = text.strip().splitlines() or [""]
    marked = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (marked or lines)[-1][:200]


def parts() -> dict[str, float]:
    return dict.fromkeys(TESTS, 1)
