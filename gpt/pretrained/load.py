"""Load the model that `--init-from` names, ready to generate or to score."""

from pathlib import Path
from typing import Any

import torch

from .. import UserError
from ..data.tokenizers import Tokenizer
from ..generation.load import load_model
from ..models.build import Model, build
from ..runs.portable_state import load_portable_state
from ..runs.run_state import check_finite
from .init_from import open_source


def load_pretrained(
    name: str, ops, device: torch.device | str
) -> tuple[Model, Tokenizer, dict[str, Any]]:
    """The model in evaluation mode, its tokenizer, and a run's record; {} for any other source."""
    if Path(name, "best.json").is_file():
        return load_model(Path(name), "best", ops, device)
    source = open_source(name)
    config, tokenizer = source.config, source.tokenizer
    if config is None or tokenizer is None:
        part = "config" if config is None else "tokenizer"
        raise UserError(f"{name} has no {part}; give a run, or a folder with {part}.json")
    weights = source.weights()
    check_finite(weights, Path(name))
    model = build(config, ops, source.options.get("lecture", ""))
    load_portable_state(model, weights)
    return model.to(device).eval(), tokenizer, {}
