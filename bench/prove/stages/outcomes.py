"""A pytest plugin: each test's outcome in a file at once, and a lost GPU ends the process.

A kernel that writes where it may not makes the GPU refuse everything after it. Then this process
ends; pytest-xdist, where it is installed, begins another one with the next test, and reports the
guilty test as crashed.
"""

import json
import os
import sys
import zlib
from pathlib import Path

FILE = "GPT_KERNELS_OUTCOMES"  # an environment variable: xdist's workers inherit it
SHARE = "GPT_KERNELS_SHARE"  # "1/4": a quarter of the tests, spread over all files; "3/4": the rest
CARD_LOST = 3


_is_worker = False


def pytest_configure(config):
    global _is_worker
    _is_worker = hasattr(config, "workerinput")


def pytest_collection_modifyitems(items):
    """Keep a share of the tests, the same one every time."""
    if share := os.environ.get(SHARE):
        count, of = map(int, share.split("/"))
        first = [zlib.crc32(item.nodeid.encode()) % of == 0 for item in items]
        wanted = count == 1  # the first part, or else what it leaves
        items[:] = [item for item, is_first in zip(items, first, strict=True) if is_first == wanted]


def pytest_runtest_logreport(report):
    if _is_worker:
        return  # its controller is told too, and alone knows of crashes
    if report.when == "call" or report.outcome != "passed":
        with Path(os.environ[FILE]).open("a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, report.longreprtext]) + "\n")


def pytest_runtest_teardown(item):
    torch = sys.modules.get("torch")  # not imported here: where no test uses it, nothing is lost
    if torch is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"{item.nodeid} has lost the GPU: {error}", flush=True)
        os._exit(CARD_LOST)
