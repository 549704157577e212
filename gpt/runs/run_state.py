"""What a checkpoint holds of a run: saved in the background, restored bit for bit."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import UserError
from ..data.dataset import Dataset
from ..data.tokenizers import from_json
from ..files import Folder
from ..models.build import Model
from ..training import distributed
from ..training.muon import Muon
from ..training.precision import Precision
from . import checkpoint
from .checkpoint import Tensors
from .portable_state import load_portable_state, portable_state
from .run_folder import RunFolder

Optimizers = Sequence[torch.optim.Optimizer]

ADAMW_STATE, MUON_STATE = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
ALL_KINDS = ("weights", "optimizer", "random")  # what resuming needs; generating needs weights


@dataclass(frozen=True)
class RunState:
    """How far a run has come."""

    step: int = 0  # training steps taken
    seconds: float = 0.0  # of training, without evaluation and saving
    skipped: int = 0  # steps skipped by --nan skip
    best_val_loss: float = math.inf
    val_loss: float | None = None  # of the evaluation at this step, if there was one
    scores: dict[str, float] = field(default_factory=dict)  # a task's accuracy, with val_loss

    @classmethod
    def from_dict(cls, record: dict, source: Path) -> "RunState":
        """From a checkpoint's record. Raises UserError if `source` holds no valid state."""
        number = (int, float)
        types: dict[str, Any] = {"step": int, "skipped": int, "seconds": number}
        types |= {"best_val_loss": number, "val_loss": (*number, type(None)), "scores": dict}
        values = {"val_loss": None, "scores": {}} | record
        good = all(isinstance(values.get(name, ...), types[name]) for name in types)
        if not good or values["step"] < 0:
            raise UserError(f"{source} does not hold the state of a run; it is damaged")
        return cls(**{name: values[name] for name in types})


@dataclass
class Saver:
    """Saves a run: training waits for the copy to host memory, a thread writes it to disk.

    Leaving its context waits for the write. An error of the write is raised by the next `save`, or
    on leaving.
    """

    folder: RunFolder | None  # None on all ranks but the main one
    model: Model
    optimizers: Optimizers
    precision: Precision
    description: dict  # plain JSON that every checkpoint of the run holds
    keep: int = 0  # older checkpoints to keep, besides `last` and `best`

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future | None = None
        self.saved_at = time.monotonic()

    def save(self, state: RunState, improved: bool, between: bool = False) -> None:
        """Save the run as `last`, as `best` if it has improved, and under its step with --keep.

        between: evaluations; such a checkpoint is not among those that --keep counts.
        """
        self.wait()  # one write at a time, or copies would pile up
        self.saved_at = time.monotonic()
        record = asdict(state) | self.description
        record["scaler"] = self.precision.scaler.state_dict()
        tensors = {
            "weights": portable_state(self.model),
            "optimizer": _optimizer_tensors(self.optimizers, self.model),
            "random": _generator_states(self.precision.device),
        }
        if self.folder is None:
            return
        copies = {  # in host memory, which training does not change
            kind: {name: tensor.detach().to("cpu", copy=True) for name, tensor in group.items()}
            for kind, group in tensors.items()
        }
        # best before last: a run resumed from the previous `last` would improve on its best again
        names: dict[str, tuple[str, ...]] = {"best": ("weights",)} if improved else {}
        if self.keep and not between:
            names[f"step-{state.step:07d}"] = ALL_KINDS
        names["last"] = ALL_KINDS
        arguments = (self.folder, names, copies, record, self.keep or None)
        self._writing = self._thread.submit(_save_if_finite, *arguments)
        if (place := self.folder.place) != self.folder.path:
            self.wait()
            problem = f"{self.folder.path} was moved during training; step {state.step} is saved in"
            raise UserError(f"{problem} {place}: continue with --resume --out-dir {place}")

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is on disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._thread.shutdown()
        self.wait()


