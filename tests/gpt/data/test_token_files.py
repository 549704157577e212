"""Token files in the formats of nanoGPT and llm.c, damaged ones, and hostile pickles."""

import contextlib
import os
import pickle
import re
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import UserError
from gpt.data.corpus import open_data
from gpt.data.token_files import LARGEST_META, read_plain_pickle


def meta_of(characters):
    """The meta.pkl that nanoGPT's prepare.py writes."""
    numbers = {character: number for number, character in enumerate(characters)}
    return {"vocab_size": len(numbers), "itos": dict(enumerate(characters)), "stoi": numbers}


META = meta_of("\n abc")
TOKENS = [2, 3, 4, 1, 0] * 4


def write(folder, train=TOKENS, val=TOKENS, meta=None):
    for name, tokens in (("train.bin", train), ("val.bin", val)):
        content = tokens if isinstance(tokens, bytes) else np.array(tokens, "<u2").tobytes()
        (folder / name).write_bytes(content)
    (folder / "meta.pkl").write_bytes(pickle.dumps(META) if meta is None else meta)
    return str(folder)


def llm_c(tokens, magic=20240520, version=1, dtype="<u2", count=None):
    """A file with llm.c's header, or without one if magic is 0."""
    count = len(tokens) if count is None else count
    header = struct.pack("<iii", magic, version, count).ljust(1024, b"\0") if magic else b""
    return header + np.array(tokens, dtype).tobytes()


@pytest.mark.parametrize("magic", [20240520, 0])
def test_tokens_with_and_without_a_header_are_read(tmp_path, magic):
    (tmp_path / "mine").mkdir()
    files = llm_c(TOKENS, magic), llm_c(TOKENS[:7], magic)
    write(tmp_path / "mine", *files, pickle.dumps(meta_of("cb a\n")))
    data = open_data("mine", str(tmp_path), "char")  # by its name in data_dir
    assert data.name == "mine"
    assert open_data(str(tmp_path / "mine" / "val.bin"), "data", "char").train.equal(data.train)
    assert data.train.dtype == data.val.dtype == torch.uint16
    assert (data.train.tolist(), data.val.tolist()) == (TOKENS, TOKENS[:7])
    assert data.tokenizer.decode(data.train[:5].tolist()) == " a\nbc"  # in the table's order
    assert data.tokenizer.encode(" a\nbc").tolist() == TOKENS[:5]
    data.train.zero_()
    assert (tmp_path / "mine" / "train.bin").read_bytes() == files[0]  # never written


@pytest.mark.parametrize("content", [llm_c(TOKENS[:5], 0), llm_c([9] * 4096, 0)])
def test_a_file_that_changes_in_use_is_noticed_before_its_tokens_are(tmp_path, content):
    """Reading behind the end of a file that was cut off would be SIGBUS."""
    data = open_data(write(tmp_path, TOKENS * 1000), "data", "char")
    data.batch(1, 0, 4, 8)
    os.utime(tmp_path / "val.bin", ns=(0, 0))  # an older file is another one
    for read in (lambda: data.validation(4), lambda: data.batch(1, 0, 4, 8)):
        with pytest.raises(UserError, match=r"val\.bin was changed while it was in use"):
            read()
    data = open_data(write(tmp_path, TOKENS * 1000), "data", "char")
    with (tmp_path / "train.bin").open("r+b") as file:
        file.truncate(file.write(content))
    with pytest.raises(UserError, match=r"train\.bin was changed while it was in use"):
        data.batch(1, 0, 4, 8)


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        *((short, "not at least 2 and a whole number") for short in (b"", b"\0\0", b"\0" * 41)),
        *((llm_c(TOKENS, 0, dtype=wide), "to have wider tokens than") for wide in ("<u4", "<i8")),
        *((llm_c(TOKENS, count=n), f"not a header and {n} ") for n in (21, 19, -1, 2**31 - 1)),
        (llm_c(TOKENS)[:1000], "not a header and 20 uint16"),
        (llm_c(TOKENS, version=2), "magic 20240520 with version 2, not 1"),
        ([2, 3, 5], "has the token 5, and its tokenizer knows 0 to 4"),
        (llm_c([2, -100], 0, dtype="<i8"), "has the token 65535, and"),
        (llm_c(TOKENS, magic=1), "has the token"),  # without a header its bytes are read as tokens
    ],
)
def test_a_damaged_token_file_is_refused(tmp_path, train, reason):
    with pytest.raises(UserError, match=f"train.bin.*{reason}"):
        open_data(write(tmp_path, train), "data", "char")
    write(tmp_path, val=(tmp_path / "train.bin").read_bytes())
    with pytest.raises(UserError, match=f"val.bin.*{reason}"):
        open_data(str(tmp_path), "data", "char")
    (tmp_path / "val.bin").rename(tmp_path / "fineweb_val_000000.bin")
    with pytest.raises(UserError, match=r"val.bin is missing.*link to fineweb_val_000000.bin"):
        open_data(str(tmp_path), "data", "char")


