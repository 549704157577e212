"""Hugging Face's tokenizers: the equals of ours, any others, and damaged folders."""

import hashlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt import UserError
from gpt.data import huggingface_tokenizer as huggingface
from gpt.data.tokenizers import ByteTokenizer, CharTokenizer, from_json, read_tokenizer
from gpt.data.tokenizers import whole_tokens as pieces_of
from tests.gpt.data.test_tokenizers import assert_round_trip, small_gpt2

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

TEXT = "the cost of 7  the\n\n of the é\U0001f600 of\tthe <|endoftext|></s>the of the"
EQUALS = {  # ours, and the library's
    "char": (CharTokenizer.of(TEXT), huggingface.of_characters(CharTokenizer.of(TEXT).characters)),
    "byte": (ByteTokenizer(), huggingface.of_ranks({bytes([byte]): byte for byte in range(256)})),
    "gpt2": (small_gpt2(), huggingface.of_ranks(small_gpt2().ranks, 50256)),
}


def sentencepiece():
    """A tokenizer as Llama's: a space before the text, and unknown characters as bytes."""
    pairs = [("▁", "a"), ("b", "▁a")]
    tokens = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    numbers = {token: number for number, token in enumerate([*tokens, "b▁a"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, pairs, byte_fallback=True))
    n, d = tokenizers.normalizers, tokenizers.decoders
    made.normalizer = n.Sequence([n.Prepend("▁"), n.Replace(" ", "▁")])
    made.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    made.add_special_tokens(["<s>", "</s>"])
    made.enable_truncation(3)
    made.enable_padding(length=9)
    return made.to_str()


def save(folder, files):
    for name, content in files.items():
        content = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize("kind", EQUALS)
@given(st.text(TEXT))
@example(TEXT)
def test_equals_of_our_tokenizers(kind, text):
    ours, equal = EQUALS[kind]
    assert equal.encode(text).tolist() == ours.encode(text).tolist()
    assert equal.vocab_size == ours.vocab_size
    for tokenizer in (ours, equal):
        assert_round_trip(tokenizer, text)


@given(st.lists(st.integers(0, 255)))
def test_the_stream_of_invalid_bytes(tokens):
    ours, equal = EQUALS["byte"]
    decode = equal.stream()
    assert "".join(map(decode, [*tokens, 65])) == ours.decode([*tokens, 65])


def test_ours_are_recognised_in_a_folder(tmp_path, monkeypatch):
    _, equal = EQUALS["gpt2"]
    numbers, merges = equal.numbers(), equal.merges()
    assert merges[1] == "th e"
    content = "\n".join([*sorted(numbers, key=numbers.get), *merges]).encode()
    monkeypatch.setattr(huggingface, "GPT2_SHA256", hashlib.sha256(content).hexdigest())
    for ours, equal in EQUALS.values():
        save(tmp_path, {"tokenizer.json": equal.text})
        assert read_tokenizer(tmp_path).to_json() == ours.to_json()
    prefixed = equal.text.replace('"add_prefix_space":false', '"add_prefix_space":true')
    save(tmp_path, {"tokenizer.json": prefixed})
    assert read_tokenizer(tmp_path).to_json()["kind"] == "huggingface"


BYTE_LEVEL = EQUALS["gpt2"][1].text


@pytest.mark.parametrize(
    ("text", "is_cut"),
    [
        (sentencepiece(), False),  # each piece would start with a space
        (BYTE_LEVEL, True),
        (BYTE_LEVEL.replace("<|endoftext|>", "of the"), False),
    ],
)
def test_the_pieces_of_a_text_have_the_tokens_of_the_library(text, is_cut, tmp_path):
    save(tmp_path, {"tokenizer.json": text})
    tokenizer = read_tokenizer(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_str(text)
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    expected = library.encode(TEXT * 3, add_special_tokens=False).ids
    pieces = [piece for piece, _ in pieces_of(tokenizer, [(TEXT, False)] * 3)]
    assert (len(pieces) > 1) == is_cut
    assert [token for piece in pieces for token in tokenizer.encode(piece)] == expected
    assert_round_trip(tokenizer, TEXT)
    assert_round_trip(tokenizer, "a")
    assert tokenizer.encode("a\ud800").tolist() == tokenizer.encode("a\ufffd").tolist()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1),
        ({"config": {"eos_token_id": [0, 1]}}, 0),
        ({"config": {"eos_token_id": "a"}, "special_tokens_map": {"eos_token": "a"}}, 259),
        ({"tokenizer_config": {"eos_token": {"content": "b"}}, "special_tokens_map": {}}, 260),
        ({"tokenizer_config": {"eos_token": ["b"]}, "config": {"eos_token_id": 1000}}, 1),
    ],
)
def test_the_end_of_text_of_a_folder(files, expected, tmp_path):
    named = {f"{name}.json": content for name, content in files.items()}
    save(tmp_path, {"tokenizer.json": sentencepiece(), **named})
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.end_of_text == expected
    assert tokenizer.decode([1]) == "</s>"


BPE = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
HUGE = {**BPE, "model": {"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": {}}, "tokenizer.json is not valid: Model missing"),
        ({"tokenizer.json": [1]}, "is not a JSON object"),
        ({"tokenizer.json": BPE}, "has no tokens"),
        ({"tokenizer.json": HUGE}, "above 4,194,304"),
        ({"tokenizer.model": ""}, "tokenizer.model is of a tokenizer that only transformers"),
        ({"vocab.txt": "[CLS]"}, "vocab.txt is of a tokenizer that only transformers"),
        ({"vocab.json": {"a": 0}, "merges.txt": ""}, "vocab.json is of a tokenizer that only"),
    ],
)
def test_unusable_folders_are_refused(files, message, tmp_path):
    assert read_tokenizer(tmp_path) is None
    save(tmp_path, files)
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("tokenizer", [None, {}, "", "{}", sentencepiece()])
@pytest.mark.parametrize("end_of_text", [-1, True, "1", 1000])
def test_a_damaged_record_is_refused(tokenizer, end_of_text):
    with pytest.raises(UserError, match="tokenizer"):
        from_json({"kind": "huggingface", "tokenizer": tokenizer, "end_of_text": end_of_text})