def _save_if_finite(folder: Folder, names, tensors, record, keep) -> None:
    if not all(weight.isfinite().all() for weight in tensors["weights"].values()):
        problem = f"the weights of step {record['step']} are not finite and were not saved"
        advice = "continue from it with --resume and a lower --learning-rate"
        raise UserError(f"{problem}; the last checkpoint in {folder.path} is intact: {advice}")
    checkpoint.save(folder, names, tensors, record, keep)


def restore_run(
    folder: Path, model: Model, optimizers: Optimizers, precision: Precision, data: Dataset
) -> tuple[RunState, dict]:
    """Restore model, optimizers, loss scaler and generators from `last`.

    Returns the run's state, and the options with which it was saved. If `last` is damaged, the
    newest whole checkpoint takes its place, which is printed. Raises UserError if there is none, or
    if it belongs to another model or other data.
    """
    name, record, tensors, note = checkpoint.newest(folder, ALL_KINDS)
    source = folder / f"{name}.json"
    if note:
        print(note)
    if from_json(record.get("tokenizer")).to_json() != data.tokenizer.to_json():
        raise UserError(f"{data.name} is not the text that the run in {folder} was trained on")
    if "data" in record and record["data"] != data.fingerprint():
        problem = f"the data {data.name} has changed since the run in {folder} was saved"
        raise UserError(f"{problem}; name the data it was trained on with --data")
    state = RunState.from_dict(record, source)
    check_finite(tensors["weights"], source)
    load_portable_state(model, tensors["weights"])
    _load_optimizer_tensors(optimizers, model, tensors["optimizer"])
    try:
        if precision.scaler.is_enabled() and record["scaler"]:
            precision.scaler.load_state_dict(record["scaler"])
        random, rank = tensors["random"], distributed.rank()
        if f"cpu.{rank}" in random:  # a rank that the saved run did not have keeps its fresh state
            torch.set_rng_state(random[f"cpu.{rank}"])
        if f"cuda.{rank}" in random and precision.device.type == "cuda":
            torch.cuda.set_rng_state(random[f"cuda.{rank}"], precision.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{source} holds no valid generator or scaler state: {error}") from None
    return state, record["train"]


def check_finite(weights: Tensors, source: Path) -> None:
    """Raise UserError unless all weights are finite and fp32."""
    for name, weight in weights.items():
        if weight.dtype != torch.float32 or not weight.isfinite().all():
            raise UserError(f"{source}: the weight {name} is not finite fp32")


def _generator_states(device: torch.device) -> Tensors:
    """The states of the default generators on every rank."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        f"{kind}.{rank}": state
        for kind, own in states.items()
        for rank, state in enumerate(distributed.all_gather(own))
    }


def _optimizer_tensors(optimizers: Optimizers, model: Model) -> Tensors:
    """The optimizers' state as "NUMBER/PARAMETER/KEY" -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{number}/{names[id(parameter)]}/{key}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _load_optimizer_tensors(optimizers: Optimizers, model: Model, tensors: Tensors) -> None:
    """Restore what `_optimizer_tensors` returned. Raises UserError if it is another model's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    left = dict(tensors)
    for number, optimizer in enumerate(optimizers):
        keys = MUON_STATE if isinstance(optimizer, Muon) else ADAMW_STATE
        whole = optimizer.state_dict()
        order = [p for group in optimizer.param_groups for p in group["params"]]
        whole["state"] = {}
        for index, parameter in enumerate(order):
            prefix = f"{number}/{names[id(parameter)]}/"
            state = {key: left.pop(prefix + key) for key in keys if prefix + key in left}
            if not state:
                continue  # saved before the first update
            shapes = {key: () if key == "step" else parameter.shape for key in keys}
            if {key: value.shape for key, value in state.items()} != shapes:
                raise UserError(f"the optimizer state {prefix} does not fit this model's parameter")
            whole["state"][index] = state
        optimizer.load_state_dict(whole)
    if left:
        problem = f"this model does not have the checkpoint's optimizer state {next(iter(left))}"
        raise UserError(f"{problem}; resume with the run's --kernels and --optimizer")
