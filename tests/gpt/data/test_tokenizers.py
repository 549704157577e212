"""Text -> tokens -> text: characters, bytes, byte pairs."""

import json
import string
from unittest.mock import Mock

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from gpt import UserError
from gpt.data import tokenizers
from gpt.data.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, from_json, whole_tokens

SHAKESPEARE_CHARACTERS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase


def test_characters_are_numbered_as_in_the_lecture():
    tokenizer = CharTokenizer.of(SHAKESPEARE_CHARACTERS[::-1] * 3)
    assert tokenizer.vocab_size == 65
    assert tokenizer.characters == SHAKESPEARE_CHARACTERS
    tokens = tokenizer.encode("hii there")
    assert tokens.tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]  # the video, 00:10:11
    assert tokenizer.decode(tokens) == "hii there"


def assert_round_trip(tokenizer, text):
    encoded = tokenizer.encode(text)
    assert encoded.dtype == np.int64
    tokens = encoded.tolist()
    assert tokenizer.decode(tokens) == text
    decode = tokenizer.stream()
    assert "".join(decode(token) for token in tokens) == text
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert type(again) is type(tokenizer)
    assert (again.to_json(), again.vocab_size) == (tokenizer.to_json(), tokenizer.vocab_size)


@given(st.text(min_size=1))
def test_characters_and_bytes_round_trip(text):
    characters = CharTokenizer.of(text)
    assert characters.vocab_size == len(set(text))
    assert_round_trip(characters, text)
    assert bytes(ByteTokenizer().encode(text).tolist()) == text.encode()
    assert_round_trip(ByteTokenizer(), text)


BAD_CHARACTERS = ["", "aab", "aba", ["a", "b"], "a\ud800"]
BAD_RECORDS = [None, [], "char", {}, {"kind": "word"}, {"kind": ["char"]}, {"kind": "char"}]
BAD_RECORDS += [{"kind": "char", "characters": bad} for bad in BAD_CHARACTERS]


@pytest.mark.parametrize("record", BAD_RECORDS)
def test_from_json_refuses_a_damaged_record(record):
    with pytest.raises(UserError, match="tokenizer"):
        from_json(record)


def small_gpt2():
    """GPT-2's pattern with a few merges; its own table needs the network."""
    pairs = [b"th", b"the", b" t", b" the", b"\n\n", b"  ", b"of", b" of"]
    pairs += [b".\n", b"\xef\xbc", b"\xef\xbc\x8c", "\uff0c世".encode()[:4]]
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {pair: 256 + i for i, pair in enumerate(pairs)}
    table = {"mergeable_ranks": ranks, "special_tokens": {"<|endoftext|>": 50256}}
    tokenizer = GPT2Tokenizer()
    tokenizer._encoding = tiktoken.Encoding("small", pat_str=r50k_pat_str, **table)
    return tokenizer


@given(st.text("the of\n\t.1é世_\uff0c'" + "\x1c\u00a0", max_size=60), st.integers(1, 12))
def test_pieces_of_a_text_have_the_tokens_of_the_whole(text, size):
    tokenizer = small_gpt2()
    blocks = ((text[at : at + size], False) for at in range(0, len(text), size))
    pieces = list(whole_tokens(tokenizer, blocks))
    assert "".join(text for text, _ in pieces) == text
    tokens = [token for text, _ in pieces for token in tokenizer.encode(text)]
    assert tokens == tokenizer.encode(text).tolist()


@pytest.mark.parametrize(
    ("part", "longest"), [("a few words\n\n", 130), ("世\uff0c", 110), ("a", 1000)]
)
def test_pieces_are_short_and_found_in_linear_time(monkeypatch, part, longest):
    monkeypatch.setattr(tokenizers, "CUT", Mock(wraps=tokenizers.CUT))
    text = part * (1000 // len(part))
    blocks = ((text[at : at + 100], False) for at in range(0, 1000, 100))
    assert max(len(piece) for piece, _ in whole_tokens(small_gpt2(), blocks)) <= longest
    assert sum(len(call.args[0]) for call in tokenizers.CUT.match.call_args_list) == len(text)
    with pytest.raises(UserError, match="has no place to cut; divide it into documents"):
        list(whole_tokens(small_gpt2(), [("a", False)] * 20_000))


def test_gpt2_without_its_table_raises_user_error(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match="use --tokenizer char or --tokenizer byte"):
        GPT2Tokenizer().encode("hello")
