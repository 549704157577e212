"""Pretrained weights: from a run, GPT-2, a Hugging Face folder, or the lecture's own file.

`--init-from` names one of them. The model is theirs, but the data may be different: characters that
both vocabularies have keep their weights, and the others start with fresh ones.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch

from .. import UserError, files
from ..config.model import ModelConfig
from ..data.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer, from_json
from ..models.build import Model
from ..models.layouts import State, packed_from_lecture
from ..runs import checkpoint
from ..runs.portable_state import load_portable_state, portable_state
from .gpt2 import config_from_gpt2, packed_from_gpt2

HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
TABLES = ("token_embedding_table.weight", "lm_head.weight", "lm_head.bias")  # a row per token


class Source(NamedTuple):
    """A pretrained model, with its weights not yet read."""

    config: ModelConfig
    tokenizer: Tokenizer | None  # None for the lecture's file, which has only weights
    weights: Callable[[], State]  # under the names of the packed model


def open_source(name: str) -> Source:
    """Find what `--init-from` names; raises UserError if there is nothing of that name."""
    path = _download(name) if name in HUB else Path(name)
    if (path / "best.json").is_file():
        record, tensors = checkpoint.load(path, "best")
        config = ModelConfig.from_dict(record["train"]["model"], path / "best.json")
        return Source(config, from_json(record["tokenizer"]), lambda: tensors["weights"])
    if (path / "model.safetensors").is_file():
        config = config_from_gpt2(files.read_json(path / "config.json"), path)
        tensors = path / "model.safetensors"
        return Source(config, GPT2Tokenizer(), lambda: packed_from_gpt2(tensors, config))
    if path.is_file():
        return _from_lecture(path)
    raise UserError(
        f"--init-from {name}: no such run or file; give the folder of a run, {', '.join(HUB)}, "
        "a folder saved by transformers, or a state dict of the lecture's model"
    )


def initialise_from(name: str, model: Model, tokenizer: Tokenizer) -> str:
    """Load the weights that `name` has into `model`; returns a line that counts the tokens."""
    source = open_source(name)
    own, given = portable_state(model), source.weights()
    kept, tokens = _shared_tokens(source.tokenizer, tokenizer, source.config.vocab_size)
    for table in TABLES:
        if table in own and table in given:
            rows = own[table].clone()
            rows[kept] = given[table][tokens]
            given[table] = rows
    positions = "position_embedding_table.weight"
    if positions in given:
        given[positions] = given[positions][: model.config.block_size]
    load_portable_state(model, given)
    fresh = tokenizer.vocab_size - len(kept)
    return f"initialised from {name}: {len(kept)} tokens kept their weights, {fresh} are new"


def _shared_tokens(old: Tokenizer | None, new: Tokenizer, size: int) -> tuple[list[int], list[int]]:
    """The tokens that both tokenizers have, numbered by the new one and by the old one."""
    if isinstance(old, CharTokenizer) and isinstance(new, CharTokenizer):
        both = sorted(set(new.characters) & set(old.characters))
        return list(map(new.characters.index, both)), list(map(old.characters.index, both))
    alike = new.vocab_size == size if old is None else old.to_json() == new.to_json()
    if not alike:
        raise UserError(
            "the data's tokenizer is not that of --init-from's model; choose the same --tokenizer"
        )
    tokens = list(range(new.vocab_size))
    return tokens, tokens


def _from_lecture(path: Path) -> Source:
    """A state dict written by `torch.save`; only tensors are read, and no code in it is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        vocab_size, n_embd = state["token_embedding_table.weight"].shape
        block_size = len(state["position_embedding_table.weight"])
        names = [re.match(r"blocks\.(\d+)\.sa\.heads\.(\d+)\.", name) for name in state]
        layers, heads = zip(*(map(int, match.groups()) for match in names if match), strict=True)
    except (UnpicklingError, OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError):
        raise UserError(f"--init-from {path} is not a state dict of the lecture's model") from None
    sizes = {"n_layer": max(layers) + 1, "n_head": max(heads) + 1, "n_embd": n_embd}
    config = ModelConfig(vocab_size=vocab_size, block_size=block_size, **sizes)
    return Source(config, None, lambda: packed_from_lecture(state, config))


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f"--init-from {name} needs huggingface_hub: pip install huggingface_hub"
        ) from None
    wanted = ["config.json", "model.safetensors"]
    try:
        return Path(snapshot_download(f"openai-community/{name}", allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"--init-from {name} could not be downloaded ({type(error).__name__}); connect to the "
            "internet, or give a folder with its config.json and model.safetensors"
        ) from None


def defaults_of(name: str) -> dict[str, Any]:
    """The options that `--init-from` sets: its model, but with the vocabulary of the data."""
    source = open_source(name)
    kind = source.tokenizer.to_json()["kind"] if source.tokenizer else "char"
    return {"model": replace(source.config, vocab_size=0), "tokenizer": kind}
