"""Token files: a folder with train.bin, val.bin and meta.*, as nanoGPT or llm.c write them.

A folder from a stranger may be damaged or hostile: sizes, token numbers and the opcodes of a pickle
are checked before anything is computed or unpickled.
"""

import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import UserError
from ..files import read_json
from .tokenizers import GPT2Tokenizer, Tokenizer, from_json

MAGIC = 20240520  # llm.c and modded-nanogpt: 256 int32 first, (MAGIC, version, tokens, ...)
HEADER_BYTES = 256 * 4
LARGEST_META = 1 << 24  # bytes; nanoGPT's meta.pkl has a few KiB
# opcodes that build dicts of texts and integers, and nothing that is called or hashed recursively
PLAIN = {"PROTO", "FRAME", "EMPTY_DICT", "MARK", "SETITEM", "SETITEMS", "STOP", "MEMOIZE"}
PLAIN |= {"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BININT", "BININT1", "BININT2", "LONG1"}
PLAIN |= {"SHORT_BINUNICODE", "BINUNICODE"}


def read_token_files(folder: Path) -> tuple[torch.Tensor, torch.Tensor, Tokenizer]:
    """Training and validation tokens, (N,) uint16 over memory-mapped files, and the tokenizer."""
    tokenizer = _tokenizer(folder)
    train, val = (_tokens(folder / f"{split}.bin", tokenizer) for split in ("train", "val"))
    return train, val, tokenizer


def _tokens(path: Path, tokenizer: Tokenizer) -> torch.Tensor:
    """Little-endian uint16 tokens, with llm.c's header or without one."""
    if not path.is_file():
        raise UserError(f"{path} is missing; a data folder holds train.bin and val.bin")
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=min(3, size // 4))
        skip, count = 0, size // 2
        if len(header) == 3 and header[0] == MAGIC:
            if header[1] != 1:
                raise UserError(
                    f"{path} has token-file version {header[1]}; only version 1 is supported"
                )
            skip, count = HEADER_BYTES, int(header[2])
        if size != skip + 2 * count or count < 2:
            raise UserError(f"{path} has {size} bytes, which is not a whole number of tokens")
        tokens = np.memmap(path, dtype="<u2", mode="c", offset=skip, shape=(count,))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if (largest := tokens.max()) >= tokenizer.vocab_size:
        raise UserError(
            f"{path} has the token {largest}, and its tokenizer knows 0 to "
            f"{tokenizer.vocab_size - 1}; it belongs to another meta.json or meta.pkl"
        )
    return torch.from_numpy(tokens)


def _tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of meta.json or of nanoGPT's meta.pkl; without either, GPT-2's."""
    if (folder / "meta.json").is_file():
        return from_json(read_json(folder / "meta.json"))
    path = folder / "meta.pkl"
    if not path.is_file():
        return GPT2Tokenizer()
    try:
        if path.stat().st_size > LARGEST_META:
            raise ValueError(f"it is larger than {LARGEST_META >> 20} MiB")
        meta = read_plain_pickle(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    table = meta.get("itos") if isinstance(meta, dict) else None  # {0: "\n", 1: " ", ...}
    entries = [table.get(i) for i in range(len(table))] if isinstance(table, dict) else [None]
    characters = [each for each in entries if isinstance(each, str) and len(each) == 1]
    if len(characters) < len(entries):
        raise UserError(f"{path} has no character table as nanoGPT writes it")
    return from_json({"kind": "char", "characters": "".join(characters)})


def read_plain_pickle(content: bytes) -> Any:
    """Unpickle dicts of texts and integers; ValueError for any other pickle.

    `find_class` cannot make this safe: a pickle of nested tuples overflows the C stack when it is
    hashed, and a memo index can ask for gigabytes. So all opcodes are checked first.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in PLAIN:
            raise ValueError("it holds more than dicts, texts and integers")
        if opcode.name == "LONG_BINPUT" and argument is not None and argument > len(content):
            raise ValueError("its memo is larger than the file")
    try:
        return pickle.loads(content)  # noqa: S301, checked above
    except (pickle.UnpicklingError, EOFError, ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"it is not a complete pickle ({error})") from None
