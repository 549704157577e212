"""The first lines that a run prints."""

import torch

from gpt import hardware
from gpt.config.presets import DEFAULT_PRESETS
from gpt.config.train import TrainConfig
from gpt.training import distributed
from gpt.training.make_step import batch_plan
from gpt.training.precision import Precision


def print_header(
    config: TrainConfig,
    precision: Precision,
    kernels: dict[str, str],  # operation -> implementation
    kernels_reason: str,  # why `auto` selected them, or ""
    parameters: int,
    step: str,  # how a training step runs
) -> None:
    """Print what is trained, on which device, and by which kernels."""
    plan = batch_plan(config)
    on_gpu, on_cpu = DEFAULT_PRESETS["cuda"], DEFAULT_PRESETS["cpu"]
    is_default = config.preset in (on_gpu, on_cpu)
    default = f" (by default {on_gpu} on a GPU, {on_cpu} without one)" if is_default else ""
    print(
        f"preset {config.preset}{default}: {parameters / 1e6:.6f} M parameters, data {config.data}"
    )
    print(
        f"{plan.tokens_per_step:,} tokens per step = {plan.passes} (accumulated passes) x "
        f"{distributed.world_size()} (ranks) x {plan.batch_size} (sequences) x {plan.block_size} "
        f"(tokens); training step: {step}"
    )
    operations: dict[str, list[str]] = {}
    for operation, implementation in kernels.items():
        operations.setdefault(implementation, []).append(operation)
    table = "; ".join(f"{name} ({', '.join(names)})" for name, names in operations.items())
    if len(operations) == 1:
        table = next(iter(operations))
    reason = f" (auto: {kernels_reason})" if kernels_reason else ""
    dtype = str(precision.dtype).removeprefix("torch.")
    tf32 = torch.get_float32_matmul_precision() != "highest"
    dtype += ", fp32 products in TF32" if tf32 else ", no TF32"
    name = hardware.device_name(precision.device)
    print(f"{name}, {dtype}, kernels: {table}{reason}", flush=True)
