"""The first lines that a run prints."""

import torch

from .. import hardware
from ..config.base import flag
from ..config.presets import DEFAULT_PRESETS
from ..config.train import TrainConfig
from ..training import distributed
from ..training.make_step import batch_plan
from .loop import Run

UNTOLD = ("resume", "init_from", "out_dir", "eval_only")  # changes that resuming implies


def print_header(run: Run, kernels_reason: str, step: str) -> None:
    """Print what is trained, on which device, and by which kernels.

    kernels_reason: why `auto` selected them, or "". step: how a training step runs.
    """
    preset, plan = run.config.preset, batch_plan(run.config)
    on_gpu, on_cpu = DEFAULT_PRESETS["cuda"], DEFAULT_PRESETS["cpu"]
    is_default = preset in (on_gpu, on_cpu)
    default = f" (by default {on_gpu} on a GPU, {on_cpu} without one)" if is_default else ""
    millions = run.parameters / 1e6
    print(f"preset {preset}{default}: {millions:.6f} M parameters, data {run.config.data}")
    passes = f"{plan.passes} (accumulated passes) x {distributed.world_size()} (ranks)"
    batch = f"{plan.batch_size} (sequences) x {plan.block_size} (tokens)"
    print(f"{plan.tokens_per_step:,} tokens per step = {passes} x {batch}; training step: {step}")
    print(describe_learning_rate(run.config))
    operations: dict[str, list[str]] = {}
    for operation, implementation in run.kernels.items():
        operations.setdefault(implementation, []).append(operation)
    table = "; ".join(f"{name} ({', '.join(names)})" for name, names in operations.items())
    if len(operations) == 1:
        table = next(iter(operations))
    reason = f" (auto: {kernels_reason})" if kernels_reason else ""
    dtype = str(run.precision.dtype).removeprefix("torch.")
    tf32 = torch.get_float32_matmul_precision() != "highest"
    dtype += ", fp32 products in TF32" if tf32 else ", no TF32"
    name = hardware.device_name(run.precision.device)
    print(f"{name}, {dtype}, kernels: {table}{reason}", flush=True)


def changed_options(before: dict, after: dict) -> str:
    """A line about the options that differ from those of the run that is resumed, or ""."""
    names = [name for name in after if before.get(name) != after[name] and name not in UNTOLD]
    changes = ", ".join(f"{flag(name)} {after[name]} (was {before.get(name)})" for name in names)
    rows = {"batch_size", "gradient_accumulation_steps"}.intersection(names)
    note = "; the steps to come take other rows of the data" if rows else ""
    return f"changed options: {changes}{note}" if changes else ""


def describe_learning_rate(config: TrainConfig) -> str:
    """What the learning rate does in the course of the run, in a line."""
    warmup, end = config.warmup_iters, config.lr_decay_iters or config.max_iters
    muon = f" (Muon {config.muon_learning_rate:g})" if config.optimizer == "muon" else ""
    rate = f"{config.learning_rate:g}{muon}"
    if not config.decay_lr:
        unused = ", without warm-up, which needs --decay-lr" if warmup else ""
        return f"learning rate: {rate}, constant{unused}"
    start = f"{warmup} steps of warm-up to {rate}" if warmup else rate
    then = f"a cosine to {config.min_lr:g} at step {end}"
    if end <= warmup:
        then = f"{config.min_lr:g}, since the decay ends at step {end}"
    return f"learning rate: {start}, then {then}"
