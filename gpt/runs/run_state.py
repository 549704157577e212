"""A run on disk: what a checkpoint holds, and a model, or a whole run, made from it again."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn as nn

from gpt import UserError
from gpt.config.cli import model_config_from_json
from gpt.config.train import TrainConfig
from gpt.data.batches import Data
from gpt.data.tokenizers import Tokenizer, from_json
from gpt.generation.int8 import adopt
from gpt.models.build import build, load_portable_state, portable_state
from gpt.runs import checkpoint
from gpt.training import distributed
from gpt.training.step import Precision

WHOLE = ("weights", "optimizer", "random")  # what going on needs; to speak, weights are enough


class Saver:
    """Saves a run: training waits for the copy to the host, a thread writes it to the disk.

    Leaving its context waits for what is being written, and so does the end of the process. What
    hinders the writing is raised by the next `save` or on leaving.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, data: Data, model, optimizers, precision: Precision
    ):
        self.folder, self.config, self.data = folder, config, data
        self.model, self.optimizers, self.precision = model, optimizers, precision
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future | None = None

    def save(self, reached: dict, improved: bool) -> None:
        """Save where the run is as `last`, as `best` if it has improved, and what --keep asks."""
        self.wait()  # one at a time, or copies would pile up
        record = {
            **reached,
            "train": asdict(self.config),
            "tokenizer": self.data.tokenizer.to_json(),
            "scaler": self.precision.scaler.state_dict(),
        }
        tensors = {
            "weights": portable_state(self.model),
            "optimizer": checkpoint.optimizer_tensors(self.optimizers, self.model),
            "random": _random_state(self.precision.device),
        }
        if not distributed.is_main():
            return
        copies = {kind: _on_host(group) for kind, group in tensors.items()}
        # best before last: a run that goes on from the last before has yet to improve on its best
        names = {"best": ("weights",)} if improved else {}
        forget = []
        if self.config.keep:
            older = sorted(self.folder.glob("step-*.json"), key=lambda path: path.stat().st_mtime)
            this = f"step-{reached['step']:07d}"
            forget = [path.stem for path in older if path.stem != this][: -self.config.keep]
            names[this] = WHOLE
        names["last"] = WHOLE
        arguments = (self.folder, names, copies, record, forget)
        self._writing = self._thread.submit(_save_if_finite, *arguments)

    def wait(self) -> None:
        """Until what is being written lies on the disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._thread.shutdown()
        self.wait()


def _save_if_finite(folder: Path, names, tensors, record, forget) -> None:
    if not all(weight.isfinite().all() for weight in tensors["weights"].values()):
        raise UserError(
            f"the weights of step {record['step']} are not finite and were not saved; the last "
            f"checkpoint in {folder} is good: go on from it with --resume and a lower "
            "--learning-rate"
        )
    checkpoint.save(folder, names, tensors, record, forget)


def restore_run(folder: Path, model: nn.Module, optimizers, precision: Precision, data) -> dict:
    """Set everything to where `last` was; returns its record."""
    record, tensors = checkpoint.load(folder, "last", WHOLE)
    source = folder / "last.json"
    if from_json(record.get("tokenizer")).to_json() != data.tokenizer.to_json():
        raise UserError(f"{data.name} is not the text that the run in {folder} was trained on")
    _check_progress(record, source)
    _check_finite(tensors["weights"], source)
    load_portable_state(model, tensors["weights"])
    checkpoint.load_optimizer_tensors(optimizers, model, tensors["optimizer"])
    try:
        if precision.scaler.is_enabled() and record["scaler"]:
            precision.scaler.load_state_dict(record["scaler"])
        random, rank = tensors["random"], distributed.rank()
        if f"cpu.{rank}" in random:  # a rank that the run did not have goes on as it began
            torch.set_rng_state(random[f"cpu.{rank}"])
        if f"cuda.{rank}" in random and precision.device.type == "cuda":
            torch.cuda.set_rng_state(random[f"cuda.{rank}"], precision.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{source} has no random state or scaler to go on from: {error}") from None
    return record


def load_model(folder: Path, name: str, ops, device) -> tuple[nn.Module, Tokenizer, dict]:
    """The model of checkpoint `name` over `ops` (None: the reference), and its tokenizer."""
    record, tensors = checkpoint.load(folder, name)
    source = folder / f"{name}.json"
    train = record.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("lecture"), str):
        raise UserError(f"{source} does not say how the model was trained; it is damaged")
    config = model_config_from_json(train.get("model"), source)
    tokenizer = from_json(record.get("tokenizer"))
    if config.vocab_size < tokenizer.vocab_size:
        raise UserError(f"{source} has a model of fewer tokens than its tokenizer; it is damaged")
    _check_finite(tensors["weights"], source)
    model = build(config, ops, train["lecture"])
    load_portable_state(model, adopt(model, tensors["weights"]))
    return model.to(device).eval(), tokenizer, record


def _check_progress(record: dict, source: Path) -> None:
    """Refuse a record that does not say how far the run is."""
    number = (int, float)
    kinds = {"step": int, "skipped": int, "seconds": number, "best_val_loss": number}
    good = all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    losses = record.get("losses")
    good = good and isinstance(losses, list) and all(isinstance(loss, number) for loss in losses)
    if not good or record["step"] < 0 or not isinstance(record.get("val_loss", 0.0), number):
        raise UserError(f"{source} does not say how far the run is; it is damaged")


def _check_finite(weights: checkpoint.Tensors, source: Path) -> None:
    for name, weight in weights.items():
        if name.endswith(".int8") and weight.dtype == torch.int8:
            continue
        if weight.dtype != torch.float32 or not weight.isfinite().all():
            raise UserError(f"{source}: the weight {name} is not of finite fp32 numbers")


def _on_host(tensors: checkpoint.Tensors) -> checkpoint.Tensors:
    """Copies that training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _random_state(device: torch.device) -> checkpoint.Tensors:
    """The generators of every rank."""
    kinds = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        kinds["cuda"] = torch.cuda.get_rng_state(device)
    return {
        f"{kind}.{rank}": state
        for kind, mine in kinds.items()
        for rank, state in enumerate(distributed.gather(mine))
    }
