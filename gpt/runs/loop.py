"""The training loop: steps, evaluations, checkpoints, and the end of a run."""

import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn

from .. import UserError, hardware
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..files import read_json
from ..models.build import Model
from ..training import distributed
from ..training.evaluation import BatchLoss, batches_of_splits, evaluate, task_accuracy
from ..training.make_step import batch_plan, make_step
from ..training.precision import Precision
from ..training.step import EagerStep, GraphStep
from .metrics import MetricsLog
from .progress import Progress
from .run_state import RunState, Saver
from .signals import StopSignals


@dataclass
class Run:
    """Everything that a run trains with."""

    config: TrainConfig
    data: Dataset
    model: Model  # as it is saved
    parallel_model: nn.Module  # the same, compiled or on several ranks, as it is trained
    optimizers: list[torch.optim.Optimizer]
    precision: Precision
    step_class: type[EagerStep]
    kernels: dict[str, str]  # operation -> the implementation that computes it
    sample: Callable[[], str]  # text that the model generates at an evaluation

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def train_loop(run: Run, state: RunState, folder: Path) -> bool:
    """Train from `state` to --max-iters; return whether this call has finished the run.

    A signal may stop it before. A run that was finished already is left as it is.
    """
    config, first = run.config, state.step
    if first > config.max_iters:
        raise UserError(f"the run has {first} steps, more than --max-iters {config.max_iters}")
    path = folder / "summary.json"
    if first == config.max_iters and path.is_file() and read_json(path).get("steps") == first:
        print(f"the run in {folder} has taken all {first} steps; a larger --max-iters continues it")
        return False
    options, resume_at = config.to_dict(), first if config.resume else None
    log = MetricsLog(folder, options, config.log, resume_at) if distributed.is_main() else None
    tokens = batch_plan(config).tokens_per_step
    flops = tokens * hardware.flops_per_token(config.model, run.parameters)
    limits = config.max_iters, config.log_interval
    progress = Progress(log, run.precision.device, state, *limits, tokens, flops)
    description = {"train": options, "tokenizer": run.data.tokenizer.to_json()}
    saver = Saver(folder, run.model, run.optimizers, run.precision, description, config.keep)
    with StopSignals() as signals, log or nullcontext(), saver:
        model, optimizers = run.parallel_model, run.optimizers
        take = make_step(run.step_class, model, optimizers, run.data, config, run.precision)
        take.policy.skipped = state.skipped
        batch_loss = BatchLoss(model, run.precision, issubclass(run.step_class, GraphStep))
        for step in range(first, config.max_iters + 1):
            stopping = distributed.any_rank(bool(signals.received))
            due = step % config.eval_interval == 0 or step == config.max_iters
            if step == first and state.val_loss is not None:
                due = False  # it was evaluated before the run was stopped
            if due or (stopping and step > first):
                take.check()
                best = state.best_val_loss
                with progress.paused():
                    state = RunState(step, skipped=take.policy.skipped, best_val_loss=best)
                    if due:
                        state = _evaluate(run, state, progress, batch_loss)
                    state = replace(state, seconds=progress.seconds)
                    saver.save(state, state.best_val_loss < best)
            if stopping or step == config.max_iters:
                break
            progress.step(step, take(step))
    progress.bar.close()
    if step < config.max_iters:
        advice = f"continue with: python train.py --resume --out-dir {folder}"
        print(f"stopped by {signals.received} after step {step}, which is saved; {advice}")
        return False
    if log:
        log.finish(_summary(run, state, progress))
    speed = progress.tokens_per_second(step)
    rate = f", {speed:,.0f} tok/s" if speed else ""
    time = f"{progress.seconds:.1f} s of training{rate}"
    print(f"best val loss {state.best_val_loss:.4f}, {time}; the run is in {folder}")
    return True


def split_losses(run: Run, batch_loss: BatchLoss | None = None) -> dict[str, float]:
    """`train_loss` and `val_loss` of the same weights, both without dropout."""
    config = run.config
    sizes = config.model.block_size, config.seed, config.eval_iters, config.batch_size
    return {
        f"{split}_loss": evaluate(run.parallel_model, batches, run.precision, batch_loss)
        for split, batches in batches_of_splits(run.data, *sizes).items()
    }


def _evaluate(run: Run, state: RunState, progress: Progress, batch_loss: BatchLoss) -> RunState:
    """Evaluate and log; return the state with the results."""
    losses = split_losses(run, batch_loss)
    block_size, val_loss = run.config.model.block_size, losses["val_loss"]
    scores = task_accuracy(run.parallel_model, run.data, block_size, run.precision)
    progress.evaluation(state.step, losses | scores, run.sample())
    best = min(state.best_val_loss, val_loss)
    return replace(state, val_loss=val_loss, scores=scores, best_val_loss=best)


def _summary(run: Run, state: RunState, progress: Progress) -> dict:
    """What summary.json holds of a finished run."""
    device, steps = run.precision.device, run.config.max_iters
    return {
        "best_val_loss": state.best_val_loss,
        "final_val_loss": state.val_loss,
        **state.scores,
        "steps": steps,
        "skipped_steps": state.skipped,
        "training_seconds": progress.seconds,
        "tokens_per_second": progress.tokens_per_second(steps),
        "peak_memory_bytes": hardware.peak_memory(device),
        "parameters": run.parameters,
        "data": run.config.data,
        "device": hardware.device_name(device),
        "dtype": str(run.precision.dtype).removeprefix("torch."),
        "kernels": run.kernels,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
