"""Turn a text collection of any size into token files, train.bin and val.bin, for `--data`.

    python -m gpt.data.prepare openwebtext
    python -m gpt.data.prepare HuggingFaceFW/fineweb-edu --subset sample-10BT --out-dir data/fineweb
    python -m gpt.data.prepare notes.txt more/*.jsonl --tokenizer byte --out-dir data/mine

The files have nanoGPT's format, uint16 without a header; meta.json describes the tokenizer. A text
file is one document, or several between <|endoftext|>; each ends with the tokenizer's end of text,
or an empty line if it has none. Documents are streamed, tokenised by all cores and written at once,
so that memory does not grow with the collection. A document goes to val.bin whenever that stays
within its share of the tokens so far; if none ever fits, the shortest does, and a single one is
divided at its end. So both splits cover the collection, and they are the same every time. The
folder appears when it is complete.
"""

import json
import mmap
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from .. import UserError, downloads
from ..config.base import Config, option
from ..config.cli import parse
from ..files import File, Folder, new_folder
from ..process import protect_streams, raising_signals
from .corpus import KNOWN, LONGEST_LINE, read_blocks
from .tokenizers import Text, Tokenizer, for_text, whole_tokens

END_OF_TEXT = "<|endoftext|>"  # ends a document of a text file
DTYPE = np.dtype("<u2")  # of token files
AT_ONCE = 512  # pieces per batch of the thread pool
STALLED = 300.0  # seconds for the next rows of a data set: its library retries for 100


@dataclass(frozen=True)
class PrepareConfig(Config):
    """What to prepare, and where."""

    sources: tuple[str, ...] = option(
        (),
        "openwebtext, fineweb, a data set of the Hugging Face hub, NAME or NAME@REVISION, or .txt, "
        ".jsonl, .parquet files",
        positional=True,
    )
    out_dir: str = option("", "a new folder; empty: data/ and the name of the source")
    offline: bool = option(False, "download nothing: use what is here or cached, or stop")
    subset: str = option("", "subset of a data set on the hub")
    column: str = option("text", "column of the text in a data set, .jsonl or .parquet file")
    tokenizer: Literal["gpt2", "byte"] = option(
        "gpt2", "how text becomes tokens; for characters, give train.py --data FILE"
    )
    val_fraction: float = option(0.0005, "share of tokens in val.bin", at_least=1e-9, below=1)
    max_tokens: int = option(0, "stop after the document with this token; 0: take all", below=2**63)


