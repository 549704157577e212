"""When a batch is more than memory holds: the largest part of it that fits, found by trying."""

import gc
from dataclasses import replace

import torch

from gpt import UserError, hardware
from gpt.data.batches import Data
from gpt.training import distributed
from gpt.training.step import Precision, Step, passes_per_step

OTHERWISE = "give a smaller model or --block-size, or --activation-checkpointing"


def take(step: Step, number: int, data: Data) -> torch.Tensor:
    """The loss () of step `number`; `UserError` with a batch that would fit if memory does not."""
    try:
        return step(number)
    except RuntimeError as error:
        if not hardware.out_of_memory(error) or distributed.world() > 1:
            raise  # the ranks cannot try together what one of them has not begun
    # not inside `except`, where the error keeps alive what it was raised among
    config, passes = step.config, passes_per_step(step.config)
    smaller = [rows for rows in range(config.batch_size - 1, 0, -1) if not config.batch_size % rows]
    step.graph = None  # and what it holds
    for rows in smaller:
        if _fits(step, replace(config, batch_size=rows, tokens_per_step=0), number, data):
            raise UserError(
                f"there is not memory enough for --batch-size {config.batch_size}; --batch-size "
                f"{rows} --gradient-accumulation-steps {passes * config.batch_size // rows} fits, "
                "and trains the same model"
            )
    raise UserError(f"there is not memory enough for a single sequence; {OTHERWISE}")


def _fits(step: Step, config, number: int, data: Data) -> bool:
    """Whether an eager step of one pass has room; the weights that it makes are of no use."""
    for optimizer in step.optimizers:
        optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if step.precision.device.type == "cuda":
        torch.cuda.empty_cache()
    config = replace(config, gradient_accumulation_steps=1, nan="skip")
    precision = Precision(step.precision.device, step.precision.dtype)  # a scaler of its own
    try:
        Step(step.model, step.optimizers, data, config, precision)(number)
    except RuntimeError as error:
        if not hardware.out_of_memory(error):
            raise
        return False
    return True
