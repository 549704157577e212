"""Pretrained weights: of a run, a folder of transformers, nanoGPT, or a state dict.

`--init-from` names one of them. The model is theirs, but the data may be different: characters that
both vocabularies have keep their weights, and the others start with fresh ones.
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import UserError
from ..config.base import flag
from ..config.model import ModelConfig
from ..config.train import TrainConfig
from ..data.tokenizers import CharTokenizer, Tokenizer, from_json
from ..files import read_json
from ..generation.load import load_model
from ..models.build import Model, build
from ..models.layouts import State, packed_from_lecture
from ..models.lecture import LanguageModel
from ..runs import checkpoint
from ..runs.portable_state import load_portable_state, portable_state
from ..runs.run_state import check_finite
from . import nanogpt
from .gpt2 import TABLES, config_from_gpt2, fitted, packed_from_gpt2, read_tokenizer
from .state_files import find_weights, read_content, state_of

HEAD = re.compile(r"blocks\.(\d{1,5})\.sa\.heads\.(\d{1,5})\.key\.weight")  # of the lecture
# options of a model that may be others than those of its pretrained weights
TUNABLE = {"vocab_size", "block_size", "dropout", "embedding_dropout", "window", "document_mask"}
TUNABLE |= {"end_of_text", "projection_init"}
POSITIONS = "position_embedding_table.weight"
COMMITS = {  # of openai-community on the Hugging Face hub
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}


class Source(NamedTuple):
    """A pretrained model, with its weights not yet read."""

    config: ModelConfig
    tokenizer: Tokenizer | None  # None: the file has none
    weights: Callable[[], State]  # under the names of the packed model
    options: dict[str, Any]  # of its run, that the model needs


def open_source(name: str, data_dir: str = "data") -> Source:
    """Find what `--init-from` names; raises UserError if there is nothing of that name.

    data_dir: searched for the tokenizer of nanoGPT's data.
    """
    if not os.path.exists(name):
        model = name if "/" in name else f"openai-community/{name}"
        commit = f" --revision {COMMITS[name]}" if name in COMMITS else ""
        files = "--local-dir FOLDER --include '*.json' --include '*.safetensors'"
        command = f"hf download {model}{commit} {files}"
        problem = f"--init-from {name}: no such file or folder"
        raise UserError(f"{problem}; a model of the Hugging Face hub is downloaded by: {command}")
    path = Path(name)
    weights = find_weights(path)
    if (path / "best.json").is_file():
        source = _from_run(path)
    elif weights is None:
        raise UserError(
            f"--init-from {name} has no weights in one file; give a run, a folder of transformers, "
            "nanoGPT's ckpt.pt, or a state dict of the lecture's model"
        )
    else:
        config = weights.parent / "config.json"
        record = read_json(config) if config.is_file() else {}
        known = "model_type" in record
        source = _from_transformers(weights, record) if known else _from_file(weights, data_dir)
    if source.tokenizer:
        size, tokens = source.config.vocab_size, source.tokenizer.vocab_size
        if size < tokens:
            raise UserError(f"{name}: the model has {size} tokens, and its tokenizer has {tokens}")
    return source


def _from_run(path: Path) -> Source:
    record, tensors = checkpoint.load(path, "best")
    train = TrainConfig.from_dict(record.get("train"), path / "best.json")
    tokenizer = from_json(record.get("tokenizer"))
    return Source(train.model, tokenizer, lambda: tensors["weights"], {"lecture": train.lecture})


def _from_transformers(weights: Path, record: dict) -> Source:
    folder = weights.parent
    config = config_from_gpt2(record, folder)

    def read() -> State:
        return fitted(packed_from_gpt2(state_of(read_content(weights), weights)), config)

    return Source(config, read_tokenizer(folder), read, {})


def _from_file(path: Path, data_dir: str) -> Source:
    content = read_content(path)
    state = state_of(content, path)
    if "model_args" in content:
        config = nanogpt.config_of(content, path)
        folders = [Path(data_dir), path.absolute().parent.parent / "data"]  # nanoGPT's own too
        tokenizer = nanogpt.tokenizer_of(content, config.vocab_size, folders)
        return Source(config, tokenizer, lambda: fitted(packed_from_gpt2(state), config), {})
    if any(HEAD.fullmatch(name) for name in state):
        return _from_lecture(state, path)
    raise UserError(
        f"--init-from {path} is neither nanoGPT's ckpt.pt nor a state dict of the lecture's model, "
        f"and beside it is no config.json of GPT-2: it begins with {next(iter(state))!r:.80}"
    )


def _from_lecture(state: State, path: Path) -> Source:
    """The lecture's gpt.py: the names count layers and heads."""
    heads = {tuple(map(int, match.groups())) for name in state if (match := HEAD.fullmatch(name))}
    n_layer, n_head = (1 + max(numbers) for numbers in zip(*heads, strict=True))
    shapes = [state[name].shape for name in (TABLES[0], POSITIONS) if name in state]
    if [len(shape) for shape in shapes] != [2, 2] or len(heads) != n_layer * n_head:
        raise UserError(f"--init-from {path} is not a state dict of the lecture's model")
    (vocab_size, n_embd), (block_size, _) = shapes
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    config = ModelConfig(vocab_size=vocab_size, block_size=block_size, **sizes)
    return Source(config, None, lambda: fitted(packed_from_lecture(state, config), config), {})