TABLES = [None, ["a"], {}, {0: "a", 2: "b"}, {0: "a", 1: 2}, {0: "a", 1: "a"}, {0: "aa"}, {0: ""}]
TABLES += [{"0": "a"}, {0: {0: "a"}}]
BAD_META = [pickle.dumps(meta) for meta in (None, [], {}, *({"itos": table} for table in TABLES))]
BAD_META = [("meta.pkl", content) for content in (*BAD_META, bytes(LARGEST_META + 1))]
BAD_META += [("meta.json", content) for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000)]


@pytest.mark.parametrize(("name", "content"), BAD_META)
def test_a_meta_file_without_a_character_table_is_refused(tmp_path, name, content):
    folder = write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(name)}|characters"):
        open_data(folder, "data", "char")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_is_read(protocol):
    for meta in (META, meta_of([chr(code) for code in range(70_000)])):
        assert read_plain_pickle(pickle.dumps(meta, protocol) + b"more") == meta


HOSTILE = [
    *(pickle.dumps({**META, "more": print}, protocol) for protocol in range(6)),
    b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo index that allocates gigabytes
    b"}()" + b"\x85" * 1_000_000 + b"K\x00u.",  # nested tuples: the hash overflows C's stack
    b"\x80\x04\x8d" + b"\xff" * 8 + b".",  # a text of 2^64 bytes
    b"\x80\x04\x95" + b"\xff" * 8 + b".",  # a frame of 2^64 bytes
    b"\x80\x02}q\x00h\x00h\x00s.",  # a dict as its own key
    *(b"(" * 1000 + b".", b"u.", b"}u.", b"}(K\x01u.", b"K\x01K\x02K\x03s.", b"h\x05.", b"."),
    *(b"\x94.", b"\x80\xff."),
]


@pytest.mark.parametrize("content", HOSTILE)
def test_a_hostile_pickle_is_refused(content):
    with pytest.raises(ValueError, match=r"\w"):
        read_plain_pickle(content)


@settings(max_examples=100)
@given(st.sampled_from(["train.bin", "meta.json", "meta.pkl"]), st.data())
def test_any_bytes_are_read_or_refused(tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp()
    write(folder, llm_c(TOKENS))
    (folder / "meta.json").write_bytes(b'{"kind": "char", "characters": "ab"}')
    path = folder / name
    content = path.read_bytes()
    at, end = (data.draw(st.integers(0, len(content))) for _ in range(2))
    path.write_bytes(content[:at] + data.draw(st.binary(max_size=40)) + content[end:])
    if name == "meta.pkl":
        (folder / "meta.json").unlink()
    with contextlib.suppress(UserError):
        found = open_data(str(folder), "data", "char")
        assert max(found.train.int().max(), found.val.int().max()) < found.tokenizer.vocab_size
        assert found.tokenizer.decode(found.train.tolist())
