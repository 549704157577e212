"""Where tokens come from: the lecture's text, Python's own documentation, a text file, token files.

Everything that can be wrong with a user's data is refused here, in one sentence.
"""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch

from gpt import UserError
from gpt.data.batches import Data
from gpt.data.tasks.arithmetic import Task, is_task, open_task
from gpt.data.token_files import read_token_files
from gpt.data.tokenizers import for_text

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_BYTES = 1_115_394
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer
DOWNLOAD_LIMIT = 60.0  # seconds in all, for a server that answers byte by byte
TRAIN_FRACTION = 0.9  # the lecture's split: the first 90% is train, the rest validation


class DownloadFailed(UserError):
    """Tiny shakespeare is not on this machine and cannot be downloaded."""


def open_data(name: str, data_dir: str, tokenizer: str, say=print) -> Data | Task:
    """The data that `--data` names; `say` hears of a download or of a stand-in."""
    if is_task(name):
        return open_task(name)
    if name in ("auto", "shakespeare"):
        try:
            return _from_text("shakespeare", _shakespeare(Path(data_dir), say), tokenizer)
        except DownloadFailed as refusal:
            if name == "shakespeare":
                raise
            say(f"data: {refusal}; going on with python-docs, the text of Python's own help")
            name = "python-docs"
    if name == "python-docs":
        return _from_text(name, _python_docs(), tokenizer)
    path, prepared = Path(name), Path(data_dir) / name
    try:
        if path.is_dir():
            return Data(name, *read_token_files(path))
        if (prepared / "train.bin").is_file():
            return Data(name, *read_token_files(prepared))
        found = path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"--data {name}: {error.strerror}") from None
    if not found:
        raise UserError(
            f"--data {name}: no such file or folder; give a text file, a folder with train.bin "
            "and val.bin, shakespeare, python-docs, addition-3, calculator or dates"
        )
    return _from_text(name, read_text(path), tokenizer)


def read_text(path: Path) -> str:
    """A UTF-8 text file, or `UserError`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start} does not decode); convert it first"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _from_text(name: str, text: str, kind: str) -> Data:
    if len(text) < 2:
        raise UserError(f"{name} has {len(text)} characters, and training needs at least two")
    tokenizer = for_text(kind, text)
    tokens = torch.from_numpy(tokenizer.encode(text).astype(np.int32))
    split = int(TRAIN_FRACTION * len(tokens))
    return Data(name, tokens[:split], tokens[split:], tokenizer)


def _python_docs() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt-kernels"


def _shakespeare(data_dir: Path, say) -> str:
    names = ("tinyshakespeare.txt", "shakespeare.txt", "input.txt")
    folders = (data_dir, data_dir / "shakespeare", data_dir / "shakespeare_char", cache_dir())
    for path in (folder / name for folder in folders for name in names):
        with contextlib.suppress(OSError):  # a file that cannot be read is as good as none
            if path.stat().st_size == SHAKESPEARE_BYTES:
                content = path.read_bytes()
                if _is_shakespeare(content):
                    return content.decode("utf-8")
    content = _download(SHAKESPEARE_URL, SHAKESPEARE_BYTES)
    if not _is_shakespeare(content):
        raise DownloadFailed(
            "tiny shakespeare was downloaded, but its sha256 is not the expected one"
        )
    path = cache_dir() / names[0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(path)
        say(f"data: downloaded tiny shakespeare to {path}")
    except OSError as error:
        say(f"data: downloaded tiny shakespeare, not kept for next time ({error.strerror})")
    return content.decode("utf-8")


def _download(url: str, size: int) -> bytes:
    content, end = b"", time.monotonic() + DOWNLOAD_LIMIT
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
            # one byte more than `size`, so that a longer file fails its sha256
            while len(content) <= size and (block := response.read1(size + 1 - len(content))):
                content += block
                if time.monotonic() > end:
                    raise TimeoutError(f"it took longer than {DOWNLOAD_LIMIT:.0f} s")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DownloadFailed(f"tiny shakespeare could not be downloaded ({reason})") from None
    return content


def _is_shakespeare(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == SHAKESPEARE_SHA256
