"""When a batch does not fit in memory: find the largest part of it that does."""

import copy
import gc
from dataclasses import replace

import torch

from .. import UserError, hardware
from . import distributed
from .gradients import Gradients
from .precision import Precision
from .step import EagerStep


def take_step(step: EagerStep, number: int) -> torch.Tensor:
    """Take step `number` and return its loss ().

    If memory runs out, raises UserError with a batch size that fits. The weights stay as they are.
    """
    try:
        return step(number)
    except RuntimeError as error:
        if not hardware.out_of_memory(error) or distributed.world_size() > 1:
            raise  # ranks cannot try smaller batches together when only one of them has failed
    # outside `except`, since the error keeps alive the tensors of the frames it was raised in
    step.release()
    plan = step.gradients.plan
    smaller = (rows for rows in range(plan.batch_size - 1, 0, -1) if not plan.batch_size % rows)
    for rows in smaller:
        if _fits(step.gradients, rows, number):
            raise UserError(
                f"--batch-size {plan.batch_size} does not fit in memory; use --batch-size {rows} "
                f"--gradient-accumulation-steps {plan.passes * plan.batch_size // rows}, which "
                "trains the same model"
            )
    raise UserError(
        "not even one sequence fits in memory; use a smaller model or --block-size, or "
        "--activation-checkpointing"
    )


def _fits(gradients: Gradients, rows: int, number: int) -> bool:
    """Whether one pass over `rows` sequences, and the optimizers' state, fit in memory."""
    precision = gradients.precision
    gradients.clear()
    gc.collect()
    if precision.device.type == "cuda":
        torch.cuda.empty_cache()
    trial = copy.copy(gradients)
    trial.plan = replace(gradients.plan, batch_size=rows, passes=1)
    trial.precision = Precision(precision.device, precision.dtype)  # with a loss scaler of its own
    try:
        reserved = [  # for the state that a first update allocates: two moments each
            torch.empty_like(parameter)
            for optimizer in gradients.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            if not optimizer.state.get(parameter)
            for _ in range(2)
        ]
        trial(number)
        del reserved
    except RuntimeError as error:
        if not hardware.out_of_memory(error):
            raise
        return False
    finally:
        trial.clear()
    return True
