"""Token files: a folder with train.bin, val.bin and meta.*, as nanoGPT or llm.c write them.

A folder from a stranger may be damaged or hostile: sizes, token numbers and the opcodes of a pickle
are checked before anything is computed or unpickled.
"""

import os
import pickle
import pickletools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import UserError
from ..files import open_file, read_json
from .tokenizers import GPT2Tokenizer, Tokenizer, from_json

HEADER_BYTES = 256 * 4  # of llm.c and modded-nanogpt: 256 int32, (magic, version, tokens, ...)
MAGIC, VERSION = 20240520, 1
SAMPLE = 1 << 20  # tokens of a file by which a wider type is recognised
LARGEST_META = 1 << 22  # bytes; nanoGPT's meta.pkl has a few KiB
# opcodes that build dicts of texts and integers, and nothing that is called or hashed recursively
PLAIN = {"PROTO", "FRAME", "EMPTY_DICT", "MARK", "SETITEM", "SETITEMS", "STOP", "MEMOIZE"}
PLAIN |= {"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BININT", "BININT1", "BININT2", "LONG1"}
PLAIN |= {"SHORT_BINUNICODE", "BINUNICODE"}


class MappedFile:
    """A file whose tokens are mapped to memory, held open to notice when it is written to."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor = path, os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        self._status = self._now()

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def check(self) -> None:
        """Raise UserError if the file was written to since it was opened."""
        if self._now() != self._status:
            problem = f"{self.path} was changed while it was in use"
            raise UserError(f"{problem}; restore it, and continue a run with --resume")


def read_token_files(
    folder: Path,
) -> tuple[torch.Tensor, torch.Tensor, Tokenizer, list[MappedFile]]:
    """Training and validation tokens (N,) uint16 over mapped files, their tokenizer, the files.

    A file may have llm.c's header. Raises UserError for a damaged file, and for one of wider
    tokens, of which every second would be read as 0.
    """
    tokenizer = read_meta(folder)
    (train, *mapped), (val, *also_mapped) = (
        _tokens(folder / f"{split}.bin", tokenizer.vocab_size) for split in ("train", "val")
    )
    return train, val, tokenizer, [*mapped, *also_mapped]


def _tokens(path: Path, vocab_size: int) -> tuple[torch.Tensor, MappedFile]:
    """The tokens of a file, and the file."""
    if not path.is_file():
        shards = sorted(path.parent.glob(f"*{path.stem}*.bin"))
        hint = f"; make it a link to {shards[0].name}, for one" if shards else ""
        raise UserError(f"{path} is missing; a data folder holds train.bin and val.bin{hint}")
    try:
        with open_file(path) as file:
            mapped, size = MappedFile(path, file.fileno()), os.fstat(file.fileno()).st_size
            start = np.frombuffer(file.read(12)[: size // 4 * 4], "<i4").tolist()
            magic, version, count = [*start, 0, 0, 0][:3]
            skip = HEADER_BYTES if magic == MAGIC else 0
            number = max(0, size - skip) // 2
            tokens = np.memmap(file, "<u2", "c", skip, (number,)) if number else np.empty(0, "<u2")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if skip and version != VERSION:
        raise UserError(f"{path} has llm.c's magic {MAGIC} with version {version}, not {VERSION}")
    if size != skip + tokens.nbytes or number < 2 or (skip and number != count):
        wanted = f"a header and {count}" if skip else "at least 2 and a whole number of"
        raise UserError(f"{path} has {size} bytes, which is not {wanted} uint16 tokens")
    if not skip and not tokens[1:SAMPLE:2].any():
        problem = f"{path} seems to have wider tokens than uint16, since every second one is 0"
        raise UserError(f"{problem}; write uint16, or begin it with llm.c's header")
    if (largest := tokens.max()) >= vocab_size:
        problem = f"{path} has the token {largest}, and its tokenizer knows 0 to {vocab_size - 1}"
        raise UserError(f"{problem}; it belongs to another meta.json or meta.pkl")
    return torch.from_numpy(tokens), mapped


def read_meta(folder: Path) -> Tokenizer:
    """The tokenizer of meta.json or of nanoGPT's meta.pkl; without either, GPT-2's."""
    if (folder / "meta.json").exists():
        return from_json(read_json(folder / "meta.json"))
    path = folder / "meta.pkl"
    if not path.exists():
        return GPT2Tokenizer()
    try:
        with open_file(path, limit=LARGEST_META) as file:
            meta = read_plain_pickle(file.read())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    table = meta.get("itos") if isinstance(meta, dict) else None  # {0: "\n", 1: " ", ...}
    if not isinstance(table, dict):
        raise UserError(f"{path} has no table itos of characters as nanoGPT writes it")
    entries = [table.get(token) for token in range(len(table))]
    characters = [entry for entry in entries if isinstance(entry, str) and len(entry) == 1]
    if len(characters) < len(entries):
        others = len(entries) - len(characters)
        raise UserError(f"{path} has {others} tokens that are not one character, as each must be")
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
