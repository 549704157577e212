"""Texts: the split, the lecture's text and how it is had, what stands in for it."""

import contextlib
import hashlib
import http.server
import socket
import threading
import time

import pytest

from gpt import UserError
from gpt.data import corpus
from gpt.data.corpus import open_data, read_text

PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 9


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No cache but a temporary one, no proxy, and a text whose sha256 the tests know."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(corpus, "SHAKESPEARE_SHA256", hashlib.sha256(PLAY).hexdigest())
    monkeypatch.setattr(corpus, "SHAKESPEARE_BYTES", len(PLAY))
    monkeypatch.setattr(corpus, "SHAKESPEARE_URL", f"http://127.0.0.1:{closed_port()}/input.txt")
    monkeypatch.chdir(tmp_path)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(answer, monkeypatch):
    """A server on this machine; `answer(handler)` writes what it says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):  # the client may have gone
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


def refusing(*arguments):
    raise AssertionError("nothing was to be said")


# --- splits ---------------------------------------------------------------------------------------


def test_the_split_is_the_lecture_s(tmp_path):
    (tmp_path / "text").write_text("ab\n" * 371_798)  # as long as tiny shakespeare
    data = open_data("text", "data", "char")
    assert (len(data.train), len(data.val)) == (1_003_854, 111_540)
    assert data.train[:4].tolist() == [1, 2, 0, 1]
    assert data.name == "text"


def test_tokenizers_of_a_text(tmp_path):
    (tmp_path / "text").write_text("aé" * 20, encoding="utf-8")
    assert open_data("text", "data", "char").tokenizer.vocab_size == 2
    data = open_data("text", "data", "byte")
    assert len(data.train) + len(data.val) == 60
    assert data.tokenizer.vocab_size == 256


def test_python_s_documentation_is_on_every_machine():
    data = open_data("python-docs", "data", "char", refusing)
    assert data.name == "python-docs"
    assert len(data.train) > 300_000
    assert 'The "assert" statement' in data.tokenizer.decode(data.train[:40_000].tolist())


# --- texts that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "a"])
@pytest.mark.parametrize("tokenizer", ["char", "byte", "gpt2"])
def test_a_text_of_no_or_one_character_is_refused(tmp_path, text, tokenizer):
    (tmp_path / "text").write_text(text)
    with pytest.raises(UserError, match=f"text has {len(text)} characters, and training needs"):
        open_data("text", "data", tokenizer)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "text").write_bytes(b"abc\xff\xfe")
    with pytest.raises(UserError, match=r"text is not UTF-8 text \(byte 3 does not decode\)"):
        open_data("text", "data", "char")


@pytest.mark.parametrize("name", ["missing", "missing/text", "a" * 300, "a\0b", "text/below"])
def test_no_such_file_is_refused(tmp_path, name):
    (tmp_path / "text").write_text("abc")
    with pytest.raises(UserError, match="--data"):
        open_data(name, "data", "char")


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        read_text(tmp_path)


# --- the lecture's text ---------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["data", "data/shakespeare_char", "cache/gpt-kernels"])
def test_the_text_is_looked_for_before_it_is_downloaded(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "input.txt").write_bytes(PLAY)
    data = open_data("auto", "data", "char", refusing)
    assert data.name == "shakespeare"
    assert data.tokenizer.decode(data.train[:14].tolist()) == "First Citizen:"


def test_a_download_is_kept(tmp_path, monkeypatch):
    said = []
    with serving(whole, monkeypatch):
        data = open_data("shakespeare", "data", "char", said.append)
    assert len(data.train) + len(data.val) == len(PLAY)
    kept = tmp_path / "cache/gpt-kernels/tinyshakespeare.txt"
    assert kept.read_bytes() == PLAY
    assert said == [f"data: downloaded tiny shakespeare to {kept}"]
    assert list(kept.parent.iterdir()) == [kept]
    again = open_data("shakespeare", "data", "char", refusing)  # no server any more
    assert again.train.equal(data.train)


def test_a_cache_that_cannot_be_written_costs_a_line(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    said = []
    with serving(whole, monkeypatch):
        assert open_data("shakespeare", "data", "char", said.append).name == "shakespeare"
    assert len(said) == 1
    assert "not kept for next time" in said[0]


def wrong(handler):
    whole(handler, PLAY[:-1] + b"?")


def too_long(handler):
    whole(handler, PLAY + bytes(100 << 20))


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(PLAY)))
    handler.end_headers()
    handler.wfile.write(PLAY[:50])


def absent(handler):
    handler.send_error(404)


def silent(handler):
    time.sleep(1.0)


def byte_by_byte(handler):
    handler.send_response(200)
    handler.end_headers()
    for byte in PLAY:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.02)


def no_http(handler):
    handler.wfile.write(b"\x00\x01\x02\r\n\r\n")


@pytest.mark.parametrize(
    "answer", [wrong, too_long, cut_off, absent, silent, byte_by_byte, no_http]
)
def test_a_bad_download_is_refused_and_not_kept(tmp_path, monkeypatch, answer):
    monkeypatch.setattr(corpus, "DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(corpus, "DOWNLOAD_LIMIT", 0.3)
    started = time.monotonic()
    with serving(answer, monkeypatch), pytest.raises(UserError, match="tiny shakespeare"):
        open_data("shakespeare", "data", "char", refusing)
    assert time.monotonic() - started < 5.0
    assert not (tmp_path / "cache").exists()


def test_without_a_network_auto_goes_on_with_python_s_documentation():
    said = []
    data = open_data("auto", "data", "char", said.append)
    assert data.name == "python-docs"
    assert len(said) == 1
    assert "Connection refused" in said[0]
    assert "going on with python-docs" in said[0]
    with pytest.raises(UserError, match="could not be downloaded"):
        open_data("shakespeare", "data", "char", refusing)
