"""Tokenizers of Hugging Face: a tokenizer.json, or vocab.json and merges.txt, by `tokenizers`.

Ours have an equal there, so that a folder for `transformers` can hold any tokenizer.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .. import UserError
from ..files import LARGEST_JSON, read_json

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
LARGEST_TOKEN = 1 << 22  # four times the largest vocabularies
# of the tokens and merges of GPT-2, as _ours joins them
GPT2_SHA256 = "9e52e2d09323136cf31fca11e3a80463fe013e9ccfa1c04ac36c8bb825af904d"
UNREADABLE = ("tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt")
CUT = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")  # between two words
PIECE, AT_ONCE = 1 << 14, 16  # characters of a piece, and pieces that are encoded in parallel

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
    """A tokenizer of the `tokenizers` library, from the text of a tokenizer.json.

    No special token is added to a text, and one that is spelled out in it is plain text. Raises
    UserError if the library is not installed or rejects the text.
    """

    def __init__(self, text: str, end_of_text: int | None):
        try:
            self._tokenizer = library().Tokenizer.from_str(text)
        except Exception as error:  # the library raises no other class
            raise UserError(f"the tokenizer.json is not valid: {error}") from None
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        if not 0 < self.vocab_size <= LARGEST_TOKEN:
            raise UserError(f"the tokenizer has no tokens, or more than {LARGEST_TOKEN:,}")
        if end_of_text is not None and not 0 <= end_of_text < self.vocab_size:
            raise UserError(f"the tokenizer's end-of-text token, {end_of_text}, is not a token")
        self.end_of_text = end_of_text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # as plain text
        self.text = self._tokenizer.to_str()

    def encode(self, text: str) -> np.ndarray:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        pieces = self._pieces(text)
        tokens = [np.empty(0, np.int64)]
        try:
            while batch := list(islice(pieces, AT_ONCE)):
                encoded = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
                tokens += [np.array(each.ids, dtype=np.int64) for each in encoded]
        except Exception as error:  # the library raises no other class
            raise UserError(f"the tokenizer cannot encode the text: {error}") from None
        return np.concatenate(tokens)

    def _pieces(self, text: str) -> Iterator[str]:
        start = 0
        while self._can_cut and (cut := CUT.search(text, start + PIECE)):
            yield text[start : cut.start()]
            start = cut.start()
        yield text[start:]

    @cached_property
    def _can_cut(self) -> bool:
        """Whether a text may be cut between two words: the library needs 170 bytes a character."""
        record = self.record
        split = self._tokenizer.pre_tokenizer
        if split is None or (record["normalizer"] or {"type": "NFC"})["type"] != "NFC":
            return False
        parts = [[part for part, _ in split.pre_tokenize_str(s)] for s in ("ab", " cd", "ab cd")]
        return parts[0] + parts[1] == parts[2] and not any(
            CUT.search(token["content"]) for token in record["added_tokens"]
        )

    def decode(self, tokens: Iterable[int]) -> str:
        return self._tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False)

    def stream(self) -> Callable[[int], str]:
        held: list[int] = []  # the tokens whose text was returned last, and those not yet returned
        returned = 0

        def decode(token: int) -> str:
            nonlocal returned
            held.append(token)
            before, text = self.decode(held[:returned]), self.decode(held)
            if len(text) <= len(before) or text.endswith("\ufffd"):  # an incomplete character
                return ""
            del held[:returned]
            returned = len(held)
            return text[len(before) :]

        return decode

    def to_json(self) -> dict:
        return {"kind": "huggingface", "end_of_text": self.end_of_text, "tokenizer": self.text}

    def numbers(self) -> dict[str, int]:
        """The tokens as they are written in the tokenizer.json."""
        return self._tokenizer.get_vocab()

    @property
    def record(self) -> dict[str, Any]:
        """The content of the tokenizer.json."""
        return json.loads(self.text)

    def merges(self) -> list[str]:
        """The merges "a b" of a byte-pair encoding in their order; others have none."""
        merges = self.record["model"].get("merges", [])
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]

    @property
    def splits_like_gpt2(self) -> bool:
        """Whether it is a byte-pair encoding of bytes within the words of GPT-2's pattern."""
        model, split = self.record["model"], self.record["pre_tokenizer"] or {}
        affixes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        return (
            (model["type"], split.get("type")) == ("BPE", "ByteLevel")
            and not (any(map(model.get, affixes)) or self.record["normalizer"])
            and (split["add_prefix_space"], split.get("use_regex", True)) == (False, True)
        )


