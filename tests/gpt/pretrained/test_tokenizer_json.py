"""The tokenizer.json of a folder: the equals of our tokenizers, others, and damaged ones."""

import hashlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt import UserError
from gpt.data.tokenizers import ByteTokenizer, CharTokenizer
from gpt.pretrained import tokenizer_json
from gpt.pretrained.tokenizer_json import equal_of, read_tokenizer
from tests.gpt.data.test_tokenizers import small_gpt2

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

TEXT = "the cost of 7  the\n\n of the é\U0001f600 of\tthe <|endoftext|></s>the of the"
OURS = {"char": CharTokenizer.of(TEXT), "byte": ByteTokenizer(), "gpt2": small_gpt2()}
EQUALS = {kind: equal_of(tokenizer) for kind, tokenizer in OURS.items()}


def digest_of(made):
    """The sha256 of the tokens and merges."""
    numbers, merges = made.get_vocab(), json.loads(made.to_str())["model"]["merges"]
    assert merges[1] == ["th", "e"]
    content = [*sorted(numbers, key=numbers.get), *map(" ".join, merges)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


@pytest.mark.parametrize("kind", OURS)
@given(st.text(TEXT))
@example(TEXT)
def test_equals_of_our_tokenizers(kind, text):
    ours, equal = OURS[kind], EQUALS[kind]
    equal.encode_special_tokens = True  # as plain text
    tokens = equal.encode(text).ids
    assert tokens == ours.encode(text).tolist()
    assert equal.decode(tokens, skip_special_tokens=False) == text
    assert max(equal.get_vocab().values()) + 1 == ours.vocab_size


@pytest.mark.parametrize("kind", OURS)
def test_ours_are_recognised_in_a_folder(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_json, "GPT2_SHA256", digest_of(EQUALS["gpt2"]))
    made = tokenizers.Tokenizer.from_str(EQUALS[kind].to_str())
    made.enable_truncation(3)  # as transformers saves what it was called with
    made.enable_padding(length=9)
    made.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).to_json() == OURS[kind].to_json()


def changed(**changes):
    """GPT-2's tokenizer with other values in some of its parts."""
    record = json.loads(EQUALS["gpt2"].to_str())
    return record | {name: (record[name] or {}) | part for name, part in changes.items()}


NUMBERS = changed()["model"]["vocab"]
OTHERS = [
    changed(pre_tokenizer={"add_prefix_space": True}),
    changed(normalizer={"type": "NFC"}),
    changed(model={"ignore_merges": True}),
    changed(model={"vocab": NUMBERS | {"<|endoftext|>": 50257}}),
    changed(model={"merges": changed()["model"]["merges"][:-1]}),
    json.loads(EQUALS["char"].to_str().replace(r"[\\s\\S]", r"\\S")),
    json.loads(tokenizer_json.of_characters("").to_str()),
    {"model": {"type": "BPE", "vocab": {}, "merges": []}},
    {"model": {"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}},
]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(("tokenizer.json", other, "json is not of a tokenizer that is") for other in OTHERS),
        ("tokenizer.json", {}, "tokenizer.json is not valid: Model missing"),
        ("tokenizer.json", [1], "is not a JSON object"),
        ("tokenizer.model", "", "tokenizer.model is of a tokenizer that only transformers reads"),
        ("vocab.json", {"a": 0}, "vocab.json is of a tokenizer that only transformers reads"),
    ],
)
def test_other_tokenizers_are_refused(name, content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_json, "GPT2_SHA256", digest_of(EQUALS["gpt2"]))
    assert read_tokenizer(tmp_path) is None
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path)
