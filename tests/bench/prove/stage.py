"""A stage with faulty parts, and `bench.prove` with a fake GPU: `loss` passes and `step` hangs."""

import os
import runpy
import subprocess
import sys
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
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        time.sleep(60)
    if part == "differs":
        return failed("a bit differs")
    return passed("as expected")


if __name__ == "__main__":
    import torch

    from bench.prove import stage

    run_stage, only = stage.run_stage, {"loss": ["one"], "step": ["hangs"]}

    def run_part(module, seconds, log, _=()):
        parts = only.get(module.rpartition(".")[2])
        return run_stage("tests.bench.prove.stage", seconds, log, parts) if parts else PASSED

    torch.cuda.is_available = lambda: True
    stage.run_stage = run_part
    runpy.run_module("bench.prove", run_name="__main__", alter_sys=True)