def of_characters(characters: str) -> HuggingFaceTokenizer:
    """The equal of a CharTokenizer; it cannot encode other characters either."""
    t = library()
    numbers = {character: token for token, character in enumerate(characters)}
    tokenizer = t.Tokenizer(t.models.WordLevel(numbers))  # without its unknown token: an error
    tokenizer.pre_tokenizer = t.pre_tokenizers.Split(t.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = t.decoders.Fuse()
    return HuggingFaceTokenizer(tokenizer.to_str(), None)


def of_ranks(ranks: dict[bytes, int], end_of_text: int | None = None) -> HuggingFaceTokenizer:
    """The equal of tiktoken's GPT-2 with these ranks, or of a ByteTokenizer if all are bytes."""
    t = library()
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
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    if end_of_text is not None:
        vocabulary[END_OF_TEXT[0]] = end_of_text
    tokenizer = t.Tokenizer(t.models.BPE(vocabulary, merges))
    split = t.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, t.decoders.ByteLevel()
    if end_of_text is not None:
        tokenizer.add_special_tokens([END_OF_TEXT[0]])
    return HuggingFaceTokenizer(tokenizer.to_str(), end_of_text)


def read_record(path: Path) -> dict | None:
    """The record of the tokenizer in a folder of `transformers`; None if it has no tokenizer.

    path: the folder, or a tokenizer.json. GPT-2's own tokenizer and the equals of ours are
    recognised. Raises UserError for a damaged tokenizer and for those of other libraries.
    """
    folder, file = (path.parent, path) if path.is_file() else (path, path / "tokenizer.json")
    if file.is_file():
        text = json.dumps(read_json(file))
    elif all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        text = _read_pairs(folder)
    elif found := [name for name in UNREADABLE if (folder / name).is_file()]:
        raise UserError(_advice(folder, f"a tokenizer that only transformers reads, {found[0]}"))
    else:
        return None
    try:
        tokenizer = HuggingFaceTokenizer(text, None)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    tokenizer.end_of_text = _end_of_text(folder, tokenizer)
    return _ours(tokenizer) or tokenizer.to_json()


def _advice(folder: Path, what: str) -> str:
    return (
        f"{folder} has {what}; write a tokenizer.json with transformers: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def _read_pairs(folder: Path) -> str:
    """A tokenizer.json from the vocab.json and merges.txt of a byte-level byte-pair encoding."""
    t, vocabulary, merges = library(), read_json(folder / "vocab.json"), folder / "merges.txt"
    if not vocabulary.keys() >= set(BYTES) or "!</w>" in vocabulary:
        raise UserError(_advice(folder, "a vocab.json that is not of a byte-level encoding"))
    if _read(folder / "added_tokens.json").keys() - vocabulary.keys():
        raise UserError(_advice(folder, "an added_tokens.json with tokens of its own"))
    if merges.stat().st_size > LARGEST_JSON:
        raise UserError(f"{merges} is not a file of at most {LARGEST_JSON >> 20} MiB")
    prefix = _read(folder / "tokenizer_config.json").get("add_prefix_space") is True
    try:
        lines = merges.read_text(encoding="utf-8").split("\n")
        pairs = [tuple(line.split(" ")) for line in lines if line and line[:8] != "#version"]
        tokenizer = t.Tokenizer(t.models.BPE(vocabulary, pairs))
    except Exception as error:  # the library raises no other class
        raise UserError(f"{folder}: vocab.json and merges.txt are not valid: {error}") from None
    tokenizer.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = t.decoders.ByteLevel()
    return tokenizer.to_str()


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
    if list(characters) == sorted(tokens) and tokenizer.text == of_characters(characters).text:
        return {"kind": "char", "characters": characters}
    if tokenizer.text == of_ranks({bytes([byte]): byte for byte in range(256)}).text:
        return {"kind": "byte"}
    digest = hashlib.sha256("\n".join(tokens + tokenizer.merges()).encode()).hexdigest()
    known = (digest, tokenizer.vocab_size) == (GPT2_SHA256, 50257) and tokenizer.splits_like_gpt2
    return {"kind": "gpt2"} if known else None
