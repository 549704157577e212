"""The data that --data names: tiny shakespeare, Python's help pages, a file, a folder, a task."""

import contextlib
import hashlib
import http.client
import io
import os
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import UserError, downloads
from ..files import open_file, write_whole
from .arithmetic import Addition, is_task
from .batches import TokenDataset
from .dataset import Dataset
from .token_files import read_token_files
from .tokenizers import for_text, whole_tokens

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_BYTES = 1_115_394
SHAKESPEARE_NAMES = ("tinyshakespeare.txt", "shakespeare.txt", "input.txt")
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer
NO_CACHE = "nothing is cached without a home folder: set HOME or XDG_CACHE_HOME"
BLOCK = 1 << 16  # characters of a text file that are read at once
LARGEST_TEXT = 1 << 32  # bytes that are held in memory; gpt.data.prepare streams larger files
LONGEST_LINE = 1 << 26  # characters; a longer one is divided
BUILT_IN = ("auto", "python-docs")  # never the name of a folder
SHAKESPEARE = ("shakespeare", "shakespeare_char")  # the same text unless nanoGPT's folder is there
KNOWN = {  # what gpt.data.prepare knows by name -> data set on the hub and its commit, subset
    "openwebtext": ("Skylion007/openwebtext@79d93d786212f7344586290adb811d4ae6a1762c", None),
    "fineweb": ("HuggingFaceFW/fineweb@9bb295ddab0e05d785b879661af7260fed5140fc", "sample-10BT"),
}
TRAIN_FRACTION = 0.9  # the lecture's split: the first 90% for training, the rest for validation


def open_data(
    name: str, data_dir: str, tokenizer: str, say: Callable[[str], object] = print
) -> Dataset:
    """The data that --data names, on the CPU; UserError if there is none or it is damaged.

    data_dir: searched for downloaded and prepared data. tokenizer: of a text. say: receives one
    line if the text is downloaded or replaced by python-docs.
    """
    if is_task(name):
        return Addition(name)
    path, prepared = Path(name), Path(data_dir) / name
    try:
        for folder in (path, path.parent if path.suffix == ".bin" else prepared):
            if name not in BUILT_IN and (folder / "train.bin").is_file():
                train, val, tokens, mapped = read_token_files(folder)
                return TokenDataset(name, train, val, tokens, files=mapped)
        if name in (*BUILT_IN, *SHAKESPEARE):
            name, text = _built_in(name, Path(data_dir), say)
            return _from_text(name, lambda: [text], tokenizer)
        if path.is_dir():
            read_token_files(path)  # raises UserError for lack of train.bin
        if path.is_file():
            return _from_text(name, lambda: read_blocks(path, LARGEST_TEXT), tokenizer)
    except OSError as error:  # the name is too long, or a folder is not accessible
        raise UserError(f"--data {name}: {error.strerror}") from None
    advice = f"run python -m gpt.data.prepare {name} --out-dir {prepared}"
    if name not in KNOWN:
        names = "shakespeare, python-docs or addition-3"
        advice = f"give a text file, a folder with train.bin and val.bin, {names}"
    raise UserError(f"--data {name}: no such file or folder; {advice}")


def _built_in(name: str, data_dir: Path, say: Callable[[str], object]) -> tuple[str, str]:
    """The name and text of tiny shakespeare, or of Python's help pages if auto cannot get it."""
    if name != "python-docs":
        try:
            return "shakespeare", _shakespeare(data_dir, say)
        except UserError as refusal:
            if name != "auto":
                raise UserError(f"{refusal}; give --data python-docs or a text file") from None
            say(f"data: {refusal}; using python-docs, the text of Python's help pages, instead")
    from pydoc_data.topics import topics

    return "python-docs", "\n".join(topics[key] for key in sorted(topics))


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; UserError if it cannot be read."""
    return "".join(read_blocks(path, LARGEST_TEXT))


def read_blocks(path: Path, limit: int = sys.maxsize, lines: bool = False) -> Iterator[str]:
    """Yield a UTF-8 file of `limit` bytes in blocks or lines, without its byte order mark."""
    try:
        with (
            open_file(path, limit=limit) as content,
            io.TextIOWrapper(content, "utf-8-sig") as file,
        ):
            read = partial(file.readline, LONGEST_LINE) if lines else partial(file.read, BLOCK)
            try:
                yield from iter(read, "")
            except UnicodeDecodeError as error:
                place = content.tell() - len(error.object) + error.start
                raise UserError(f"{path} is not UTF-8 at byte {place}; convert it first") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _from_text(name: str, blocks: Callable[[], Iterable[str]], kind: str) -> TokenDataset:
    """The splits of a text, whose `blocks` are read twice and never held together."""
    tokenizer = for_text(kind, blocks())
    size = tokenizer.vocab_size
    dtype = np.dtype("uint8" if size <= 1 << 8 else "uint16" if size <= 1 << 16 else "int32")
    content = bytearray()  # grows in place
    for text, _ in whole_tokens(tokenizer, ((block, False) for block in blocks())):
        content += tokenizer.encode(text).astype(dtype).data
    tokens = torch.from_numpy(np.frombuffer(content, dtype))
    if len(tokens) < 2:
        raise UserError(f"{name} has {len(tokens)} tokens; training needs at least two")
    split = int(TRAIN_FRACTION * len(tokens))
    return TokenDataset(name, tokens[:split], tokens[split:], tokenizer)


def cache_dir() -> Path | None:
    """The folder for downloads and for what is measured once per machine, if there is a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt-kernels"
    except RuntimeError:  # no HOME, and a user without a name, as in a container
        return None


def _shakespeare(data_dir: Path, say: Callable[[str], object]) -> str:
    """The text from data_dir or the cache, or downloaded into the cache."""
    cache = cache_dir()
    folders = (data_dir, data_dir / "shakespeare", data_dir / "shakespeare_char", cache or data_dir)
    for path in (folder / name for folder in folders for name in SHAKESPEARE_NAMES):
        with contextlib.suppress(OSError):  # an unreadable file counts as missing
            if path.stat().st_size == SHAKESPEARE_BYTES:
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == SHAKESPEARE_SHA256:
                    return content.decode("utf-8")
    content = _download()
    if cache is None:
        say(f"data: downloaded tiny shakespeare; {NO_CACHE}")
        return content.decode("utf-8")
    path = cache / SHAKESPEARE_NAMES[0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        say(f"data: downloaded tiny shakespeare to {path}")
    except OSError as error:
        say(f"data: downloaded tiny shakespeare, but could not save it ({error.strerror})")
    return content.decode("utf-8")


def _download() -> bytes:
    """Tiny shakespeare from its repository; raises UserError."""
    if downloads.is_offline():
        raise UserError("tiny shakespeare is not cached, and nothing is downloaded offline")
    try:
        content = downloads.within(downloads.LIMIT, _receive)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"tiny shakespeare could not be downloaded ({reason})") from None
    if hashlib.sha256(content).hexdigest() != SHAKESPEARE_SHA256:
        raise UserError("tiny shakespeare was downloaded, but its sha256 is wrong")
    return content


def _receive() -> bytes:
    with urllib.request.urlopen(SHAKESPEARE_URL, timeout=DOWNLOAD_TIMEOUT) as response:
        return response.read(SHAKESPEARE_BYTES + 1)  # which changes the sha256 of a longer file
