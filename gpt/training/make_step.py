"""Which kind of training step a run takes, and how it is put together from the run's options."""

from collections.abc import Sequence

import torch
import torch.nn as nn

from .. import UserError
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from . import distributed
from .gradients import BatchPlan, Gradients
from .non_finite import NonFinitePolicy
from .optimizers import schedule_of
from .precision import Precision
from .step import DeviceStep, EagerStep, GraphStep


def choose_step(
    config: TrainConfig, precision: Precision, data: Dataset
) -> tuple[type[EagerStep], str]:
    """The class that `--step` selects on this device, and the reason in a few words."""
    mode, reason = config.step, None
    # optimizers on a GPU read found_inf; the fp16 scaler needs the host's decision
    waits = precision.device.type != "cuda" or precision.scaler.is_enabled()
    eager = EagerStep if waits else DeviceStep
    if mode == "compile":
        return eager, "eager, with the model compiled by torch.compile"
    if precision.device.type != "cuda":
        reason = f"the device is {precision.device.type}"
    elif precision.scaler.is_enabled():
        reason = "the fp16 loss scaler waits for the device"
    elif data.source.type != "cuda":
        reason = "the data does not fit in GPU memory"
    elif distributed.world_size() > 1:
        reason = "ranks exchange gradients"
    if mode == "graph" and reason:
        raise UserError(f"--step graph is not available because {reason}; use --step eager")
    if mode == "graph" or (mode == "auto" and reason is None):
        return GraphStep, "one CUDA graph"
    return eager, f"eager because {reason}" if mode == "auto" else "eager"


def make_step(
    kind: type[EagerStep],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    data: Dataset,
    config: TrainConfig,
    precision: Precision,
) -> EagerStep:
    """A step of class `kind` with the batches, schedule and clipping of `config`."""
    plan = batch_plan(config)
    gradients = Gradients(model, optimizers, data, plan, precision, config.grad_clip)
    policy = NonFinitePolicy(config.nan, plan.rows)
    step = kind(gradients, schedule_of(config), policy, config.log_interval)
    if isinstance(step, GraphStep):
        step.must_capture = config.step == "graph"
        if not config.compiles_model:  # compiled blocks read the parameters themselves
            step.copy_weights()
    return step


def batch_plan(config: TrainConfig) -> BatchPlan:
    """The rows of a step; UserError unless they are a whole number of passes on every rank.

    --gradient-accumulation-steps counts the passes of all ranks, as in nanoGPT; by default every
    rank has one.
    """
    steps = config.gradient_accumulation_steps
    passes, left = divmod(steps, distributed.world_size())
    if left:
        raise UserError(
            f"--gradient-accumulation-steps {steps}, the passes of all ranks together, is not a "
            f"multiple of the {distributed.world_size()} ranks; choose a multiple"
        )
    return BatchPlan(config.batch_size, config.model.block_size, passes or 1, config.seed)
