"""Where tokens come from: the lecture's text, Python's own documentation, a text file, token files.

Everything that can be wrong with a user's data is refused here, in one sentence.
"""

import hashlib
import http.client
import io
import json
import os
import pickle
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch

from gpt import Refused
from gpt.data import Data
from gpt.tokenizer import GPT2Tokenizer, Tokenizer, for_text, from_json

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_BYTES = 1_115_394
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer
TRAIN_FRACTION = 0.9  # the lecture's split: the first 90% is train, the rest validation

TOKEN_FILE_MAGIC = 20240520  # llm.c and modded-nanogpt: 256 int32 first
TOKEN_FILE_HEADER_BYTES = 256 * 4


def open_data(name: str, data_dir: str, tokenizer: str, say=print) -> Data:
    """The data that `--data` names; `say` hears of a download or of a stand-in."""
    if name == "auto":
        try:
            return _from_text("shakespeare", _shakespeare(Path(data_dir), say), tokenizer)
        except Refused as refusal:
            say(f"data: {refusal}; going on with python-docs, the text of Python's own help")
            return _from_text("python-docs", _python_docs(), tokenizer)
    if name == "shakespeare":
        return _from_text(name, _shakespeare(Path(data_dir), say), tokenizer)
    if name == "python-docs":
        return _from_text(name, _python_docs(), tokenizer)
    path = Path(name)
    if path.is_dir():
        return _from_token_files(path)
    if (Path(data_dir) / name / "train.bin").is_file():
        return _from_token_files(Path(data_dir) / name)
    if not path.is_file():
        raise Refused(
            f"--data {name}: no such file or folder; give a text file, a folder with train.bin "
            "and val.bin, shakespeare or python-docs"
        )
    return _from_text(name, read_text(path), tokenizer)


def read_text(path: Path) -> str:
    """A UTF-8 text file, or `Refused`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(
            f"{path} is not UTF-8 text (byte {error.start} does not decode); convert it first"
        ) from None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None


def _from_text(name: str, text: str, kind: str) -> Data:
    if len(text) < 2:
        raise Refused(f"{name} has {len(text)} characters, and training needs at least two")
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
        if path.is_file() and _sha256(path.read_bytes()) == SHAKESPEARE_SHA256:
            return path.read_text(encoding="utf-8")
    content = _download(SHAKESPEARE_URL, SHAKESPEARE_BYTES)
    if _sha256(content) != SHAKESPEARE_SHA256:
        raise Refused("tiny shakespeare was downloaded, but its sha256 is not the expected one")
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
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
            return response.read(size + 1)  # one more, so that a longer file fails its sha256
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise Refused(f"tiny shakespeare could not be downloaded ({reason})") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _from_token_files(folder: Path) -> Data:
    train, val = (_token_file(folder / f"{split}.bin") for split in ("train", "val"))
    return Data(str(folder), train, val, _token_files_tokenizer(folder))


def _token_file(path: Path) -> torch.Tensor:
    """uint16 tokens, little-endian, behind llm.c's header or none (nanoGPT): (N,), mapped."""
    if not path.is_file():
        raise Refused(f"{path} is missing; a data folder holds train.bin and val.bin")
    size = path.stat().st_size
    header = np.fromfile(path, dtype="<i4", count=min(3, size // 4))
    skip, count = 0, size // 2
    if len(header) == 3 and header[0] == TOKEN_FILE_MAGIC:
        if header[1] != 1:
            raise Refused(f"{path} has token-file version {header[1]}, and this reads version 1")
        skip, count = TOKEN_FILE_HEADER_BYTES, int(header[2])
    if size != skip + 2 * count or count < 2:
        raise Refused(f"{path} has {size} bytes, which is no whole number of uint16 tokens")
    tokens = np.memmap(path, dtype="<u2", mode="c", offset=skip, shape=(count,))
    return torch.from_numpy(tokens)


def _token_files_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer beside the token files: meta.json, nanoGPT's meta.pkl, or GPT-2's."""
    if (folder / "meta.json").is_file():
        return from_json(_parse(folder / "meta.json", json.loads))
    if (folder / "meta.pkl").is_file():
        meta = _parse(folder / "meta.pkl", lambda content: _PlainUnpickler(content).load())
        characters = meta.get("itos") if isinstance(meta, dict) else None
        if not isinstance(characters, dict) or sorted(characters) != list(range(len(characters))):
            raise Refused(f"{folder / 'meta.pkl'} has no character table as nanoGPT writes it")
        text = "".join(str(characters[token]) for token in range(len(characters)))
        return from_json({"kind": "char", "characters": text})
    return GPT2Tokenizer()


def _parse(path: Path, parse):
    try:
        return parse(path.read_bytes())
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise Refused(f"{path} cannot be read: {error}") from None


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, texts and numbers; any name of code is refused, so none can run."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain data is read")
