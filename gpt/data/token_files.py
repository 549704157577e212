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
from .tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer, from_json

HEADER_BYTES = 256 * 4  # of llm.c and modded-nanogpt: 256 int32, (magic, version, tokens, ...)
HEADERS: dict[int, tuple] = {20240520: (1, "<u2"), 20240801: (7, "<u4")}  # magic -> version, dtype
SIGNED = {"<u4": "<i4", "<u8": "<i8"}  # PyTorch does not index with unsigned integers
SAMPLE = 1 << 20  # tokens of a file by which their type is recognised
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
    """Training and validation tokens over mapped files, their tokenizer, the files; or UserError.

    The tokens are (N,) uint16, int32 or int64. llm.c's header names their type. Files without it
    have the widest of int64, uint32 and uint16 in which all are tokens of the vocabulary, or of a
    larger one: as uint16, every second token of a wider file would be 0. In a text of one character
    a line, so is every line break: wide files of characters without a token 0 are refused.
    """
    tokenizer = read_meta(folder)
    (train, named, *mapped), (val, also_named, *also_mapped) = (
        _tokens(folder / f"{split}.bin", tokenizer.vocab_size) for split in ("train", "val")
    )
    if train.dtype != val.dtype:
        raise UserError(f"{folder} has {train.dtype} and {val.dtype} tokens; write both alike")
    sure = named or also_named or train.dtype == torch.uint16
    if not sure and isinstance(tokenizer, CharTokenizer) and min(train.min(), val.min()) > 0:
        raise UserError(f"{folder} may have uint16 or wider tokens; begin both with llm.c's header")
    return train, val, tokenizer, [*mapped, *also_mapped]


def _tokens(path: Path, vocab_size: int) -> tuple[torch.Tensor, bool, MappedFile]:
    """The tokens of a file, whether a header names their dtype, and the file."""
    if not path.is_file():
        shards = sorted(path.parent.glob(f"*{path.stem}*.bin"))
        hint = f"; make it a link to {shards[0].name}, for one" if shards else ""
        raise UserError(f"{path} is missing; a data folder holds train.bin and val.bin{hint}")
    try:
        with open_file(path) as file:
            mapped, size = MappedFile(path, file.fileno()), os.fstat(file.fileno()).st_size
            start = np.frombuffer(file.read(12)[: size // 4 * 4], "<i4").tolist()
            magic, version, count = [*start, 0, 0, 0][:3]
            expected, *dtypes = HEADERS.get(magic, (None, "<u8", "<u4", "<u2"))
            skip = HEADER_BYTES if expected else 0
            limit = vocab_size if vocab_size < 256 else max(vocab_size, 1 << 18)  # Gemma's has 2^18
            for dtype in dtypes[: 3 if vocab_size <= 1 << 16 else 2]:
                number = max(0, size - skip) // np.dtype(dtype).itemsize
                shape = (number,)
                tokens = np.memmap(file, dtype, "c", skip, shape) if number else np.empty(0, dtype)
                if number > 1 and 0 < tokens[:SAMPLE].max() < limit:
                    break
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if expected not in (None, version):
        raise UserError(f"{path} has llm.c's magic {magic} with version {version}, not {expected}")
    if size != skip + tokens.nbytes or number < 2 or (expected and number != count):
        wanted = f"a header and {count}" if expected else "at least 2 and a whole number of"
        raise UserError(f"{path} has {size} bytes, which is not {wanted} {tokens.dtype} tokens")
    if (largest := tokens.max()) >= vocab_size:
        known = f"its tokenizer knows 0 to {vocab_size - 1}"
        problem = f"{path} has the token {largest} as {tokens.dtype}, and {known}"
        raise UserError(f"{problem}; it belongs to another meta.json or meta.pkl")
    return torch.from_numpy(tokens.view(SIGNED.get(dtype, dtype))), expected is not None, mapped


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
