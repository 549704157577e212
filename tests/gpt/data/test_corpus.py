"""Text: the split, the download of tiny shakespeare, and the fallback without a network."""

import hashlib
import io
import os
import tracemalloc
import urllib.error
import urllib.request
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from gpt import UserError
from gpt.data import corpus
from gpt.data.corpus import LARGEST_TEXT, open_data, read_text
from gpt.data.token_files import read_meta
from gpt.data.tokenizers import GPT2Tokenizer
from gpt.files import read_json
from tests.gpt.data.test_tokenizers import small_gpt2

PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 9


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A temporary cache, no proxy, and a short text in place of tiny shakespeare."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(corpus, "SHAKESPEARE_SHA256", hashlib.sha256(PLAY).hexdigest())
    monkeypatch.setattr(corpus, "SHAKESPEARE_BYTES", len(PLAY))
    monkeypatch.setattr(corpus, "SHAKESPEARE_URL", "http://127.0.0.1:9/")  # nothing listens there
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("kind", "dtype", "text"),
    [
        ("char", torch.uint8, "To be, or not to be\n" * 50_000 + "\U0001f600"),
        ("char", torch.uint16, "".join(map(chr, range(0x4E00, 0x8000))) * 20),
        ("char", torch.int32, "".join(map(chr, range(0x10000, 0x20002)))),
        ("byte", torch.uint8, "a\0b\x85ü\u2028" * 90_000),
        ("gpt2", torch.uint16, "the end of the world, of the\n\n others.\n" * 9_000),
    ],
)
def test_a_text_has_the_right_tokens_in_little_memory(tmp_path, monkeypatch, kind, dtype, text):
    monkeypatch.setattr(GPT2Tokenizer, "_encoding", small_gpt2()._encoding)
    (tmp_path / "text").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    tracemalloc.start()
    data = open_data("text", "data", kind)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tables = 200 * len(set(text))  # a Python object of each character, and its numbers
    assert peak < 3 * len(text.encode()) + tables + 2_000_000  # and blocks
    assert data.train.dtype == data.val.dtype == dtype
    tokens = np.concatenate([data.train.numpy(), data.val.numpy()])
    expected = {
        "char": np.unique([ord(each) for each in text], return_inverse=True)[1],
        "byte": np.frombuffer(text.encode(), np.uint8),
        "gpt2": small_gpt2().encode(text),
    }
    assert np.array_equal(tokens, expected[kind])
    assert len(data.train) == int(0.9 * len(tokens))
    assert data.name == "text"


@pytest.mark.parametrize("folder", ["data", "data/shakespeare_char", "cache/gpt-kernels"])
def test_a_local_copy_is_used_before_a_download_and_a_prepared_one_first(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "input.txt").write_bytes(PLAY)
    for name in ("auto", "shakespeare", "shakespeare_char"):
        data = open_data(name, "data", "char", pytest.fail)
        assert data.name == "shakespeare"
        assert data.tokenizer.decode(data.train[:14].tolist()) == "First Citizen:"
    prepared = tmp_path / "data/shakespeare_char"
    prepared.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        np.array([5, 50256, 3], "<u2").tofile(prepared / f"{split}.bin")
    assert open_data("shakespeare_char", "data", "char").train.tolist() == [5, 50256, 3]


def test_a_download_is_saved_in_the_cache_if_it_can_be_written(tmp_path, monkeypatch):
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(PLAY))
        data = open_data("shakespeare", "data", "char", said.append)
    assert len(data.train) + len(data.val) == len(PLAY)
    kept = tmp_path / "cache/gpt-kernels/tinyshakespeare.txt"
    assert kept.read_bytes() == PLAY
    assert said == [f"data: downloaded tiny shakespeare to {kept}"]
    assert list(kept.parent.iterdir()) == [kept]
    again = open_data("shakespeare", "data", "char", pytest.fail)  # without the server
    assert again.train.equal(data.train)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file where the folder should be
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(PLAY))
    assert open_data("shakespeare", "data", "char", said.append).train.equal(data.train)
    assert [line for line in said if "could not save it" in line] == said[1:2]
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 54_321)  # who is not in passwd
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(PLAY))
    assert open_data("shakespeare", "data", "char", said.append).train.equal(data.train)
    assert [line for line in said if "nothing is cached without a home" in line] == said[2:]


BAD = {
    "wrong": [io.BytesIO(PLAY[:-1] + b"?")],
    "too long": [io.BytesIO(PLAY + bytes(100))],
    "absent": urllib.error.HTTPError("url", 404, "Not Found", {}, None),
    "silent": TimeoutError("timed out"),
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_a_bad_download_is_refused_and_not_saved(tmp_path, monkeypatch, answer):
    server = Mock(side_effect=answer)
    monkeypatch.setattr(urllib.request, "urlopen", server)
    with pytest.raises(UserError, match="tiny shakespeare"):
        open_data("shakespeare", "data", "char", pytest.fail)
    assert not (tmp_path / "cache").exists()
    server.assert_called_once_with(corpus.SHAKESPEARE_URL, timeout=corpus.DOWNLOAD_TIMEOUT)


def test_auto_uses_python_docs_without_a_network():
    said = []
    data = open_data("auto", "data", "char", said.append)
    assert data.name == "python-docs"
    assert len(data.train) > 300_000
    assert 'The "assert" statement' in data.tokenizer.decode(data.train[:40_000].tolist())
    (message,) = said
    assert "Connection refused" in message
    assert "using python-docs" in message
    assert open_data("python-docs", "data", "char", pytest.fail).train.equal(data.train)
    with pytest.raises(UserError, match="could not be downloaded"):
        open_data("shakespeare", "data", "char", pytest.fail)


@pytest.mark.parametrize("kind", ["pipe", "device", "too large"])
def test_only_regular_files_of_limited_size_are_read(tmp_path, kind):
    path = tmp_path / "meta.pkl"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, LARGEST_TEXT + 1)
    for read, name in ((read_text, path), (read_json, path), (read_meta, tmp_path)):
        with pytest.raises(UserError, match=r"meta.pkl cannot be read: .*not a regular file of"):
            read(name)
