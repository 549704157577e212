"""Token files from text, jsonl and parquet files and from data sets of the hub."""

import json
import random
import string
import sys

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from gpt import UserError
from gpt.data import prepare
from gpt.data.corpus import open_data
from gpt.data.prepare import PrepareConfig
from gpt.data.tokenizers import GPT2Tokenizer
from tests.runs import run

DOCUMENTS = [f"document {number}\nof two lines" for number in range(40)]


def write_json_lines(path, texts=DOCUMENTS, column="text"):
    path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts))
    return str(path)


def config(folder, *sources, **options):
    options = {"tokenizer": "byte", "out_dir": str(folder / "tokens"), **options}
    return PrepareConfig(sources, **options)


def splits(folder):
    """The text of both splits, read as train.py reads them."""
    data = open_data(str(folder / "tokens"), "data", "char")
    return [data.tokenizer.decode(split.tolist()) for split in (data.train, data.val)]


def small_gpt2():
    """GPT-2's pattern with few merges; its own table would need the network."""
    pairs = [b"th", b"the", b" t", b" the", b"\n\n", b"  ", b"of", b" of"]
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = GPT2Tokenizer()
    tokenizer._encoding = tiktoken.Encoding(
        name="small",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks | {pair: 256 + i for i, pair in enumerate(pairs)},
        special_tokens={},
    )
    return tokenizer


def test_every_document_is_in_one_split_and_in_order(tmp_path, capsys):
    source = write_json_lines(tmp_path / "mine.jsonl")
    prepare.prepare(config(tmp_path, source, val_fraction=0.1))
    train, val = (split.split("\n\n")[:-1] for split in splits(tmp_path))
    assert sorted(train + val) == sorted(DOCUMENTS)
    assert [text for text in DOCUMENTS if text in train] == train
    assert [text for text in DOCUMENTS if text in val] == val
    assert 3 <= len(val) <= 5  # a tenth of forty
    sizes = [len("".join(f"{text}\n\n" for text in split)) for split in (train, val)]
    assert "{:,} tokens to train on and {:,} to".format(*sizes) in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "tokens").iterdir()} == {
        *("train.bin", "val.bin", "meta.json")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"mine.jsonl", "tokens"}


def test_a_document_ends_with_gpt2_s_end_of_text():
    pieces = [("the end", True), (" of", False), (" the", True)]
    tokens = list(prepare.tokenise(pieces, small_gpt2()))
    assert [piece.dtype for piece in tokens] == [np.dtype("<u2")] * 3
    assert tokens[0].tolist()[-1] == tokens[2].tolist()[-1] == 50256
    assert tokens[1].tolist() == [256 + 7]


@given(st.text("the of\n\t.1é世_" + "\x1c\u00a0", max_size=60), st.integers(1, 12))
def test_a_text_file_in_pieces_has_the_tokens_of_the_whole(tmp_path_factory, text, piece):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(text, newline="")
    tokenizer = small_gpt2()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "PIECE", piece)
        pieces = list(prepare._text(path))
    assert "".join(text for text, _ in pieces) == text
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]
    tokens = np.concatenate([tokenizer.encode(text) for text, _ in pieces])
    assert tokens.tolist() == tokenizer.encode(text).tolist()


def test_memory_does_not_grow_with_a_text_file(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 100)
    (tmp_path / "long.txt").write_text("a few words\n\n" * 1000)
    sizes = [len(text) for text, _ in prepare._text(tmp_path / "long.txt")]
    assert len(sizes) > 100
    assert max(sizes) < 130


def test_train_py_trains_on_what_was_prepared(tmp_path, monkeypatch):
    letters = random.Random(1).choices(string.ascii_lowercase + " \n", k=3000)
    (tmp_path / "a.txt").write_text("".join(letters))
    monkeypatch.setattr(prepare, "PIECE", 200)
    sources = [str(tmp_path / "a.txt"), write_json_lines(tmp_path / "b.jsonl")]
    prepare.prepare(config(tmp_path, *sources, val_fraction=0.2))
    assert run(tmp_path / "out", f"--data={tmp_path / 'tokens'}") == 0


def test_it_stops_at_so_many_tokens(tmp_path):
    source = write_json_lines(tmp_path / "mine.jsonl")
    prepare.prepare(config(tmp_path, source, max_tokens=100))
    assert 100 <= sum(map(len, splits(tmp_path))) < 100 + max(map(len, DOCUMENTS)) + 2


@pytest.mark.parametrize(
    ("source", "subset", "expected"),
    [
        ("openwebtext", "", ("Skylion007/openwebtext", None)),
        ("fineweb", "", ("HuggingFaceFW/fineweb", "sample-10BT")),
        ("fineweb", "sample-100BT", ("HuggingFaceFW/fineweb", "sample-100BT")),
        ("somebody/texts", "", ("somebody/texts", None)),
    ],
)
def test_a_data_set_of_the_hub_is_read_as_a_stream(tmp_path, source, subset, expected):
    asked = []

    def load_dataset(path, name, split, streaming):
        asked.append((path, name))
        assert split == "train"
        assert streaming
        return ({"text": text, "url": "x"} for text in DOCUMENTS)

    prepare.prepare(config(tmp_path, source, subset=subset), load_dataset)
    assert asked == [expected]
    assert DOCUMENTS[0] in splits(tmp_path)[0]


def test_parquet_by_hugging_face_s_own_library(tmp_path, monkeypatch):
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


def test_without_hugging_face_s_library_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        prepare.prepare(config(tmp_path, "openwebtext"))


def bad(folder, name, content):
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]', "line 2 is not a JSON object"),
        ("a.jsonl", b'{"body": "x", "id": 1}', "document 1 has no text as 'text'; it has body, id"),
        ("a.jsonl", b'{"text": null}', "document 1 has no text"),
        ("a.jsonl", b'{"text": "alone"}', "one document, and two are the least"),
        ("a.jsonl", b"", "one document, and two are the least"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_left(tmp_path, capsys, name, content, sentence):
    source = bad(tmp_path, name, content)
    assert prepare.main([source, "--tokenizer=byte", f"--out-dir={tmp_path / 'tokens'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gpt.data.prepare: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name what to prepare"),
        (["missing.txt"], "missing.txt is no file"),
        (["a.txt", "--val-fraction=1"], "--val-fraction must be"),
        (["a.txt", "--tokenizer=char"], "--tokenizer"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    options = [] if "--tokenizer=char" in arguments else ["--tokenizer=byte"]
    assert prepare.main([*arguments, *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    source = write_json_lines(tmp_path / "mine.jsonl")
    arguments = [source, "--tokenizer=byte", f"--out-dir={tmp_path / 'tokens'}"]
    assert prepare.main(arguments) == 0
    before = (tmp_path / "tokens" / "train.bin").stat()
    assert prepare.main(arguments) == 2
    assert "is there already; remove it or give another --out-dir" in capsys.readouterr().err
    assert (tmp_path / "tokens" / "train.bin").stat() == before
