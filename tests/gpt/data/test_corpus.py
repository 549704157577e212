"""Text: the split, the download of tiny shakespeare, and the fallback without a network."""

import contextlib
import hashlib
import http.server
import threading
import time

import pytest

from gpt import UserError
from gpt.data import corpus
from gpt.data.corpus import open_data

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


@contextlib.contextmanager
def serving(answer, monkeypatch):
    """A local server; `answer(handler)` writes its response."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):  # the client may have disconnected
                answer(self)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/input.txt"
        monkeypatch.setattr(corpus, "SHAKESPEARE_URL", url)
        yield
        server.shutdown()


def whole(handler, content=PLAY):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content)


def test_the_split_is_that_of_the_lecture(tmp_path):
    (tmp_path / "text").write_text("ab\n" * 371_798)  # as long as tiny shakespeare
    data = open_data("text", "data", "char")
    assert (len(data.train), len(data.val)) == (1_003_854, 111_540)
    assert data.train[:4].tolist() == [1, 2, 0, 1]
    assert data.name == "text"


@pytest.mark.parametrize("name", ["missing", "missing/text", "a" * 300, "a\0b", "text/below"])
def test_data_must_exist(tmp_path, name):
    (tmp_path / "text").write_text("abc")
    with pytest.raises(UserError, match="--data"):
        open_data(name, "data", "char")


@pytest.mark.parametrize("folder", ["data", "data/shakespeare_char", "cache/gpt-kernels"])
def test_a_local_copy_is_used_before_a_download(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "input.txt").write_bytes(PLAY)
    data = open_data("auto", "data", "char", pytest.fail)
    assert data.name == "shakespeare"
    assert data.tokenizer.decode(data.train[:14].tolist()) == "First Citizen:"


def test_a_download_is_saved_in_the_cache(tmp_path, monkeypatch):
    said = []
    with serving(whole, monkeypatch):
        data = open_data("shakespeare", "data", "char", said.append)
    assert len(data.train) + len(data.val) == len(PLAY)
    kept = tmp_path / "cache/gpt-kernels/tinyshakespeare.txt"
    assert kept.read_bytes() == PLAY
    assert said == [f"data: downloaded tiny shakespeare to {kept}"]
    assert list(kept.parent.iterdir()) == [kept]
    again = open_data("shakespeare", "data", "char", pytest.fail)  # without the server
    assert again.train.equal(data.train)


def test_a_cache_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    said = []
    with serving(whole, monkeypatch):
        assert open_data("shakespeare", "data", "char", said.append).name == "shakespeare"
    assert len(said) == 1
    assert "could not save it" in said[0]


def byte_by_byte(handler):
    handler.send_response(200)
    handler.end_headers()
    for byte in PLAY:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.02)


BAD = {
    "wrong": lambda handler: whole(handler, PLAY[:-1] + b"?"),
    "too long": lambda handler: whole(handler, PLAY + bytes(100 << 20)),
    "absent": lambda handler: handler.send_error(404),
    "silent": lambda handler: time.sleep(1.0),
    "byte by byte": byte_by_byte,
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_a_bad_download_is_refused_and_not_saved(tmp_path, monkeypatch, answer):
    monkeypatch.setattr(corpus, "DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(corpus, "DOWNLOAD_LIMIT", 0.3)
    with serving(answer, monkeypatch), pytest.raises(UserError, match="tiny shakespeare"):
        open_data("shakespeare", "data", "char", pytest.fail)
    assert not (tmp_path / "cache").exists()


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
