"""`python -m bench.prove` with a fake GPU: `loss` passes, and `step` starts a process and hangs."""

import runpy

import torch

from bench.prove import stage

GPU = {"name": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0"}
CEILINGS = {"copy_bytes_per_second": 4e12, "matmul_flops_per_second": 8e14}
PASSED = {"gpu": stage.passed("copies", gpu=GPU, ceilings=CEILINGS)}
PARTS = {"loss": ["one"], "step": ["hangs"]}
run_stage = stage.run_stage


def run_part(module, seconds, log, only=()):
    parts = PARTS.get(module.rpartition(".")[2])
    return run_stage("tests.bench.prove.stage", seconds, log, parts) if parts else PASSED


if __name__ == "__main__":
    torch.cuda.is_available = lambda: True
    stage.run_stage = run_part
    runpy.run_module("bench.prove", run_name="__main__", alter_sys=True)
