"""Token files: a folder with train.bin and val.bin, of nanoGPT's form or of llm.c's, and a meta.

A stranger's folder can be damaged but not dangerous: sizes and token numbers are checked before
anything is computed, and nothing that it holds is run.
"""

import json
from pathlib import Path

import numpy as np
import torch

from gpt import UserError
from gpt.data.plain_pickle import read_plain_pickle
from gpt.data.tokenizers import GPT2Tokenizer, Tokenizer, from_json

MAGIC = 20240520  # llm.c and modded-nanogpt: 256 int32 first, (MAGIC, version, tokens, ...)
HEADER_BYTES = 256 * 4
CHECKED_AT_ONCE = 1 << 24  # tokens


def read_token_files(folder: Path) -> tuple[torch.Tensor, torch.Tensor, Tokenizer]:
    """Training tokens and validation tokens, both (N,) uint16 over a mapped file; the tokenizer."""
    tokenizer = _tokenizer(folder)
    train, val = (_tokens(folder / f"{split}.bin", tokenizer) for split in ("train", "val"))
    return train, val, tokenizer


def _tokens(path: Path, tokenizer: Tokenizer) -> torch.Tensor:
    """uint16 tokens, little-endian, behind llm.c's header or none."""
    if not path.is_file():
        raise UserError(f"{path} is missing; a data folder holds train.bin and val.bin")
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=min(3, size // 4))
        skip, count = 0, size // 2
        if len(header) == 3 and header[0] == MAGIC:
            if header[1] != 1:
                raise UserError(f"{path} has token-file version {header[1]}; this reads version 1")
            skip, count = HEADER_BYTES, int(header[2])
        if size != skip + 2 * count or count < 2:
            raise UserError(f"{path} has {size} bytes, which is no whole number of uint16 tokens")
        tokens = np.memmap(path, dtype="<u2", mode="c", offset=skip, shape=(count,))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for start in range(0, count, CHECKED_AT_ONCE):
        largest = tokens[start : start + CHECKED_AT_ONCE].max()
        if largest >= tokenizer.vocab_size:
            raise UserError(
                f"{path} has the token {largest}, and its tokenizer knows 0 to "
                f"{tokenizer.vocab_size - 1}; it belongs to another meta.json or meta.pkl"
            )
    return torch.from_numpy(tokens)


def _tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer beside the token files: meta.json, nanoGPT's meta.pkl, or GPT-2's."""
    if (folder / "meta.json").is_file():
        return from_json(_parse(folder / "meta.json", json.loads))
    path = folder / "meta.pkl"
    if not path.is_file():
        return GPT2Tokenizer()
    meta = _parse(path, read_plain_pickle)
    table = meta.get("itos") if isinstance(meta, dict) else None  # {0: "\n", 1: " ", ...}
    characters = [table.get(i) for i in range(len(table))] if isinstance(table, dict) else [None]
    if not all(isinstance(character, str) for character in characters):
        raise UserError(f"{path} has no character table as nanoGPT writes it")
    return from_json({"kind": "char", "characters": "".join(characters)})


def _parse(path: Path, parse):
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
