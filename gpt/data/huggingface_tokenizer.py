"""Tokenizers of Hugging Face, a tokenizer.json each, computed by `tokenizers`.

Each of ours has an equal there, so that a folder for `transformers` can hold it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .. import UserError
from ..files import read_json

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
LARGEST_VOCABULARY = 1 << 22  # four times the largest in use
# of the tokens and merges of GPT-2, as _ours joins them
GPT2_SHA256 = "9e52e2d09323136cf31fca11e3a80463fe013e9ccfa1c04ac36c8bb825af904d"
UNREADABLE = ("tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt")

# the printable character that stands for each byte in the vocabulary of a byte-level encoding
PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTES = [chr(byte if byte in PRINTABLE else 256 + OTHERS.index(byte)) for byte in range(256)]


def library() -> Any:
    """Hugging Face's `tokenizers`; UserError if it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise UserError("a tokenizer of Hugging Face needs: pip install tokenizers") from None
    return tokenizers


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, or from the text of its tokenizer.json.

    No special token is added to a text, and one that is spelled out in it is plain text. Raises
    UserError, which starts with `source`, if the library is missing or rejects the tokenizer.
    """

    def __init__(self, made: Any, end_of_text: int | None, source: Any = "the run's tokenizer"):
        t = library()
        try:
            self._tokenizer = t.Tokenizer.from_str(made) if isinstance(made, str) else made
        except Exception as error:  # the library raises no other class
            raise UserError(f"{source} is not valid: {error}") from None
        self.vocab_size = 1 + max(self.numbers().values(), default=-1)
        if not 0 < self.vocab_size <= LARGEST_VOCABULARY:
            raise UserError(f"{source} has no tokens, or numbers above {LARGEST_VOCABULARY:,}")
        if end_of_text is not None and not 0 <= end_of_text < self.vocab_size:
            raise UserError(f"{source} has no token {end_of_text} for the end of a text")
        self.end_of_text = end_of_text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # as plain text
        self.text = self._tokenizer.to_str()

    def encode(self, text: str) -> np.ndarray:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        try:
            (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        except Exception as error:  # the library raises no other class
            raise UserError(f"the tokenizer cannot encode the text: {error}") from None
        return np.array(encoded.ids, dtype=np.int64)

    def split(self, text: str) -> list[str]:
        """The parts of a text that no token connects; all of it if a normalizer may change it."""
        pre_tokenizer, normalizer = self._tokenizer.pre_tokenizer, self._tokenizer.normalizer
        if pre_tokenizer is None or not isinstance(normalizer, library().normalizers.NFC | None):
            return [text]
        return [part for part, _ in pre_tokenizer.pre_tokenize_str(text)]

    def decode(self, tokens: Iterable[int]) -> str:
        return self._tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False)

    def stream(self) -> Callable[[int], str]:
        held: list[int] = []  # the tokens whose text was returned last, and those not yet returned
        returned = 0

        def decode(token: int) -> str:
            nonlocal returned
            held.append(token)
            before, text = self.decode(held[:returned]), self.decode(held)
            if text.endswith("\ufffd"):  # an incomplete character
                return ""
            del held[:returned]
            returned = len(held)
            return text[len(before) :]

        return decode

    def to_json(self) -> dict:
        return {"kind": "huggingface", "end_of_text": self.end_of_text, "tokenizer": self.text}

    def record(self) -> dict[str, Any]:
        """The content of the tokenizer.json."""
        return json.loads(self.text)

    def numbers(self) -> dict[str, int]:
        """The tokens as they are written in the tokenizer.json."""
        return self._tokenizer.get_vocab()

    def merges(self) -> list[str]:
        """The merges "a b" of a byte-pair encoding in their order; others have none."""
        merges = self.record()["model"].get("merges", [])
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]

    def splits_like_gpt2(self) -> bool:
        """Whether it is a byte-pair encoding of bytes within the words of GPT-2's pattern."""
        record = self.record()
        model, split = record["model"], record["pre_tokenizer"] or {}
        affixes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        if model["type"] != "BPE" or any(map(model.get, affixes)) or record["normalizer"]:
            return False
        expected = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        return split == split | expected