def main(arguments: list[str]) -> int:
    try:
        with raising_signals():
            prepare(parse(PrepareConfig(), arguments, "Prepare token files."))
    except UserError as refusal:
        print(f"gpt.data.prepare: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("\ngpt.data.prepare: stopped; nothing was written", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    return 0


def load_dataset(path: str, **options: Any) -> Iterator[dict]:
    """Yield the rows of `datasets.load_dataset`; UserError if it or the data set fails.

    path: may be NAME@REVISION. The commit of a data set on the hub is printed.
    """
    try:
        import datasets
    except ImportError:
        problem = f"{path} needs Hugging Face's datasets library"
        raise UserError(f"{problem}: pip install datasets, or give .txt or .jsonl files") from None

    def rows() -> Iterator[dict]:
        name, _, revision = path.partition("@")
        if Path(path).exists() or "data_files" in options:  # not on the hub
            name, revision = path, ""
        elif not downloads.is_offline():
            from huggingface_hub import HfApi

            describe = partial(HfApi().dataset_info, name, revision=revision or None)
            revision = downloads.within(downloads.LIMIT, describe).sha or ""
            tqdm.write(f"reading {name}@{revision}")
        yield from datasets.load_dataset(name, revision=revision or None, **options)

    try:
        yield from downloads.in_time(STALLED, rows)
    except Exception as error:  # the library's own, and those of its HTTP and parquet libraries
        reason = str(error).partition("\n")[0] or type(error).__name__
        place = " offline" if downloads.is_offline() else ""
        raise UserError(f"the data set {path} is not available{place}: {reason}") from None


def prepare(config: PrepareConfig) -> None:
    """Write the folder of token files that `config` describes."""
    if not config.sources:
        raise UserError("there is nothing to prepare; name openwebtext, a data set, or files")
    folder = Path(config.out_dir or Path("data") / Path(config.sources[0]).stem.partition("@")[0])
    tokenizer = for_text(config.tokenizer, ())
    tokenizer.encode("")  # download its table now
    try:
        with new_folder(folder) as unfinished:
            train, val, empty = write(config, tokenizer, unfinished)
            unfinished.write_json("meta.json", tokenizer.to_json())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    skipped = f", {empty:,} empty documents skipped" if empty else ""
    print(f"{train:,} training tokens and {val:,} validation tokens{skipped}; use --data {folder}")


def write(config: PrepareConfig, tokenizer: Tokenizer, folder: Folder) -> tuple[int, int, int]:
    """Tokenise into train.bin and val.bin; returns their tokens and the number of empty documents.

    A document streams into train.bin, and is moved if it belongs to val.bin. The document that
    reaches max_tokens is the last; if it alone is longer than that, it is cut there.
    """
    limit, start, empty = config.max_tokens * DTYPE.itemsize, 0, 0  # limit and start in bytes
    shortest = (sys.maxsize, 0)  # length and start of a document in train.bin
    with (
        folder.create("train.bin") as train,
        folder.create("val.bin") as val,
        tqdm(total=config.max_tokens or None, unit="tok", unit_scale=True, disable=None) as bar,
    ):
        for tokens, ends in tokenise(whole_tokens(tokenizer, read(config)), tokenizer):
            train.write(tokens.data)
            bar.update(len(tokens))
            if too_long := 0 < limit < train.tell() - start:
                train.truncate(train.seek(limit - val.tell()))
            if not ends and not too_long:
                continue
            length = train.tell() - start
            if not length:
                empty += 1
            elif val.tell() + length <= config.val_fraction * (train.tell() + val.tell()):
                _move(train, start, length, val)
            else:
                shortest = min(shortest, (length, start))
            start = train.tell()
            if 0 < limit <= start + val.tell():
                break
        if start and not val.tell():
            length, first = shortest
            if length == start:  # it is the only document
                length = max(2, int(config.val_fraction * start / DTYPE.itemsize)) * DTYPE.itemsize
                first = start - length
            _move(train, first, length, val)
        sizes = [file.tell() // DTYPE.itemsize for file in (train, val)]
        for file in (train, val):
            file.sync()
    if min(sizes) < 2:
        raise UserError(f"the sources have {sum(sizes)} tokens, too few for two splits")
    return sizes[0], sizes[1], empty


def _move(source: File, start: int, length: int, target: File) -> None:
    """Move bytes of a file to the end of another; what is behind them moves up."""
    with mmap.mmap(source.fileno(), 0) as content:
        target.write(content[start : start + length])
        end = len(content) - length
        content.move(start, start + length, end - start)
    source.truncate(source.seek(end))


def tokenise(pieces: Iterator[Text], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield the tokens of each piece, (N,), with an end of text where a document ends."""
    last = tokenizer.encode("\n\n") if (end := tokenizer.end_of_text) is None else np.array([end])

    def tokens_of(piece: Text) -> tuple[np.ndarray, bool]:
        text, ends = piece
        return np.append(tokenizer.encode(text), last if ends and text else []).astype(DTYPE), ends

    with ThreadPoolExecutor() as pool:  # tiktoken releases the GIL
        while batch := list(islice(pieces, AT_ONCE)):
            yield from pool.map(tokens_of, batch)


def read(config: PrepareConfig) -> Iterator[Text]:
    """Yield the documents of all sources, those of text files in pieces; "" for an empty one."""
    for source in config.sources:
        path = Path(source)
        if path.is_file() != (path.suffix in (".txt", ".jsonl", ".parquet")):
            raise UserError(f"{path} is not a file of type .txt, .jsonl or .parquet")
        if path.suffix == ".txt":
            yield from documents(read_blocks(path))
            continue
        if path.suffix == ".jsonl":
            rows: Iterable[dict] = _json_lines(path, config.column)
        elif path.suffix == ".parquet":
            rows = load_dataset("parquet", data_files=source, split="train", streaming=True)
        else:
            name, subset = KNOWN.get(source, (source, None))
            rows = load_dataset(name, name=config.subset or subset, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            if not isinstance(text := row.get(config.column, 0), str | None):
                problem = f"{source}: document {number} has no text in column {config.column!r}"
                raise UserError(f"{problem}; choose --column from {', '.join(row)}")
            units = (text or "").encode("utf-16-le", "surrogatepass")
            yield units.decode("utf-16-le", "replace"), True  # half a pair, "\\ud800", is U+FFFD


def documents(blocks: Iterable[str]) -> Iterator[Text]:
    """Yield what is between END_OF_TEXT in pieces, without documents of white space."""
    rest, begun = "", False
    for block in blocks:
        *texts, rest = (rest + block).split(END_OF_TEXT)
        for text in texts:
            if begun or text.strip():
                yield text, True
            begun = False
        if len(rest) > len(END_OF_TEXT):  # the last characters may begin it
            yield rest[: -len(END_OF_TEXT)], False
            rest, begun = rest[-len(END_OF_TEXT) :], True
    if begun or rest.strip():
        yield rest, True


def _json_lines(path: Path, column: str) -> Iterator[dict]:
    """Yield the objects of a file, for an empty line one without a text."""
    for number, line in enumerate(read_blocks(path, lines=True), start=1):
        if len(line) == LONGEST_LINE:
            raise UserError(f"{path}: line {number} has {LONGEST_LINE:,} characters or more")
        try:
            row = json.loads(line) if line.strip() else {column: None}
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        yield row


if __name__ == "__main__":
    protect_streams()
    sys.exit(main(sys.argv[1:]))
