"""Token files from text, jsonl and parquet files and from data sets on the hub."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import UserError
from gpt.data import prepare
from gpt.data.corpus import open_data
from gpt.data.prepare import PrepareConfig
from tests.gpt.data.test_tokenizers import small_gpt2

DOCUMENTS = [f"document {number}\nof two lines" for number in range(40)]


def write_json_lines(path, texts=DOCUMENTS, column="text"):
    path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts))
    return str(path)


def config(folder, *sources, **options):
    options = {"tokenizer": "byte", "out_dir": str(folder / "tokens"), **options}
    return PrepareConfig(sources, **options)


def splits(folder):
    """The text of both splits."""
    data = open_data(str(folder / "tokens"), "data", "char")
    return [data.tokenizer.decode(split.tolist()) for split in (data.train, data.val)]


def test_every_document_is_in_one_split_in_order(tmp_path, capsys):
    source = write_json_lines(tmp_path / "mine.jsonl")
    prepare.prepare(config(tmp_path, source, val_fraction=0.1))
    train, val = (split.split("\n\n")[:-1] for split in splits(tmp_path))
    assert sorted(train + val) == sorted(DOCUMENTS)
    assert [text for text in DOCUMENTS if text in train] == train
    assert [text for text in DOCUMENTS if text in val] == val
    assert 3 <= len(val) <= 5  # a tenth of forty
    sizes = [len("".join(f"{text}\n\n" for text in split)) for split in (train, val)]
    assert "{:,} training tokens and {:,} val".format(*sizes) in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "tokens").iterdir()}
    assert written == {"train.bin", "val.bin", "meta.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"mine.jsonl", "tokens"}


def test_a_document_ends_with_end_of_text():
    pieces = [("the end", True), (" of", False), (" the", True)]
    tokens = list(prepare.tokenise(iter(pieces), small_gpt2()))
    assert [piece.dtype for piece in tokens] == [np.dtype("<u2")] * 3
    assert tokens[0].tolist()[-1] == tokens[2].tolist()[-1] == 50256
    assert tokens[1].tolist() == [256 + 7]


@given(st.text("the of\n\t.1é世_" + "\x1c\u00a0", max_size=60), st.integers(1, 12))
def test_pieces_of_a_text_file_have_the_tokens_of_the_whole(tmp_path_factory, text, piece):
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


def test_max_tokens_stops_early(tmp_path):
    source = write_json_lines(tmp_path / "mine.jsonl")
    prepare.prepare(config(tmp_path, source, max_tokens=100))
    assert 100 <= sum(map(len, splits(tmp_path))) < 100 + max(map(len, DOCUMENTS)) + 2


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
        assert ((path, name), split, streaming) == (expected, "train", True)
        return ({"text": text, "url": "x"} for text in DOCUMENTS)

    monkeypatch.setattr(prepare, "load_dataset", load_dataset)
    prepare.prepare(config(tmp_path, source, subset=subset))
    assert DOCUMENTS[0] in splits(tmp_path)[0]


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


def test_a_missing_datasets_library_raises_user_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        prepare.prepare(config(tmp_path, "openwebtext"))


def test_an_existing_folder_is_never_overwritten(tmp_path, capsys):
    source = write_json_lines(tmp_path / "mine.jsonl")
    arguments = [source, "--tokenizer=byte", f"--out-dir={tmp_path / 'tokens'}"]
    assert prepare.main(arguments) == 0
    before = (tmp_path / "tokens" / "train.bin").stat()
    assert prepare.main(arguments) == 2
    assert "already exists; remove it or choose another --out-dir" in capsys.readouterr().err
    assert (tmp_path / "tokens" / "train.bin").stat() == before