def of_characters(characters: str) -> HuggingFaceTokenizer:
    """The equal of a CharTokenizer; it cannot encode other characters either."""
    t = library()
    numbers = {character: token for token, character in enumerate(characters)}
    made = t.Tokenizer(t.models.WordLevel(numbers))  # without its unknown token: an error
    made.pre_tokenizer = t.pre_tokenizers.Split(t.Regex(r"[\s\S]"), "isolated")
    made.decoder = t.decoders.Fuse()
    return HuggingFaceTokenizer(made, None)


def of_ranks(ranks: dict[bytes, int], end_of_text: int | None = None) -> HuggingFaceTokenizer:
    """The equal of tiktoken's GPT-2 with these ranks, or of a ByteTokenizer if all are bytes."""
    spelled = {token: "".join(BYTES[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:  # as the encoding merges this token itself
            pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
            first = pairs.index(min(pairs))
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2:
            merges.append((spelled[parts[0]], spelled[parts[1]]))
    numbers = {spelled[token]: rank for token, rank in ranks.items()}
    special = {} if end_of_text is None else {END_OF_TEXT[0]: end_of_text}
    t = library()
    made = t.Tokenizer(t.models.BPE(numbers | special, merges))
    made.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's words
    made.decoder = t.decoders.ByteLevel()
    made.add_special_tokens(list(special))
    return HuggingFaceTokenizer(made, end_of_text)


def read_record(path: Path) -> dict | None:
    """The record of the tokenizer in a folder of `transformers`; None if it has no tokenizer.

    path: the folder, or a tokenizer.json. GPT-2's own tokenizer and the equals of ours are
    recognised. Raises UserError for a damaged tokenizer and for those of other libraries.
    """
    folder, file = (path.parent, path) if path.is_file() else (path, path / "tokenizer.json")
    if file.is_file():
        tokenizer = HuggingFaceTokenizer(json.dumps(read_json(file)), None, source=file)
        tokenizer.end_of_text = _end_of_text(folder, tokenizer)
        return _ours(tokenizer) or tokenizer.to_json()
    if found := [name for name in UNREADABLE if (folder / name).is_file()]:
        problem = f"{folder / found[0]} is of a tokenizer that only transformers reads"
        advice = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        raise UserError(f"{problem}; write a tokenizer.json: {advice}")
    return None


def _read(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def _end_of_text(folder: Path, tokenizer: HuggingFaceTokenizer) -> int | None:
    files = ("tokenizer_config.json", "special_tokens_map.json")
    named = [_read(folder / file).get("eos_token") for file in files]
    named = [name.get("content") if isinstance(name, dict) else name for name in named]
    numbered = _read(folder / "config.json").get("eos_token_id")
    numbered = numbered if isinstance(numbered, list) else [numbered]
    numbers = tokenizer.numbers()
    found = [numbers[name] for name in named if isinstance(name, str) and name in numbers]
    found += [n for n in numbered if type(n) is int and 0 <= n < tokenizer.vocab_size]
    found += [numbers[name] for name in END_OF_TEXT if name in numbers]
    return found[0] if found else None


def _ours(tokenizer: HuggingFaceTokenizer) -> dict | None:
    """The record of our tokenizer that is equal to `tokenizer`; None without one."""
    numbers = tokenizer.numbers()
    tokens = sorted(numbers, key=numbers.__getitem__)
    characters = "".join(tokens)
    if list(characters) == tokens and tokenizer.text == of_characters(characters).text:
        return {"kind": "char", "characters": characters}
    if tokenizer.text == of_ranks({bytes([byte]): byte for byte in range(256)}).text:
        return {"kind": "byte"}
    digest = hashlib.sha256("\n".join(tokens + tokenizer.merges()).encode()).hexdigest()
    known = (digest, tokenizer.vocab_size) == (GPT2_SHA256, 50257) and tokenizer.splits_like_gpt2()
    return {"kind": "gpt2"} if known else None
