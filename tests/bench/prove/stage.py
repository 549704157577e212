"""A stage with faulty parts, for the tests of `bench.prove`."""

import os
import subprocess
import sys
import time

from bench.prove.stage import failed, passed

PARTS = os.environ.get("PARTS", "").split(";")


def work(part: str, seconds: float) -> dict:
    if part == "raises":
        raise RuntimeError("an illegal memory access")
    if part == "dies":
        os._exit(7)
    if part == "hangs":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        time.sleep(60)
    if part == "differs":
        return failed("a bit differs")
    return passed("as expected")
