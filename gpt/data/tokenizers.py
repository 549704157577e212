"""Text to tokens and back: the lecture's characters, bytes, and GPT-2's byte-pair encoding.

Every tokenizer has `vocab_size`, `end_of_text` (the token after a document, or None), `encode(text)
-> (N,) int64`, `decode(tokens) -> text`, `stream()` for a decoder of tokens that arrive one at a
time, and `to_json()` for `from_json`.
"""

import codecs
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import UserError, downloads

TABLE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
TABLES = {  # of GPT-2 -> the sha256 that tiktoken expects
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}

Text = tuple[str, bool]  # some text, and whether its document ends with it

UTF8Decoder = codecs.getincrementaldecoder("utf-8")  # holds back an incomplete character
# the last place, if any, where a token ends by GPT-2's pattern: before a space between words,
# before a Chinese comma or full stop, after a single line break
CUT = re.compile(r".*(?:\S(?= \w)|[^\W_](?=[\u3001\u3002\uff0c])|\S\n(?=\w))", re.DOTALL)
MOST_HELD = 1 << 14  # pieces without a `CUT`: a gigabyte in blocks of `read_blocks`


class CharTokenizer:
    """Each character of the text is a token; `characters` are distinct, token i is the i-th."""

    end_of_text = None

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        code_points = _code_points(characters)
        self._tokens = np.full(code_points.max(initial=0) + 2, -1)  # -1: unknown code point
        self._tokens[code_points] = np.arange(self.vocab_size)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The tokenizer of the characters that occur in `texts`, sorted as in the lecture."""
        occurs = np.zeros(0x110000, dtype=bool)
        for text in texts:
            occurs[_code_points(text)] = True
        return cls("".join(map(chr, np.flatnonzero(occurs))))

    def encode(self, text: str) -> np.ndarray:
        tokens = self._tokens.take(_code_points(text), mode="clip")
        if (tokens < 0).any():
            character = text[int(tokens.argmin())]
            raise UserError(
                f"the character {character!r} is not in this model's vocabulary; "
                f"it knows {self.vocab_size} characters: {self.characters!r}"
            )
        return tokens

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

            if not downloads.is_offline() or is_cached():
                return downloads.within(downloads.LIMIT, lambda: tiktoken.get_encoding("gpt2"))
            reason = "its table is not cached, and nothing is downloaded offline"
        except ImportError:
            reason = "tiktoken is not installed"
        except (OSError, ValueError) as error:  # of requests, and for a wrong hash
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


def is_cached() -> bool:
    """Whether tiktoken, which has no offline mode, finds GPT-2's tables in its cache."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    for table, sha256 in TABLES.items():
        path = Path(folder, hashlib.sha1((TABLE_URL + table).encode()).hexdigest())
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return False  # it would be downloaded again
    return bool(folder)  # an empty name disables the cache


Tokenizer = CharTokenizer | ByteTokenizer | GPT2Tokenizer


def for_text(kind: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that --tokenizer names, char, byte or gpt2, for a text."""
    return CharTokenizer.of(texts) if kind == "char" else from_json({"kind": kind})


def from_json(record: object) -> Tokenizer:
    """The tokenizer that `to_json` described; UserError if `record` does not describe one."""
    record = record if isinstance(record, dict) else {}
    kind = record.get("kind")
    if kind == "char":
        characters: Any = record.get("characters")
        distinct = isinstance(characters, str) and 0 < len(characters) == len(set(characters))
        if not distinct or any("\ud800" <= c <= "\udfff" for c in characters):
            raise UserError("the tokenizer's characters must be distinct, and no surrogates")
        return CharTokenizer(characters)
    if kind not in ("byte", "gpt2"):
        raise UserError(f"the tokenizer {kind!r} is unknown; it must be char, byte or gpt2")
    return ByteTokenizer() if kind == "byte" else GPT2Tokenizer()


def whole_tokens(tokenizer: Tokenizer, texts: Iterable[Text]) -> Iterator[Text]:
    """The same documents in pieces whose tokens, joined, are those of the whole document.

    A text stays whole if it has no `CUT`. The time is linear in the text.
    """
    if not isinstance(tokenizer, GPT2Tokenizer):
        yield from texts
        return
    held: list[str] = []
    for text, ends in texts:
        found = None if ends else CUT.match(text)
        end = len(text) if ends else found.end() if found else 0
        if end or ends:
            yield "".join([*held, text[:end]]), ends
            held = []
        held.append(text[end:])
        if len(held) > MOST_HELD:
            raise UserError("a text of gigabytes has no place to cut; divide it into documents")
    if any(held):
        yield "".join(held), True


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
