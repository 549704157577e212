"""Text -> tokens -> text: characters, bytes, byte pairs; and what is refused."""

import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import UserError
from gpt.data.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, for_text, from_json

SHAKESPEARE_CHARACTERS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase


def test_the_characters_are_numbered_as_in_the_lecture():
    tokenizer = CharTokenizer.of(SHAKESPEARE_CHARACTERS[::-1] * 3)
    assert tokenizer.vocab_size == 65
    assert tokenizer.characters == SHAKESPEARE_CHARACTERS
    tokens = tokenizer.encode("hii there")
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]  # the video, 00:10:11
    assert tokenizer.decode(tokens) == "hii there"


@given(st.text(min_size=1))
def test_characters_come_back(text):
    tokenizer = CharTokenizer.of(text)
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    decode = tokenizer.stream()
    assert "".join(decode(token) for token in tokenizer.encode(text).tolist()) == text


@given(st.text())
def test_bytes_come_back(text):
    tokenizer = ByteTokenizer()
    assert bytes(tokenizer.encode(text).tolist()) == text.encode()
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    decode = tokenizer.stream()
    assert "".join(decode(token) for token in tokenizer.encode(text).tolist()) == text


def test_a_stream_of_bytes_holds_half_a_character_back():
    decode = ByteTokenizer().stream()
    assert [decode(token) for token in "€!".encode()] == ["", "", "€", "!"]
    assert ByteTokenizer().decode([0xFF, 65]) == "\ufffdA"


@pytest.mark.parametrize("character", ["\u00e9", "\U0001f600", "\x00", "z", "\udc80"])
def test_an_unknown_character_is_named(character):
    with pytest.raises(UserError, match="is not in this model's vocabulary") as refusal:
        CharTokenizer.of("abc").encode("ab" + character)
    assert repr(character) in str(refusal.value)


@given(st.text(min_size=1))
def test_a_tokenizer_survives_json(text):
    for tokenizer in (CharTokenizer.of(text), ByteTokenizer(), GPT2Tokenizer()):
        again = from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert type(again) is type(tokenizer)
        assert again.to_json() == tokenizer.to_json()
        assert again.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        "char",
        {},
        {"kind": "word"},
        {"kind": ["char"]},
        {"kind": "char"},
        {"kind": "char", "characters": ""},
        {"kind": "char", "characters": "ba"},
        {"kind": "char", "characters": "aab"},
        {"kind": "char", "characters": ["a", "b"]},
        {"kind": "char", "characters": "a\ud800"},
    ],
)
def test_a_record_of_no_tokenizer_is_refused(record):
    with pytest.raises(UserError, match="tokenizer"):
        from_json(record)


def test_the_option_names_a_tokenizer():
    assert for_text("char", "abba").characters == "ab"
    assert isinstance(for_text("byte", "abba"), ByteTokenizer)
    assert isinstance(for_text("gpt2", "abba"), GPT2Tokenizer)


def test_byte_pairs_are_tiktoken_s():
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"he": 256, b"hel": 257}
    tokenizer = GPT2Tokenizer()
    tokenizer._encoding = tiktoken.Encoding(  # GPT-2's own table would need the network
        name="small", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens={"<|end|>": 258}
    )
    tokens = tokenizer.encode("hello <|end|>€")
    assert tokens.dtype == np.int64
    assert tokens[:3].tolist() == [257, ord("l"), ord("o")]
    assert 258 not in tokens  # a text cannot smuggle in a special token
    assert tokenizer.decode(tokens) == "hello <|end|>€"
    decode = tokenizer.stream()
    assert "".join(decode(token) for token in tokens.tolist()) == "hello <|end|>€"


def test_without_its_table_gpt2_s_tokenizer_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError, match="choose --tokenizer char or --tokenizer byte"):
        GPT2Tokenizer().encode("hello")
