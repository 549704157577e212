"""Turn a text collection of any size into token files, train.bin and val.bin, for `--data`.

    python -m gpt.data.prepare openwebtext
    python -m gpt.data.prepare HuggingFaceFW/fineweb-edu --subset sample-10BT --out-dir data/fineweb
    python -m gpt.data.prepare notes.txt more/*.jsonl --tokenizer byte --out-dir data/mine

The files have nanoGPT's format: uint16 without a header, an end-of-text token after every document;
meta.json describes the tokenizer. Documents are streamed, tokenised by all cores and written at
once, so that memory does not grow with the collection. A document goes to the validation split
whenever that holds less than its share of the tokens so far: both splits cover the collection, and
they are the same every time. The folder appears when it is complete.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from .. import UserError
from ..config.base import Config, option
from ..config.cli import parse
from ..files import write_json
from .corpus import KNOWN
from .tokenizers import Tokenizer, for_text

END = {"gpt2": [50256], "byte": list(b"\n\n")}  # after a document
AT_ONCE = 512  # pieces per batch of the thread pool
PIECE = 1 << 16  # characters of a text file
# GPT-2's pattern always ends a token before the last white space in front of a word
CUT = re.compile(r".*(?=[ \n]\w)", re.DOTALL)

Piece = tuple[str, bool]  # some text, and whether the document ends with it


@dataclass(frozen=True)
class PrepareConfig(Config):
    """What to prepare, and where."""

    sources: tuple[str, ...] = option(
        (),
        "openwebtext, fineweb, a data set of the Hugging Face hub, or .txt, .jsonl and .parquet "
        "files",
        positional=True,
    )
    out_dir: str = option("", "a new folder; empty: data/ and the name of the source")
    subset: str = option("", "subset of a data set on the hub")
    column: str = option("text", "column of the text in a data set, .jsonl or .parquet file")
    tokenizer: Literal["gpt2", "byte"] = option("gpt2", "tokenizer")
    val_fraction: float = option(0.0005, "share of tokens in the validation split", below=1)
    max_tokens: int = option(0, "stop at this many tokens; 0: take all")


def main(arguments: list[str]) -> int:
    try:
        prepare(parse(PrepareConfig(), arguments, "Prepare token files."))
    except UserError as refusal:
        print(f"gpt.data.prepare: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngpt.data.prepare: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def load_dataset(path: str, **options: Any) -> Iterable[dict]:
    """`datasets.load_dataset`; UserError if the library or the data set is not available."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{path} needs Hugging Face's datasets library: pip install datasets, or give .txt or "
            ".jsonl files"
        ) from None
    try:
        return datasets.load_dataset(path, **options)
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such subset, a script
        reason = str(error).partition("\n")[0]
        raise UserError(f"the data set {path} is not available: {reason}") from None


def prepare(config: PrepareConfig) -> None:
    """Write the folder of token files that `config` describes."""
    if not config.sources:
        raise UserError("there is nothing to prepare; name openwebtext, a data set, or files")
    if not config.val_fraction:
        raise UserError("--val-fraction is 0; it must be above 0")
    folder = Path(config.out_dir or Path("data") / Path(config.sources[0]).stem)
    tokenizer = for_text(config.tokenizer, "")
    tokenizer.encode("")  # download its table now
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} already exists; remove it or choose another --out-dir")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            unfinished = Path(temporary, "tokens")
            unfinished.mkdir()
            train, val = write(config, tokenizer, unfinished)
            write_json(unfinished / "meta.json", tokenizer.to_json())
            unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    print(f"{train:,} training tokens and {val:,} validation tokens; use --data {folder}")


def write(config: PrepareConfig, tokenizer: Tokenizer, folder: Path) -> tuple[int, int]:
    """Tokenise into train.bin and val.bin; returns the number of tokens in each."""
    train, val = 0, 0
    with (
        (folder / "train.bin").open("wb") as train_file,
        (folder / "val.bin").open("wb") as val_file,
        tqdm(total=config.max_tokens or None, unit="tok", unit_scale=True, disable=None) as bar,
    ):
        for tokens in tokenise(read(config), tokenizer):
            if val < config.val_fraction * (train + val):
                val_file.write(tokens.data)
                val += len(tokens)
            else:
                train_file.write(tokens.data)
                train += len(tokens)
            bar.update(len(tokens))
            if 0 < config.max_tokens <= train + val:
                break
    if not val:
        raise UserError(
            "the sources have fewer than two documents, too few for a validation split; to train "
            "on a single text file, use train.py --data FILE"
        )
    return train, val


def tokenise(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yield the tokens of each piece, (N,) little-endian uint16."""
    end = END[tokenizer.to_json()["kind"]]

    def tokens_of(piece: Piece) -> np.ndarray:
        text, ends = piece
        return np.append(tokenizer.encode(text), end if ends else []).astype("<u2")

    with ThreadPoolExecutor() as pool:  # tiktoken releases the GIL
        while batch := list(islice(pieces, AT_ONCE)):
            yield from pool.map(tokens_of, batch)


def read(config: PrepareConfig) -> Iterator[Piece]:
    """Yield the documents of all sources; a text file is one document in many pieces."""
    for source in config.sources:
        path = Path(source)
        if path.suffix in (".txt", ".jsonl", ".parquet") and not path.is_file():
            raise UserError(f"{path} is not a file")
        if path.suffix == ".txt":
            yield from _text(path)
            continue
        if path.suffix == ".jsonl":
            rows: Iterable[dict] = _json_lines(path)
        elif path.suffix == ".parquet":
            rows = load_dataset("parquet", data_files=source, split="train", streaming=True)
        else:
            name, subset = KNOWN.get(source, (source, None))
            rows = load_dataset(name, name=config.subset or subset, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            text = row.get(config.column)
            if not isinstance(text, str):
                raise UserError(
                    f"{source}: document {number} has no text in column {config.column!r}; choose "
                    f"--column from {', '.join(row)}"
                )
            yield text, True


def _text(path: Path) -> Iterator[Piece]:
    """Yield a text file in pieces, cut where a token always ends."""
    try:
        with path.open(encoding="utf-8") as file:
            rest = ""
            while block := file.read(PIECE):
                rest += block
                found = CUT.match(rest)
                if found and found.end():
                    yield found[0], False
                    rest = rest[found.end() :]
            yield rest, True
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; convert it first") from None


def _json_lines(path: Path) -> Iterator[dict]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number} is not a JSON object")
            yield row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
