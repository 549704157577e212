"""Token files from text, jsonl and parquet files and from data sets on the hub."""

import json
import os
import signal
import sys

import numpy as np
import pytest

from gpt import UserError
from gpt.data import prepare
from gpt.data.corpus import open_data
from gpt.data.prepare import PrepareConfig
from gpt.data.tokenizers import GPT2Tokenizer, for_text
from tests.gpt.data.test_tokenizers import small_gpt2

DOCUMENTS = [f"document {number}\nof two lines" for number in range(40)]


def write_source(path, texts=DOCUMENTS):
    """A .jsonl file of the texts, or a .txt file with them between the ends of text."""
    lines = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts)
    path.write_text(lines if path.suffix == ".jsonl" else "<|endoftext|>".join(texts))
    return str(path)


def config(folder, *sources, **options):
    options = {"tokenizer": "byte", "out_dir": str(folder / "tokens"), **options}
    return PrepareConfig(sources, **options)


def splits(folder):
    """The text of both splits."""
    data = open_data(str(folder / "tokens"), "data", "char")
    return [data.tokenizer.decode(split.tolist()) for split in (data.train, data.val)]


SIZES = np.random.default_rng(0).pareto(1, 200).astype(int)
LONG_TAIL = [f"document {i} " + "long" * min(size, 50_000) for i, size in enumerate(SIZES)]
LIMITS = [(3, 30, [25, 25]), (3, 50, [25, 25]), (3, 99, [74, 25]), (3, 10, [8, 2]), (1, 0, [20, 5])]
FORMS = [("a.jsonl", "byte"), ("a.txt", "byte"), ("a.txt", "gpt2")]


@pytest.mark.parametrize(("name", "kind"), FORMS)
@pytest.mark.parametrize("fraction", [0.0005, 0.1, 0.6])
@pytest.mark.parametrize("texts", [DOCUMENTS, LONG_TAIL], ids=["equal", "long tail"])
def test_every_document_is_whole_in_one_split_in_order(
    tmp_path, monkeypatch, capsys, name, kind, fraction, texts
):
    monkeypatch.setattr(GPT2Tokenizer, "_encoding", small_gpt2()._encoding)
    end, after = ("\n\n", 2) if kind == "byte" else ("<|endoftext|>", 1)
    source = write_source(tmp_path / name, texts)
    prepare.prepare(config(tmp_path, source, val_fraction=fraction, tokenizer=kind))
    train, val = (split.split(end)[:-1] for split in splits(tmp_path))
    assert sorted(train + val) == sorted(texts)
    assert [text for text in texts if text in set(train)] == train
    assert [text for text in texts if text in set(val)] == val
    sizes = {text: len(for_text(kind, "").encode(text)) + after for text in texts}
    written, share = sum(map(sizes.get, val)), fraction * sum(sizes.values())
    assert share - max(sizes.values()) <= written <= share or val == [min(sizes, key=sizes.get)]
    assert f" {written:,} validation tokens; use" in capsys.readouterr().out
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert files == {name, "tokens/train.bin", "tokens/val.bin", "tokens/meta.json"}


def test_empty_documents_are_skipped_and_counted(tmp_path, capsys):
    lines, text = tmp_path / "a.jsonl", tmp_path / "a.txt"
    rows = ['{"text": "a"}', "", '{"text": null}', " ", '{"text": ""}', r'{"text": "b\ud800"}']
    rows += ['{"text": "c\u2028d\x85e\\u0000"}']
    lines.write_bytes(("\ufeff" + "\r\n".join(rows)).encode())
    text.write_bytes("\ufefff\r\n<|endoftext|>\n<|endoftext|>g<|endoftext|>\n".encode())
    prepare.prepare(config(tmp_path, str(lines), str(text)))
    assert splits(tmp_path) == ["b\ufffd\n\nc\u2028d\x85e\0\n\nf\n\n\ng\n\n", "a\n\n"]
    assert "validation tokens, 4 empty documents skipped; use" in capsys.readouterr().out


@pytest.mark.parametrize(("count", "limit", "sizes"), LIMITS)
def test_a_document_is_divided_if_it_is_alone_or_too_long(tmp_path, count, limit, sizes):
    texts = [*DOCUMENTS[:2], "long" * 99_999][:count]
    source = write_source(tmp_path / "mine.jsonl", texts)
    prepare.prepare(config(tmp_path, source, val_fraction=0.2, max_tokens=limit))
    assert [len(split) for split in splits(tmp_path)] == sizes
    assert all(split in "\n\n".join([*texts, ""]) for split in splits(tmp_path))


@pytest.mark.parametrize(
    ("source", "subset", "expected"),
    [
        ("openwebtext", "", ("Skylion007/openwebtext", None)),
        ("fineweb", "", ("HuggingFaceFW/fineweb", "sample-10BT")),
        ("somebody/texts", "small", ("somebody/texts", "small")),
    ],
)
def test_a_data_set_of_the_hub_is_streamed(tmp_path, monkeypatch, source, subset, expected):
    def load_dataset(path, name, split, streaming):
        path, _, commit = path.partition("@")
        assert ((path, name), split, streaming) == (expected, "train", True)
        assert len(commit) == (0 if subset else 40)
        return ({"text": text, "url": "x"} for text in DOCUMENTS)

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        prepare.prepare(config(tmp_path, source))
    monkeypatch.setattr(prepare, "load_dataset", load_dataset)
    prepare.prepare(config(tmp_path, source, subset=subset))
    assert DOCUMENTS[1] in splits(tmp_path)[0]


def test_parquet_is_read_by_hugging_face_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    path = tmp_path / "mine.parquet"
    datasets.Dataset.from_dict({"body": DOCUMENTS}).to_parquet(path)
    prepare.prepare(config(tmp_path, str(path), column="body"))
    train, val = splits(tmp_path)
    assert sorted((train + val).split("\n\n")) == sorted([*DOCUMENTS, ""])
    (tmp_path / "mine.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError):
        prepare.prepare(config(tmp_path, str(path), out_dir=str(tmp_path / "other")))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_nothing_behind(tmp_path, monkeypatch, capsys, name):
    source, number = write_source(tmp_path / "a.txt"), signal.Signals[name]
    monkeypatch.setattr(prepare, "tokenise", lambda *_: os.kill(os.getpid(), number))
    options = [source, "--tokenizer=byte", f"--out-dir={tmp_path / 'tokens'}"]
    assert prepare.main(options) == 128 + number
    assert capsys.readouterr().err == "\ngpt.data.prepare: stopped; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
