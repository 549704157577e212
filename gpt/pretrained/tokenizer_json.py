"""The tokenizer.json of a folder for `transformers`: equals of our tokenizers, written and read.

Hugging Face's `tokenizers` makes them, and gives files of all versions one form.
"""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import UserError
from ..data.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from ..files import read_json

END_OF_TEXT = "<|endoftext|>"  # as GPT-2's tokenizer spells it
GPT2_SHA256 = "9e52e2d09323136cf31fca11e3a80463fe013e9ccfa1c04ac36c8bb825af904d"  # see _is_gpt2
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
        raise UserError("a tokenizer.json needs: pip install tokenizers") from None
    return tokenizers


def equal_of(tokenizer: Tokenizer) -> Any:
    """The tokenizer of Hugging Face that gives the same tokens for every text."""
    if isinstance(tokenizer, CharTokenizer):
        return of_characters(tokenizer.characters)
    if isinstance(tokenizer, ByteTokenizer):
        return of_ranks({bytes([byte]): byte for byte in range(256)})
    return of_ranks(tokenizer.ranks, tokenizer.end_of_text)


def of_characters(characters: str) -> Any:
    """The equal of a CharTokenizer; it cannot encode other characters either."""
    t = library()
    numbers = {character: token for token, character in enumerate(characters)}
    made = t.Tokenizer(t.models.WordLevel(numbers))  # without its unknown token: an error
    made.pre_tokenizer = t.pre_tokenizers.Split(t.Regex(r"[\s\S]"), "isolated")
    made.decoder = t.decoders.Fuse()
    return made


def of_ranks(ranks: dict[bytes, int], end_of_text: int | None = None) -> Any:
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
    special = {} if end_of_text is None else {END_OF_TEXT: end_of_text}
    t = library()
    made = t.Tokenizer(t.models.BPE(numbers | special, merges))
    made.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's words
    made.decoder = t.decoders.ByteLevel()
    made.add_special_tokens(list(special))
    return made


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder of `transformers`; None without one.

    Raises UserError for a damaged tokenizer.json, for one that equals none of ours, and for the
    files of other libraries.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        return _recognised(file)
    if found := [name for name in UNREADABLE if (folder / name).is_file()]:
        problem = f"{folder / found[0]} is of a tokenizer that only transformers reads"
        advice = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        raise UserError(f"{problem}; if it is GPT-2's, write a tokenizer.json: {advice}")
    return None


def _recognised(file: Path) -> Tokenizer:
    content, t = json.dumps(read_json(file)), library()
    try:
        made = t.Tokenizer.from_str(content)
    except Exception as error:  # the library raises no other class
        raise UserError(f"{file} is not valid: {error}") from None
    made.no_truncation()
    made.no_padding()
    numbers, text = made.get_vocab(), made.to_str()
    tokens = sorted(numbers, key=numbers.__getitem__)
    for ours in (CharTokenizer("".join(tokens)), ByteTokenizer()):
        if tokens and text == equal_of(ours).to_str():
            return ours
    if max(numbers.values(), default=0) == GPT2Tokenizer.end_of_text and _is_gpt2(tokens, text):
        return GPT2Tokenizer()
    problem = f"{file} is not of a tokenizer that is supported"
    raise UserError(f"{problem}; give a model with GPT-2's, or an exported run with char or byte")


def _is_gpt2(tokens: list[str], text: str) -> bool:
    """Whether a tokenizer.json has GPT-2's tokens and merges, within the words of its pattern."""
    record = json.loads(text)
    model, split = record["model"], record["pre_tokenizer"] or {}
    affixes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if model["type"] != "BPE" or any(map(model.get, affixes)) or record["normalizer"]:
        return False
    expected = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    digest = hashlib.sha256("\n".join(tokens + merges).encode()).hexdigest()
    return digest == GPT2_SHA256 and split == split | expected
