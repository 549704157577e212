"""The tests of the kernels and of the model on the GPU, where kernels are compiled.

This module is also the pytest plugin that records each outcome at once. After an illegal memory
access the GPU refuses all further work, so the plugin then ends the process; pytest-xdist, if it is
installed, starts another one with the next test and reports the guilty test as crashed.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

from bench.prove.stage import Outcome, failed, no_time, passed
from bench.results import REPOSITORY

PARTS = ("tests/kernels", "tests/gpt")
WORKERS = 12  # processes, which mostly compile, each on one core
NO_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others may be installed on a GPU machine
OUTCOMES = "GPT_KERNELS_OUTCOMES"  # an environment variable, which xdist's workers inherit
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # before tests/conftest.py removes it
CONTEXT_LOST = 3  # exit code: after an illegal access the GPU refuses all further work


def work(part: str, seconds: float) -> Outcome:
    """Run pytest with the arguments in `part` for at most `seconds`."""
    command = [sys.executable, "-m", "pytest", *part.split(), "-p", __name__, "--tb=short"]
    command += ["-W", "default"]  # a library's deprecation is no failure here
    if importlib.util.find_spec("xdist"):
        command += ["-p", "xdist.plugin", "-n", str(min(WORKERS, os.cpu_count() or 1))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes"
        environment = os.environ | NO_PLUGINS | {OUTCOMES: str(file)}
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            run = subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=seconds)
            code = run.returncode
        lines = file.read_text().splitlines() if file.exists() else []
    return judge([tuple(json.loads(line)) for line in lines], code)


def judge(ran: list[tuple[str, str, str]], code: int | None) -> Outcome:
    """ran: (test, outcome, error) of each test. code: pytest's, None if time ran out."""
    counts = Counter(outcome for _, outcome, _ in ran)
    message = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    message = message or "no test was run"
    lines = [f"{test}: {error}" for test, outcome, error in ran if outcome == "failed"]
    if lines:
        return failed(message, lines=lines)
    if code is None:
        return no_time(message=f"{message} before the time was over")
    if code != 0 or not counts["passed"]:
        return failed(f"{message}; pytest ended with {code}")
    return passed(message)


# --- the pytest plugin ----------------------------------------------------------------------------


def pytest_collection_modifyitems(items):
    """Shuffle the tests, always alike, so that those that run in time are of every file."""
    items.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))


def pytest_runtest_logreport(report):
    if IS_WORKER:
        return  # the controller receives the same report, and only it knows of crashes
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        error = " ".join((crash.message if crash else report.longreprtext).split())[:200]
        with Path(os.environ[OUTCOMES]).open("a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, error]) + "\n")


def pytest_runtest_teardown(item):
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"{item.nodeid} broke the CUDA context: {error}", flush=True)
        os._exit(CONTEXT_LOST)
