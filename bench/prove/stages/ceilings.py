"""Which card is there, and what it does at best: the ceilings that every figure is held against."""

import torch

from bench import results_file
from bench.prove.stages import passed
from bench.timer import DeviceStopwatch, measure_ceilings


def work(part: str, seconds: float) -> dict:
    device = torch.device("cuda")
    ceilings = measure_ceilings(device, DeviceStopwatch(device))
    copy, matmul = ceilings.copy_bytes_per_second, ceilings.matmul_flops_per_second
    return passed(
        f"copies {copy / 1e12:.2f} TB/s, multiplies {matmul / 1e12:.0f} TFLOP/s in bf16",
        card=results_file.card(),
        ceilings=ceilings._asdict(),
    )


def parts() -> dict[str, float]:
    return {"card": 1}
