"""Tokens of a text collection that no memory holds, as train.bin and val.bin for `--data`.

    python -m gpt.data.prepare openwebtext
    python -m gpt.data.prepare HuggingFaceFW/fineweb-edu --subset sample-10BT --out-dir data/fineweb
    python -m gpt.data.prepare notes.txt more/*.jsonl --tokenizer byte --out-dir data/mine

The files are nanoGPT's: uint16, no header, every document followed by the end-of-text token; the
tokenizer stands beside them in meta.json. Documents are read one after the other, tokenised by all
cores, and written at once, so that memory does not grow with the collection. A document goes to the
validation split whenever that has less than its fraction of the tokens so far: both splits are of
the whole collection, and the same every time. The folder appears when it is complete.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

from gpt import UserError
from gpt.config.cli import parse
from gpt.data.tokenizers import Tokenizer, for_text
from gpt.runs.checkpoint import write_json

KNOWN = {  # name -> the data set on the hub, and its subset
    "openwebtext": ("Skylion007/openwebtext", ""),
    "fineweb": ("HuggingFaceFW/fineweb", "sample-10BT"),
}
END = {"gpt2": [50256], "byte": list(b"\n\n")}  # what follows a document
AT_ONCE = 512  # pieces that are tokenised together
PIECE = 1 << 16  # characters of a text file
# GPT-2's pattern ends a token before the last white space of a run that a word follows
CUT = re.compile(r".*(?=[ \n]\w)", re.DOTALL)

Piece = tuple[str, bool]  # some text, and whether its document ends there


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare, and where."""

    # openwebtext, fineweb, a data set of the Hugging Face hub, or .txt, .jsonl and .parquet files
    sources: tyro.conf.Positional[tuple[str, ...]] = ()
    out_dir: str = ""  # a new folder; data/ and the name of the source unless told
    subset: str = ""  # of a data set on the hub that has several
    column: str = "text"  # where the text is, of a data set, .jsonl and .parquet
    tokenizer: Literal["gpt2", "byte"] = "gpt2"
    val_fraction: float = 0.0005  # of the tokens, as nanoGPT has it for OpenWebText
    max_tokens: int = 0  # stop at so many; 0: take all


def main(arguments: list[str]) -> int:
    try:
        prepare(parse(PrepareConfig, PrepareConfig(), arguments, "Prepare token files."))
    except UserError as refusal:
        print(f"gpt.data.prepare: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngpt.prepare: stopped; nothing was kept", file=sys.stderr)
        return 130
    return 0


def load_dataset(path: str, **options):
    """Hugging Face's function of that name, or `UserError`."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{path} is read by Hugging Face's library; pip install datasets, "
            "or give .txt and .jsonl files"
        ) from None
    try:
        return datasets.load_dataset(path, **options)
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such subset, a script
        reason = str(error).partition("\n")[0]
        raise UserError(f"the data set {path} is not to be had: {reason}") from None


def prepare(config: PrepareConfig, load_dataset: Callable = load_dataset) -> None:
    """Write the folder that `config` describes."""
    if not config.sources:
        raise UserError("name what to prepare: openwebtext, a data set of the hub, or files")
    if not 0.0 < config.val_fraction < 1.0:
        raise UserError("--val-fraction must be above 0 and below 1")
    folder = Path(config.out_dir or Path("data") / Path(config.sources[0]).stem)
    tokenizer = for_text(config.tokenizer, "")
    tokenizer.encode("")  # fetches its table now
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is there already; remove it or give another --out-dir")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            unfinished = Path(temporary, "tokens")
            unfinished.mkdir()
            pieces = read(config, load_dataset)
            train, val = write(pieces, tokenizer, unfinished, config)
            write_json(unfinished / "meta.json", tokenizer.to_json())
            unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} could not be made: {error.strerror or error}") from None
    print(f"{train:,} tokens to train on and {val:,} to validate with; use --data {folder}")


def write(
    pieces: Iterable[Piece], tokenizer: Tokenizer, folder: Path, config: PrepareConfig
) -> tuple[int, int]:
    """Tokenise into train.bin and val.bin; how many tokens each has."""
    train, val = 0, 0
    limit = config.max_tokens or None
    with (
        (folder / "train.bin").open("wb") as train_file,
        (folder / "val.bin").open("wb") as val_file,
        tqdm(total=limit, unit="tok", unit_scale=True, disable=None) as bar,
    ):
        for tokens in tokenise(pieces, tokenizer):
            if val < config.val_fraction * (train + val):
                val_file.write(tokens)
                val += len(tokens)
            else:
                train_file.write(tokens)
                train += len(tokens)
            bar.update(len(tokens))
            if limit and train + val >= limit:
                break
    if not val:
        raise UserError(
            "that is one document, and two are the least that have a validation split; "
            "train.py takes a text file as it is: --data FILE"
        )
    return train, val


def tokenise(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of each piece in turn, (N,) little-endian uint16."""
    end = END[tokenizer.to_json()["kind"]]

    def tokens_of(piece: Piece) -> np.ndarray:
        text, ends = piece
        return np.append(tokenizer.encode(text), end if ends else []).astype("<u2")

    pieces = iter(pieces)
    with ThreadPoolExecutor() as pool:  # tiktoken lets the other threads run
        while batch := list(islice(pieces, AT_ONCE)):
            yield from pool.map(tokens_of, batch)


def read(config: PrepareConfig, load_dataset: Callable) -> Iterator[Piece]:
    """The documents of all sources; those of text files in pieces."""
    for source in config.sources:
        path = Path(source)
        if path.suffix in (".txt", ".jsonl", ".parquet") and not path.is_file():
            raise UserError(f"{path} is no file")
        if path.suffix == ".txt":
            yield from _text(path)
            continue
        if path.suffix == ".jsonl":
            rows = _json_lines(path)
        elif path.suffix == ".parquet":
            rows = load_dataset("parquet", data_files=source, split="train", streaming=True)
        else:
            name, subset = KNOWN.get(source, (source, ""))
            subset = config.subset or subset or None
            rows = load_dataset(name, name=subset, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            text = row.get(config.column)
            if not isinstance(text, str):
                raise UserError(
                    f"{source}: document {number} has no text as {config.column!r}; it has "
                    f"{', '.join(row)}, of which --column chooses"
                )
            yield text, True


def _text(path: Path) -> Iterator[Piece]:
    """A text file as one document, cut where a token ends anyway."""
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
