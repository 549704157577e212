"""Hugging Face's tokenizers: the equals of ours, any others, and damaged folders."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import UserError
from gpt.data import huggingface_tokenizer as huggingface
from gpt.data.tokenizers import ByteTokenizer, CharTokenizer, for_text, from_json, read_tokenizer
from tests.gpt.data.test_tokenizers import assert_round_trip, small_gpt2

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

TEXT = "the cost of 7  the\n\n of the é\U0001f600 of\tthe <|endoftext|>the of the"
GPT2 = small_gpt2()
RANKS = GPT2._encoding._mergeable_ranks
BYTES = {bytes([byte]): byte for byte in range(256)}


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
    made.enable_padding()
    return made.to_str()


def save(folder, text, **others):
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    for name, content in others.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@given(st.text() | st.text("the of\n \t\x85é", min_size=9))
def test_equals_of_our_tokenizers(text):
    characters = CharTokenizer.of(text + "!")
    for ours, equal in (
        (characters, huggingface.of_characters(characters.characters)),
        (ByteTokenizer(), huggingface.of_ranks(BYTES)),
        (GPT2, huggingface.of_ranks(RANKS, 50256)),
    ):
        assert equal.encode(text).tolist() == ours.encode(text).tolist()
        assert equal.vocab_size == ours.vocab_size
        assert_round_trip(equal, text)


@given(st.lists(st.integers(0, 255)))
def test_the_stream_of_invalid_bytes(tokens):
    equal = huggingface.of_ranks(BYTES)
    decode = equal.stream()
    assert "".join(map(decode, [*tokens, 65])) == ByteTokenizer().decode([*tokens, 65])


def test_ours_are_recognised_in_a_folder(tmp_path, monkeypatch):
    for ours, equal in (
        (CharTokenizer("\nab\U0001f600"), huggingface.of_characters("\nab\U0001f600")),
        (ByteTokenizer(), huggingface.of_ranks(BYTES)),
    ):
        assert read_tokenizer(save(tmp_path, equal.text)).to_json() == ours.to_json()
    equal = huggingface.of_ranks(RANKS, 50256)
    numbers, merges = equal.numbers(), equal.merges()
    assert merges[1] == "th e"
    content = "\n".join([*sorted(numbers, key=numbers.get), *merges])
    save(tmp_path, equal.text)
    assert read_tokenizer(tmp_path).to_json() == equal.to_json()
    monkeypatch.setattr(huggingface, "GPT2_SHA256", hashlib.sha256(content.encode()).hexdigest())
    assert read_tokenizer(tmp_path).to_json() == {"kind": "gpt2"}
    save(tmp_path, equal.text.replace('"add_prefix_space":false', '"add_prefix_space":true'))
    assert read_tokenizer(tmp_path).to_json()["kind"] == "huggingface"
    # the files of the slow tokenizer
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(numbers))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert read_tokenizer(tmp_path).to_json() == {"kind": "gpt2"}


@pytest.mark.parametrize("text", [sentencepiece(), huggingface.of_ranks(RANKS, 50256).text])
def test_a_long_text_has_the_tokens_of_the_library(text, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "PIECE", 3)
    tokenizer = for_text(str(save(tmp_path, text) / "tokenizer.json"), "")
    library = tokenizers.Tokenizer.from_str(text)
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    expected = library.encode(TEXT * 3, add_special_tokens=False).ids
    assert tokenizer.encode(TEXT * 3).tolist() == expected
    assert_round_trip(tokenizer, TEXT)
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
    tokenizer = read_tokenizer(save(tmp_path, sentencepiece(), **files))
    assert tokenizer.end_of_text == expected
    assert from_json(tokenizer.to_json()).end_of_text == expected


HUGE = '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}'
NOTHING = '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'
FULL = json.dumps({character: number for number, character in enumerate(huggingface.BYTES)})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{}"}, "is not valid: Model missing"),
        ({"tokenizer.json": "[1]"}, "is not a JSON object"),
        ({"tokenizer.json": HUGE}, "more than 4,194,304"),
        ({"tokenizer.json": NOTHING}, "has no tokens"),
        ({"tokenizer.model": ""}, "that only transformers reads, tokenizer.model"),
        ({"vocab.txt": "[CLS]"}, "that only transformers reads, vocab.txt"),
        ({"vocab.json": "{}", "merges.txt": ""}, "not of a byte-level encoding"),
        ({"vocab.json": FULL, "merges.txt": "a b"}, "merges.txt are not valid"),
        ({"vocab.json": FULL, "merges.txt": "a"}, "merges.txt are not valid"),
        ({"vocab.json": FULL, "merges.txt": "", "added_tokens.json": '{"<s>": 9}'}, "of its own"),
    ],
)
def test_unusable_folders_are_refused(files, message, tmp_path):
    assert read_tokenizer(tmp_path) is None
    with pytest.raises(UserError, match="is not char, byte or gpt2"):
        for_text(str(tmp_path), "")
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("tokenizer", [None, {}, "", "{}"])
@pytest.mark.parametrize("end_of_text", [None, True, "1", 9])
def test_a_damaged_record_is_refused(tokenizer, end_of_text):
    with pytest.raises(UserError, match="tokenizer"):
        from_json({"kind": "huggingface", "tokenizer": tokenizer, "end_of_text": end_of_text})
