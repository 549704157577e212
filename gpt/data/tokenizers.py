"""Text to tokens and back: the lecture's characters, bytes, and GPT-2's byte-pair encoding.

Every tokenizer has `vocab_size`, `end_of_text` (the token after a document, or None), `encode(text)
-> (N,) int64`, `decode(tokens) -> text`, `stream()` for a decoder of tokens that arrive one at a
time, and `to_json()` for `from_json`.
"""

import codecs
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np

from .. import UserError

UTF8Decoder = codecs.getincrementaldecoder("utf-8")  # holds back an incomplete character


class CharTokenizer:
    """Each character of the text is a token; the vocabulary is sorted, as in the lecture."""

    end_of_text = None

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        self._code_points = np.array([ord(c) for c in characters], dtype=np.uint32)  # ascending

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """The tokenizer of the characters that occur in `text`."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        tokens = np.searchsorted(self._code_points, code_points)
        known = self._code_points[np.minimum(tokens, self.vocab_size - 1)] == code_points
        if not known.all():
            character = text[int(np.argmin(known))]
            raise UserError(
                f"the character {character!r} is not in this model's vocabulary; "
                f"it knows {self.vocab_size} characters: {self.characters!r}"
            )
        return tokens.astype(np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.characters[token] for token in tokens)

    def stream(self) -> Callable[[int], str]:
        return lambda token: self.characters[token]

    def to_json(self) -> dict:
        return {"kind": "char", "characters": self.characters}


class ByteTokenizer:
    """Each byte of the text's UTF-8 is a token: 256 tokens, and no character is unknown."""

    vocab_size, end_of_text = 256, None

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(tokens).decode("utf-8", "replace")

    def stream(self) -> Callable[[int], str]:
        decoder = UTF8Decoder("replace")
        return lambda token: decoder.decode(bytes([token]))

    def to_json(self) -> dict:
        return {"kind": "byte"}


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding by tiktoken, which downloads its table on first use."""

    vocab_size, end_of_text = 50257, 50256

    @cached_property
    def _encoding(self) -> Any:
        try:
            import tiktoken

            return tiktoken.get_encoding("gpt2")
        except ImportError:
            reason = "tiktoken is not installed"
        except OSError as error:  # the exceptions of requests are OSErrors
            reason = f"its table could not be downloaded: {type(error).__name__}"
        raise UserError(
            f"GPT-2's tokenizer is not available ({reason}); pip install tiktoken and connect to a "
            "network, or use --tokenizer char or --tokenizer byte"
        )

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._encoding.encode_ordinary(text), dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        return self._encoding.decode(list(tokens))

    def stream(self) -> Callable[[int], str]:
        decoder = UTF8Decoder("replace")
        return lambda token: decoder.decode(self._encoding.decode_single_token_bytes(token))

    def to_json(self) -> dict:
        return {"kind": "gpt2"}


Tokenizer = CharTokenizer | ByteTokenizer | GPT2Tokenizer


def for_text(kind: str, text: str) -> Tokenizer:
    """The tokenizer for a text that --tokenizer names: char, byte or gpt2."""
    if kind == "char":
        return CharTokenizer.of(text)
    return ByteTokenizer() if kind == "byte" else GPT2Tokenizer()


def from_json(record: object) -> Tokenizer:
    """The tokenizer that `to_json` described; UserError if `record` does not describe one."""
    record = record if isinstance(record, dict) else {}
    kind = record.get("kind")
    if kind == "char":
        characters = record.get("characters")
        if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
            raise UserError("the tokenizer's characters must be sorted and distinct")
        if not characters or any("\ud800" <= c <= "\udfff" for c in characters):
            raise UserError("the tokenizer's characters are empty or contain surrogates")
        return CharTokenizer(characters)
    if kind not in ("byte", "gpt2"):
        raise UserError(f"the tokenizer {kind!r} is unknown; it must be char, byte or gpt2")
    return for_text(kind, "")
