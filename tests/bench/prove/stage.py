"""A stage with faulty parts."""

import os
import subprocess
import time

from bench.prove.stage import failed, passed

GPU = {"name": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0"}
CEILINGS = {"copy_bytes_per_second": 4e12, "matmul_flops_per_second": 8e14}
PASSED = {"gpu": passed("copies", gpu=GPU, ceilings=CEILINGS)}
PARTS = os.environ.get("PARTS", "").split(";")


def work(part: str, seconds: float) -> dict:
    if part == "raises":
        raise RuntimeError("an illegal memory access")
    if part == "dies":
        os._exit(7)
    if part == "hangs":
        with open(os.environ["PIPE"], "w") as pipe:
            subprocess.Popen(["sh", "-c", "sleep 60; echo survived"], stdout=pipe)
        time.sleep(60)
    if part == "differs":
        return failed("a bit differs")
    return passed("as expected")
