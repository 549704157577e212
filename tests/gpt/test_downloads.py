"""Downloads from servers that do not answer, data sets that stall, and --offline."""

import contextlib
import hashlib
import os
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from gpt import UserError, downloads
from gpt.config.cli import parse_run
from gpt.data import corpus, prepare, tokenizers

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

DOWNLOADS = {
    "tiny shakespeare": lambda: corpus.open_data("shakespeare", "data", "char"),
    "GPT-2's tokenizer": lambda: tokenizers.GPT2Tokenizer().encode(""),
    "the data set someone/texts": lambda: next(prepare.load_dataset("someone/texts")),
}


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "TIKTOKEN_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in (downloads.OFFLINE, "WANDB_MODE", "no_proxy"):  # what --offline sets is undone
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(downloads, "LIMIT", 0.2)


def answer(server, drip):
    """Send headers, and then a byte every now and then or nothing."""
    client, _ = server.accept()
    with client, contextlib.suppress(OSError):
        client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n")
        for _ in range(30):
            client.sendall(b"a" * drip)
            time.sleep(0.05)


@pytest.fixture(params=["no answer of DNS", "SYN dropped", "silent", "headers", "drip"])
def hole(request, monkeypatch):
    """The URL of a server that does not answer, or not to the end."""
    if request.param == "no answer of DNS":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.5) or [])
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as server,
        contextlib.ExitStack() as held,
    ):
        if request.param in ("headers", "drip"):
            drip = (request.param == "drip",)
            threading.Thread(target=answer, args=(server, *drip), daemon=True).start()
        for _ in range(4 if request.param == "SYN dropped" else 0):  # to fill the backlog
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("what", DOWNLOADS)
def test_a_download_ends_whatever_the_server_does(hole, what, monkeypatch):
    monkeypatch.setenv("https_proxy", hole)  # which tiktoken uses
    monkeypatch.setattr(corpus, "SHAKESPEARE_URL", hole)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hole)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    began = time.monotonic()
    with pytest.raises(UserError, match=f"{what}.*(longer than|TimeoutError)"):
        DOWNLOADS[what]()
    assert time.monotonic() - began < 1.2


@pytest.mark.parametrize("what", DOWNLOADS)
def test_offline_nothing_is_downloaded(what, monkeypatch):
    def load_dataset(path, revision):
        raise ConnectionError("it is not in the cache")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a connection"))
    assert parse_run(["--offline"], "quickstart").offline
    with pytest.raises(UserError, match=f"{what}.*(offline|it is not in the cache)"):
        DOWNLOADS[what]()


@pytest.mark.parametrize("trouble", ["", "missing", "damaged", "disabled"])
def test_offline_tiktoken_needs_whole_tables_in_its_cache(trouble, tmp_path, monkeypatch):
    sha256 = hashlib.sha256(b"a table").hexdigest()
    monkeypatch.setattr(tokenizers, "TABLES", dict.fromkeys(("vocab.bpe", "encoder.json"), sha256))
    for name in (
        "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    ):
        (tmp_path / name).write_bytes(b"a table")
    if trouble in ("missing", "damaged"):
        (tmp_path / name).unlink() if trouble == "missing" else (tmp_path / name).write_bytes(b"")
    if trouble == "disabled":
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert tokenizers.is_cached() == (not trouble)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("stall", "it took longer than"), ("fail", "a broken row"), ("end", ""), ("endless", "")],
)
def test_rows_arrive_in_time_or_the_reason_is_given(trouble, message, monkeypatch, capsys):
    read = []

    def load_dataset(path, revision, **options):
        for number in range(10**9 if trouble == "endless" else 100):
            read.append(number)
            yield {"text": f"text {number}"}
        time.sleep(trouble == "stall")
        if trouble == "fail":
            raise Exception("a broken row\nand its history")  # as of pyarrow or httpx

    answer = SimpleNamespace(sha="0123abc")
    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda self, name, revision: answer)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(prepare, "STALLED", 0.2)
    options = ["--tokenizer=byte", "--out-dir=tokens", "--max-tokens=9000"]
    assert prepare.main(["someone/texts@v1", *options]) == (2 if message else 0)
    out, error = capsys.readouterr()
    assert "reading someone/texts@0123abc\n" in out
    assert message in error
    assert os.path.exists("tokens") == (not message)
    assert len(read) < 9000 / 8 + 20 * downloads.AT_ONCE  # the rest is not read
