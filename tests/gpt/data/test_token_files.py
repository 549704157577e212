"""Token files of nanoGPT's and llm.c's form; damaged ones; pickles that would run code."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import UserError
from gpt.data.corpus import open_data
from gpt.data.plain_pickle import read_plain_pickle
from gpt.data.tokenizers import GPT2Tokenizer

CHARACTERS = "\n abc"
META = {  # as nanoGPT's prepare.py writes it
    "vocab_size": len(CHARACTERS),
    "itos": dict(enumerate(CHARACTERS)),
    "stoi": {character: token for token, character in enumerate(CHARACTERS)},
}
TOKENS = [2, 3, 4, 1, 0] * 4


def write(folder, train=TOKENS, val=TOKENS, meta=None):
    for name, tokens in (("train.bin", train), ("val.bin", val)):
        content = tokens if isinstance(tokens, bytes) else np.array(tokens, "<u2").tobytes()
        (folder / name).write_bytes(content)
    (folder / "meta.pkl").write_bytes(pickle.dumps(META) if meta is None else meta)
    return str(folder)


def llm_c(tokens, magic=20240520, version=1, count=None):
    count = len(tokens) if count is None else count
    header = struct.pack("<iii", magic, version, count).ljust(1024, b"\0")
    return header + np.array(tokens, "<u2").tobytes()


@pytest.mark.parametrize("form", [bytes, llm_c])
def test_tokens_are_read_with_and_without_a_header(tmp_path, form):
    train = llm_c(TOKENS) if form is llm_c else TOKENS
    data = open_data(write(tmp_path, train, TOKENS[:7]), "data", "char")
    assert data.train.tolist() == TOKENS
    assert data.val.tolist() == TOKENS[:7]
    assert data.tokenizer.decode(data.train[:5].tolist()) == "abc \n"


def test_a_prepared_folder_is_found_by_its_name(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine")
    data = open_data("mine", str(tmp_path), "char")
    assert data.name == "mine"
    assert data.train.tolist() == TOKENS


def test_the_file_is_mapped_and_never_written(tmp_path):
    data = open_data(write(tmp_path), "data", "char")
    data.train.zero_()
    assert open_data(str(tmp_path), "data", "char").train.tolist() == TOKENS


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_nanogpt_s_meta_is_read_in_every_protocol(tmp_path, protocol):
    write(tmp_path, meta=pickle.dumps(META, protocol))
    assert open_data(str(tmp_path), "data", "char").tokenizer.characters == CHARACTERS


def test_meta_json_comes_first_and_gpt2_last(tmp_path):
    write(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"kind": "byte"}))
    assert open_data(str(tmp_path), "data", "char").tokenizer.vocab_size == 256
    (tmp_path / "meta.json").unlink()
    (tmp_path / "meta.pkl").unlink()
    assert isinstance(open_data(str(tmp_path), "data", "char").tokenizer, GPT2Tokenizer)


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (b"", "no whole number"),
        (b"\0\0", "no whole number"),  # one token
        (b"\0" * 41, "no whole number"),
        (llm_c(TOKENS, version=2), "token-file version 2"),
        (llm_c(TOKENS, count=21), "no whole number"),
        (llm_c(TOKENS, count=19), "no whole number"),
        (llm_c(TOKENS, count=-1), "no whole number"),
        (llm_c(TOKENS, count=2**31 - 1), "no whole number"),
        (llm_c(TOKENS)[:1000], "no whole number"),
        ([2, 3, 5], "has the token 5, and its tokenizer knows 0 to 4"),
        ([2, 65_535], "has the token 65535"),
        (llm_c(TOKENS, magic=1), "has the token"),  # no header: its bytes are no tokens
    ],
)
def test_a_damaged_token_file_is_refused(tmp_path, train, reason):
    with pytest.raises(UserError, match=reason):
        open_data(write(tmp_path, train), "data", "char")
    (tmp_path / "train.bin").rename(tmp_path / "val.bin")
    write(tmp_path, val=(tmp_path / "val.bin").read_bytes())
    with pytest.raises(UserError, match=f"val.bin.*{reason}"):
        open_data(str(tmp_path), "data", "char")


@pytest.mark.parametrize("missing", ["train.bin", "val.bin"])
def test_a_missing_split_is_refused(tmp_path, missing):
    write(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"{missing} is missing"):
        open_data(str(tmp_path), "data", "char")


@pytest.mark.parametrize(
    "meta",
    [
        None,
        [],
        {},
        {"itos": None},
        {"itos": ["a"]},
        {"itos": {}},
        {"itos": {0: "a", 2: "b"}},
        {"itos": {0: "a", 1: 2}},
        {"itos": {0: "b", 1: "a"}},
        {"itos": {0: "aa"}},
        {"itos": {"0": "a"}},
        {"itos": {0: {0: "a"}}},
    ],
)
def test_a_meta_without_a_character_table_is_refused(tmp_path, meta):
    with pytest.raises(UserError):
        open_data(write(tmp_path, meta=pickle.dumps(meta)), "data", "char")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_a_meta_json_that_is_none_is_refused(tmp_path, content):
    write(tmp_path)
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(UserError):
        open_data(str(tmp_path), "data", "char")


# --- pickles --------------------------------------------------------------------------------------


class Planted:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["alone", "as a value", "as a character", "behind"])
def test_a_planted_pickle_does_not_run(tmp_path, protocol, where):
    trace = tmp_path / "it ran"
    planted = Planted(trace)
    if where == "alone":
        meta = pickle.dumps(planted, protocol)
    elif where == "as a value":
        meta = pickle.dumps({**META, "more": planted}, protocol)
    elif where == "as a character":
        meta = pickle.dumps({"itos": {0: planted}}, protocol)
    else:
        meta = pickle.dumps(META, max(protocol, 2)) + pickle.dumps(planted, protocol)
    folder = write(tmp_path, meta=meta)
    if where == "behind":
        open_data(folder, "data", "char")  # what follows the end is not read
    else:
        with pytest.raises(UserError, match="cannot be read: it holds more"):
            open_data(folder, "data", "char")
    assert not trace.exists()
    if where == "alone":
        pickle.loads(meta)
        assert trace.exists()  # the trap was one


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo place that would take gigabytes
        b"\x80\x04\x8d" + b"\xff" * 8 + b".",  # a text of 2^64 bytes
        b"\x80\x04\x95" + b"\xff" * 8 + b".",  # a frame of 2^64 bytes
        b"\x80\x02}q\x00h\x00h\x00s.",  # a dict as its own key
        b"(" * 1000 + b".",
        b"u.",
        b"}u.",
        b"}(K\x01u.",
        b"K\x01K\x02K\x03s.",
        b"h\x05.",
        b".",
        b"\x94.",
        b"\x80\xff.",
    ],
)
def test_a_hostile_pickle_is_no_pickle(content):
    with pytest.raises(ValueError, match=r"\w"):
        read_plain_pickle(content)


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 60), st.integers(2, 5))
def test_any_bytes_are_data_or_refused(noise, place, protocol):
    content = pickle.dumps(META, protocol)
    for bytes_ in (noise, content[:place] + noise + content[place:], content[:place] + noise):
        try:
            value = read_plain_pickle(bytes_)
        except ValueError:
            continue
        assert isinstance(value, (dict, str, int))


@given(
    st.recursive(
        st.integers(-(2**70), 2**70) | st.text(),
        lambda inner: st.dictionaries(st.integers() | st.text(), inner),
    ),
    st.integers(2, 5),
)
def test_plain_data_comes_back(value, protocol):
    assert read_plain_pickle(pickle.dumps(value, protocol)) == value