def _vocabulary(state: State) -> int:
    """The number of tokens that the first of the tables has."""
    return next((len(state[name]) for name in TABLES if name in state and state[name].dim()), 0)


def load_pretrained(
    name: str, ops, device: torch.device | str
) -> tuple[Model, Tokenizer, dict[str, Any]]:
    """The model in evaluation mode, its tokenizer, and a run's record; {} for any other source."""
    if Path(name, "best.json").is_file():
        return load_model(Path(name), "best", ops, device)
    source = open_source(name)
    config, tokenizer = source.config, source.tokenizer
    if tokenizer is None:
        raise UserError(
            f"{name} has no tokenizer; give a run, a folder with tokenizer.json, or nanoGPT's "
            "ckpt.pt and the meta.pkl of its dataset below data/"
        )
    weights = source.weights()
    check_finite(weights, Path(name))
    model = build(config, ops, source.options.get("lecture", ""))
    load_portable_state(model, weights)
    return model.to(device).eval(), tokenizer, {}


def initialise_from(name: str, model: Model, tokenizer: Tokenizer, data_dir: str = "data") -> str:
    """Load the weights that `name` has into `model`; returns a line that counts the tokens."""
    source = open_source(name, data_dir)
    own, given = portable_state(model), source.weights()
    if not isinstance(model, LanguageModel):
        _check_architecture(model.config, source.config)
        positions = given.get(POSITIONS, range(model.config.block_size))
        theirs = replace(model.config, vocab_size=_vocabulary(given), block_size=len(positions))
        given = fitted(given, theirs)
    check_finite(given, Path(name))
    kept, tokens = _shared_tokens(source.tokenizer, tokenizer, _vocabulary(given), model)
    for table in TABLES if own.keys() == given.keys() else ():
        if table in own and own[table].shape[1:] == given[table].shape[1:]:
            merged = own[table].clone()
            merged[kept] = given[table][tokens]
            given[table] = merged
    if POSITIONS in given:
        given[POSITIONS] = given[POSITIONS][: model.config.block_size]
    load_portable_state(model, given)
    known = int((kept < tokenizer.vocab_size).sum())  # without padding
    fresh = tokenizer.vocab_size - known
    return f"initialised from {name}: {known} tokens kept their weights, {fresh} are new"


def _check_architecture(config: ModelConfig, theirs: ModelConfig) -> None:
    """Raise UserError if an option changes the function that pretrained weights compute."""
    for name, value in vars(config).items():
        if name not in TUNABLE and value != (own := getattr(theirs, name)):
            problem = f"{flag(name)} is {value}, but the model of --init-from has {own}"
            raise UserError(f"{problem}; leave the option out")


def _shared_tokens(
    old: Tokenizer | None, new: Tokenizer, size: int, model: Model
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that both have, numbered by the new tokenizer and by the old one, (N,) each.

    With equal tokenizers, the rows that pad a table belong to them too.
    """
    if isinstance(old, CharTokenizer) and isinstance(new, CharTokenizer):
        both = sorted(set(new.characters) & set(old.characters))
        kept, rows = (list(map(each.characters.index, both)) for each in (new, old))
        return torch.tensor(kept, dtype=torch.long), torch.tensor(rows, dtype=torch.long)
    alike = new.vocab_size == size if old is None else old.to_json() == new.to_json()
    if not alike:
        raise UserError(
            "the data's tokenizer is not that of --init-from's model; choose the same --tokenizer"
        )
    tokens = torch.arange(min(size, model.config.vocab_size))
    return tokens, tokens


def defaults_of(name: str, data_dir: str = "data") -> dict[str, Any]:
    """The options that `--init-from` sets: its model, but with the vocabulary of the data."""
    source = open_source(name, data_dir)
    kind = source.tokenizer.to_json()["kind"] if source.tokenizer else "char"
    padded = source.tokenizer is not None and kind != "char"
    config = source.config if padded else replace(source.config, vocab_size=0)
    return {"tokenizer": kind, "model": config, **source.options}
