"""Load the model that `--init-from` names, ready to generate or to score."""

from pathlib import Path
from typing import Any

import torch

from .. import UserError
from ..data.tokenizers import Tokenizer
from ..generation.load import load_model
from ..models.build import Model, build
from ..runs.portable_state import load_portable_state
from .init_from import open_source


def load_pretrained(
    name: str, ops, device: torch.device | str
) -> tuple[Model, Tokenizer, dict[str, Any]]:
    """The model in evaluation mode, its tokenizer, and a run's record; {} for any other source."""
    if Path(name, "best.json").is_file():
        return load_model(Path(name), "best", ops, device)
    source = open_source(name)
    if source.tokenizer is None:
        raise UserError(f"{name} has no tokenizer; give a run, or a folder with tokenizer.json")
    model = build(source.config, ops)
    load_portable_state(model, source.weights())
    return model.to(device).eval(), source.tokenizer, {}
