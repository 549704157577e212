"""Load the model of a run, ready to generate, and what guesses tokens for it."""

from pathlib import Path
from typing import Any

import torch

from .. import UserError
from ..config.model import ModelConfig
from ..data.tokenizers import Tokenizer, from_json
from ..models.build import Model, build
from ..models.packed import GPT
from ..runs import checkpoint
from ..runs.portable_state import load_portable_state
from ..runs.run_state import check_finite
from .int8 import match_quantization
from .sampling import Sampling
from .speculation import Draft, Lookup


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
    load_portable_state(model, match_quantization(model, tensors["weights"]))
    return model.to(device).eval(), tokenizer, record


def open_draft(
    name: str,
    checkpoint_name: str,
    model: GPT,
    tokenizer: Tokenizer,
    sampling: Sampling,
    generator: torch.Generator | None = None,
) -> Draft | Lookup:
    """The guesses for `model` that `--draft` names: "lookup", or the folder of a smaller run.

    Raises UserError if that run is not a packed GPT with the same tokenizer.
    """
    weight = model.ln_f.weight
    if name == "lookup":
        return Lookup(tokenizer.vocab_size, weight.device)
    draft, its_tokenizer, _ = load_model(Path(name), checkpoint_name, model.ops, weight.device)
    if not isinstance(draft, GPT) or its_tokenizer.to_json() != tokenizer.to_json():
        raise UserError(f"--draft {name} is not a GPT with the tokenizer of the model; choose one")
    return Draft(draft.to(weight.dtype), sampling, generator)
