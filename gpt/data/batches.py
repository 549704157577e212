"""Random batches of a token sequence, as a function of (seed, step) alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from .. import UserError
from ..config.model import IGNORE_INDEX, ModelConfig
from .dataset import Batch, Dataset, Device, Row
from .token_files import MappedFile
from .tokenizers import Tokenizer

BLOCK, HASHED = 1 << 20, 64  # tokens in a block, and blocks of a split: 64 Mi tokens are hashed


@dataclass
class TokenDataset(Dataset):
    """A training and a validation split of one token sequence: a text or token files."""

    name: str
    train: torch.Tensor  # (N,) of any integer dtype that `widen` accepts, often a mapped file
    val: torch.Tensor
    tokenizer: Tokenizer
    device: Device = "cpu"  # of the batches
    files: Sequence[MappedFile] = ()  # behind the tokens

    def batch(
        self, seed: int, first: Row, rows: int, block_size: int, split: str = "train"
    ) -> Batch:
        tokens = self.train if split == "train" else self.val
        starts = random_integers(seed, first, rows, len(tokens) - block_size, tokens.device)
        window = torch.arange(block_size + 1, device=tokens.device)
        chunk = self._read(tokens, starts[:, None] + window)  # (rows, block_size + 1)
        if chunk.device.type != torch.device(self.device).type:  # the copy overlaps computation
            chunk = chunk.pin_memory().to(self.device, non_blocking=True)
        return chunk[:, :-1], chunk[:, 1:]

    def to(self, device: Device) -> "TokenDataset":
        """The same data with batches on `device`, and the tokens of a split too if they fit."""
        train, val = (_moved(tokens, device) for tokens in (self.train, self.val))
        files = self.files if train.device.type == "cpu" or val.device.type == "cpu" else ()
        return replace(self, train=train, val=val, device=device, files=files)

    def fingerprint(self) -> dict:
        splits = {"train": self.train, "val": self.val}
        return {name: {"tokens": len(of), "sha256": _sha256(of)} for name, of in splits.items()}

    @property
    def source(self) -> torch.device:
        return self.train.device

    def validation_rows(self, block_size: int) -> int:
        return -(-(len(self.val) - 1) // block_size)

    def validation(self, block_size: int, first: int = 0, rows: int | None = None) -> Batch:
        last = None if rows is None else (first + rows) * block_size + 1
        tokens = self._read(self.val, slice(first * block_size, last)).to(self.device)
        padding = (0, (1 - len(tokens)) % block_size)  # of the last row
        x, y = F.pad(tokens[:-1], padding), F.pad(tokens[1:], padding, value=IGNORE_INDEX)
        return x.view(-1, block_size), y.view(-1, block_size)

    def _read(self, tokens: torch.Tensor, index: torch.Tensor | slice) -> torch.Tensor:
        """tokens[index] as int64. Raises UserError if the file behind them has changed."""
        for file in self.files:
            file.check()  # reading past the end of a shorter file would kill the process
        chunk = widen(tokens[index])
        for file in self.files:
            file.check()  # what was read may be no tokens
        return chunk

    def check_model(self, config: ModelConfig) -> None:
        block_size = config.block_size
        for split, tokens in (("training", self.train), ("validation", self.val)):
            if len(tokens) <= block_size:
                needed = f"a block of {block_size} needs at least {block_size + 1}"
                problem = f"the {split} split of {self.name} has {len(tokens)} tokens, and {needed}"
                raise UserError(f"{problem}; give more text or a smaller --block-size")


def _sha256(tokens: torch.Tensor) -> str:
    """Of all tokens, or of HASHED blocks that are spread evenly over a larger split."""
    blocks = -(-len(tokens) // BLOCK)
    count, digest = min(blocks, HASHED), hashlib.sha256()
    for number in range(count):
        index = number * (blocks - 1) // max(1, count - 1)
        digest.update(tokens[index * BLOCK : (index + 1) * BLOCK].cpu().numpy().data)
    return digest.hexdigest()


def _moved(tokens: torch.Tensor, device: Device) -> torch.Tensor:
    """The tokens on `device`, unless they would take a quarter of the free memory of a GPU."""
    if torch.device(device).type == "cuda":
        if tokens.dtype == torch.uint16:  # CUDA cannot index it: reinterpret, see `widen`
            tokens = tokens.view(torch.int16)
        if tokens.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
            return tokens
    return tokens.to(device)


def widen(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens of uint8, uint16, int32 or int64 as int64; int16 holds the bits of uint16."""
    return tokens.long() & 0xFFFF if tokens.dtype == torch.int16 else tokens.long()


def random_integers(seed: int, first: Row, count: int, limit: int, device: Device) -> torch.Tensor:
    """Elements `first` to `first + count - 1` of the random sequence `seed`: (count,) int64.

    The integers are in [0, limit). splitmix64 (Steele, Lea and Flood 2014) hashes the index, so
    no state is kept and all devices generate the same integers.
    """
    first = _signed(first) if isinstance(first, int) else first
    places = torch.arange(count, dtype=torch.int64, device=device) + first
    return scramble(places, seed) % limit


def scramble(places: torch.Tensor, seed: int) -> torch.Tensor:
    """Elements `places`, any int64, of the sequence `seed`: integers in [0, 2^63), same shape."""
    z = (places + _signed(seed * 0xD1342543DE82EF95)) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    z = z ^ (z >> 31 & (1 << 33) - 1)
    return z & (1 << 63) - 1


def _signed(value: int) -> int:
    """The low 64 bits reinterpreted as int64, since PyTorch cannot multiply uint64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
