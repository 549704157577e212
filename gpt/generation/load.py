"""Load the model of a run, ready to generate."""

from pathlib import Path
from typing import Any

import torch

from .. import UserError
from ..config.model import ModelConfig
from ..data.tokenizers import Tokenizer, from_json
from ..models.build import Model, build
from ..runs import checkpoint
from ..runs.portable_state import load_portable_state
from ..runs.run_state import check_finite


def load_model(
    folder: Path, name: str, ops, device: torch.device | str
) -> tuple[Model, Tokenizer, dict[str, Any]]:
    """Load checkpoint `name` of the run in `folder`, over `ops` (None: the reference).

    Returns the model in evaluation mode, its tokenizer, and the checkpoint's JSON record.
    """
    record, tensors = checkpoint.load(folder, name)
    source = folder / f"{name}.json"
    train = record.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("lecture"), str):
        raise UserError(f"{source} has no training config; it is damaged")
    config = ModelConfig.from_dict(train.get("model"), source)
    tokenizer = from_json(record.get("tokenizer"))
    if config.vocab_size < tokenizer.vocab_size:
        raise UserError(f"{source}: the model has fewer tokens than the tokenizer; it is damaged")
    check_finite(tensors["weights"], source)
    model = build(config, ops, train["lecture"])
    load_portable_state(model, tensors["weights"])
    return model.to(device).eval(), tokenizer, record
