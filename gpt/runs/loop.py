"""The training loop: steps, evaluations, checkpoints, and the end of a run."""

import platform
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn

from .. import UserError, hardware
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..files import Folder
from ..models.build import Model
from ..training import distributed
from ..training.evaluation import BatchLoss, batches_of_splits, evaluate, task_accuracy
from ..training.gradients import Stopped
from ..training.make_step import batch_plan, make_step
from ..training.precision import Precision
from ..training.step import EagerStep, GraphStep
from .metrics import MetricsLog, Tracker
from .progress import Progress
from .run_folder import RunFolder
from .run_state import RunState, Saver
from .signals import StopSignals

SLOW = 0.5  # seconds of a step from which on the host waits for each: a stop is heard soon


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

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def train_loop(run: Run, state: RunState, folder: RunFolder | None, tracker: Tracker) -> bool:
    """Train from `state` to --max-iters; return whether this call has finished the run.

    A signal may stop it before. A run that was finished already is left as it is. folder: None on
    all ranks but the main one.
    """
    config, first = run.config, state.step
    if first > config.max_iters:
        raise UserError(f"the run has {first} steps, more than --max-iters {config.max_iters}")
    path = Path(config.out_dir)
    if first == config.max_iters and _is_finished(path, first):
        print(f"the run in {path} has taken all {first} steps; a larger --max-iters continues it")
        return False
    options, resume_at = config.to_dict(), first if config.resume else None
    log = MetricsLog(folder, options, tracker, resume_at) if folder else None
    tokens = batch_plan(config).tokens_per_step
    flops = tokens * hardware.flops_per_token(config.model, run.parameters)
    limits = config.max_iters, config.log_interval
    progress = Progress(log, run.precision.device, state, *limits, tokens, flops)
    description = {"train": options, "tokenizer": run.data.tokenizer.to_json()}
    description["data"] = run.data.fingerprint()
    saver = Saver(folder, run.model, run.optimizers, run.precision, description, config.keep)
    with StopSignals() as signals, log or nullcontext(), saver:
        state = _steps(run, state, signals, progress, saver)
    progress.bar.close()
    if state.step < config.max_iters or state.val_loss is None:
        reason = signals.received or "a signal to another rank"
        advice = f"continue with: python train.py --resume --out-dir {path}"
        print(f"stopped by {reason} after step {state.step}, which is saved; {advice}")
        return False
    if log:
        log.finish(_summary(run, state, progress))
    speed = progress.tokens_per_second(state.step)
    rate = f", {speed:,.0f} tok/s" if speed else ""
    spent = f"{progress.seconds:.1f} s of training{rate}"
    print(f"best val loss {state.best_val_loss:.4f}, {spent}; the run is in {path}")
    return True


def _is_finished(path: Path, steps: int) -> bool:
    with suppress(UserError, OSError), Folder(path) as folder:
        return folder.read_json("summary.json").get("steps") == steps
    return False


def _steps(
    run: Run, state: RunState, signals: StopSignals, progress: Progress, saver: Saver
) -> RunState:
    """Train until the end or a signal; return the state that was saved last."""
    config, device, step = run.config, run.precision.device, state.step
    arguments = run.parallel_model, run.optimizers, run.data, config, run.precision
    take = make_step(run.step_class, *arguments)
    take.policy.skipped = state.skipped
    if device.type == "cpu":  # a GPU's passes are queued, or one graph
        take.gradients.must_stop = signals.must_stop
    is_graph = issubclass(run.step_class, GraphStep)
    batch_loss = BatchLoss(run.parallel_model, run.precision, is_graph)
    while True:
        waited = time.monotonic() - saver.saved_at
        is_time = 0 < 60 * config.save_minutes < waited
        stopping, is_time = distributed.any_rank(signals.must_stop(), is_time)
        is_evaluated = state.step == step and state.val_loss is not None
        due = step % config.eval_interval == 0 or step == config.max_iters
        due = due and not is_evaluated
        if due or ((stopping or is_time) and step > state.step):
            take.check()
            best = state.best_val_loss
            with progress.paused():
                state = RunState(step, skipped=take.policy.skipped, best_val_loss=best)
                if due and not stopping:
                    try:
                        state = _evaluate(run, state, progress, batch_loss, signals.must_stop)
                    except Stopped:
                        stopping = True
                state = replace(state, seconds=progress.seconds)
                if progress.log:
                    progress.log.sync()
                saver.save(state, state.best_val_loss < best, between=state.val_loss is None)
        if stopping or step == config.max_iters:
            return state
        generator = torch.get_rng_state()
        try:
            progress.step(step, take(step))
        except Stopped:  # between two passes of the step, which is taken again after resuming
            take.gradients.clear()
            torch.set_rng_state(generator)
            continue
        step += 1
        if progress.seconds_per_step > SLOW:  # the host must not run ahead by many of them
            hardware.synchronise(device)


def split_losses(
    run: Run, batch_loss: BatchLoss | None = None, must_stop: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """`train_loss` and `val_loss` of the same weights, both without dropout."""
    config = run.config
    sizes = config.model.block_size, config.seed, config.eval_iters, config.batch_size
    return {
        f"{split}_loss": evaluate(run.parallel_model, batches, run.precision, batch_loss, must_stop)
        for split, batches in batches_of_splits(run.data, *sizes).items()
    }


def _evaluate(
    run: Run,
    state: RunState,
    progress: Progress,
    batch_loss: BatchLoss,
    must_stop: Callable[[], bool],
) -> RunState:
    """Evaluate and log; return the state with the results. Raises Stopped."""
    losses = split_losses(run, batch_loss, must_stop)
    block_size, val_loss = run.config.model.block_size, losses["val_loss"]
    scores = task_accuracy(run.parallel_model, run.data, block_size, run.precision, must_stop)
    progress.evaluation(state.step, losses | scores)
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
