"""A run on disk: what a checkpoint holds, and a model, or a whole run, made from it again."""

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn as nn

from gpt import Refused, checkpoint, ranks
from gpt.build import build, load_portable_state, portable_state
from gpt.options import model_config_from_json
from gpt.step import Precision
from gpt.tokenizer import Tokenizer, from_json


def save_run(folder: Path, name: str, progress: dict, model, optimizers, precision, config, data):
    """Write checkpoint `name`: `progress` (step, losses, seconds), and all that resuming needs.

    Without optimizers it is a model to speak with and no more.
    """
    record = {
        **progress,
        "train": asdict(config),
        "tokenizer": data.tokenizer.to_json(),
        "scaler": precision.scaler.state_dict(),
    }
    tensors = {"weights": portable_state(model)}
    if optimizers:
        tensors["optimizer"] = checkpoint.optimizer_tensors(optimizers, model)
        tensors["random"] = _random_state(precision.device)
    if ranks.is_main():
        checkpoint.save(folder, {name: tensors}, tensors, record)


def restore_run(folder: Path, model: nn.Module, optimizers, precision: Precision) -> dict:
    """Set everything to where `last` was; returns its record."""
    record, tensors = checkpoint.load(folder, "last", ("weights", "optimizer", "random"))
    load_portable_state(model, tensors["weights"])
    checkpoint.load_optimizer_tensors(optimizers, model, tensors["optimizer"])
    precision.scaler.load_state_dict(record["scaler"])
    random, rank = tensors["random"], ranks.rank()
    if f"cpu.{rank}" in random:  # a rank that the run did not have goes on as it began
        torch.set_rng_state(random[f"cpu.{rank}"])
    if f"cuda.{rank}" in random and precision.device.type == "cuda":
        torch.cuda.set_rng_state(random[f"cuda.{rank}"], precision.device)
    return record


def load_model(folder: Path, name: str, ops, device) -> tuple[nn.Module, Tokenizer, dict]:
    """The model of checkpoint `name` over `ops` (None: the reference), and its tokenizer."""
    record, tensors = checkpoint.load(folder, name)
    source = folder / f"{name}.json"
    train = record.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("lecture"), str):
        raise Refused(f"{source} does not say how the model was trained; it is damaged")
    config = model_config_from_json(train.get("model"), source)
    model = build(config, ops, train["lecture"])
    load_portable_state(model, tensors["weights"])
    return model.to(device).eval(), from_json(record.get("tokenizer")), record


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators of every rank."""
    kinds = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        kinds["cuda"] = torch.cuda.get_rng_state(device)
    return {
        f"{kind}.{rank}": state
        for kind, mine in kinds.items()
        for rank, state in enumerate(ranks.gather(mine))
    }
