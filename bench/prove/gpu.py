"""Identifies the GPU and measures its ceilings, to which all results are compared."""

import torch

from bench import results
from bench.prove.stage import Outcome, passed
from bench.timer import DeviceTimer, measure_ceilings

PARTS = ("gpu",)


def work(part: str, seconds: float) -> Outcome:
    device = torch.device("cuda")
    ceilings = measure_ceilings(DeviceTimer(device))
    copy, matmul = ceilings.copy_bytes_per_second, ceilings.matmul_flops_per_second
    message = f"copies {copy / 1e12:.2f} TB/s, multiplies {matmul / 1e12:.0f} TFLOP/s in bf16"
    return passed(message, gpu=results.gpu(), ceilings=ceilings._asdict())
