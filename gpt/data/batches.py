"""Tokens to batches, which are a function of (seed, step) alone, gathered on the device."""

from dataclasses import dataclass

import torch

from gpt import UserError
from gpt.config.model import IGNORE_INDEX, ModelConfig
from gpt.data.tokenizers import Tokenizer


@dataclass
class Data:
    """Two splits of tokens, and the tokenizer that made them."""

    name: str
    train: torch.Tensor  # (N,) int32 of a text, or uint16 over a memory-mapped file
    val: torch.Tensor
    tokenizer: Tokenizer
    device: torch.device | str = "cpu"  # where batches are wanted

    def batch(self, seed: int, first_row, rows: int, block_size: int, split: str = "train"):
        """Rows `first_row` ... of the endless table of random rows that `seed` names.

        Step s of a run with R rows a step takes rows s*R to (s+1)*R - 1, however many passes or
        ranks share them. Returns x and y, (rows, block_size) int64, y one token ahead of x.
        """
        tokens = self.train if split == "train" else self.val
        chunk = gather(tokens, seed, first_row, rows, block_size)
        if tokens.device.type != torch.device(self.device).type:
            chunk = chunk.pin_memory().to(self.device, non_blocking=True)
        return chunk[:, :-1], chunk[:, 1:]

    def to(self, device: torch.device | str) -> "Data":
        """The same data for batches on `device`: its tokens lie there too, if there is room.

        A split that would take more than a quarter of the card's free memory stays in its file.
        """
        device, train, val = torch.device(device), self.train, self.val
        if device.type == "cuda":
            # the bits of uint16 as int16, because CUDA cannot index uint16
            train, val = (
                t.view(torch.int16) if t.dtype == torch.uint16 else t for t in (train, val)
            )
            free, _ = torch.cuda.mem_get_info(device)
            if train.nbytes > free // 4:
                return Data(self.name, train, val.to(device), self.tokenizer, device)
        return Data(self.name, train.to(device), val.to(device), self.tokenizer, device)

    @property
    def source(self) -> torch.device:
        """Where batches are made."""
        return self.train.device

    def validation(self, block_size: int):
        """The whole validation split as x and y (N, block_size), every position predicted once."""
        return windows(self.val, block_size)

    def scores(self, model, block_size: int, precision) -> dict[str, float]:
        """What a model is worth besides its loss: of a text nothing."""
        return {}

    def check_model(self, config: ModelConfig) -> None:
        """Refuse a block that one of the splits cannot fill."""
        check_no_source(config, self.name)
        block_size = config.block_size
        for split, tokens in (("training", self.train), ("validation", self.val)):
            if len(tokens) <= block_size:
                raise UserError(
                    f"the {split} split of {self.name} has {len(tokens)} tokens, and a block of "
                    f"{block_size} needs at least {block_size + 1}; give more text or a smaller "
                    "--block-size"
                )


def check_no_source(config: ModelConfig, name: str) -> None:
    """Refuse an encoder for data that has nothing for it."""
    if config.source_size:
        raise UserError(f"--source-size is for data of pairs, such as dates, which {name} is not")


def gather(tokens: torch.Tensor, seed: int, first_row, rows: int, block_size: int):
    """The rows of `Data.batch`, each with the token after it: (rows, block_size + 1) int64."""
    starts = random_integers(seed, first_row, rows, len(tokens) - block_size, tokens.device)
    window = torch.arange(block_size + 1, device=tokens.device)
    return widen(tokens[starts[:, None] + window])


def widen(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens as int64; those in int16 are the bits of uint16."""
    return tokens.long() & 0xFFFF if tokens.dtype == torch.int16 else tokens.long()


def windows(tokens: torch.Tensor, block_size: int):
    """The whole split in consecutive windows, so that every position is predicted once.

    tokens (N,) -> x, y (ceil((N-1) / block_size), block_size); the last row is filled up with
    token 0 in x and with targets that do not count in y.
    """
    count = len(tokens) - 1
    rows = -(-count // block_size)
    x = tokens.new_zeros(rows * block_size, dtype=torch.long)
    y = tokens.new_full((rows * block_size,), IGNORE_INDEX, dtype=torch.long)
    x[:count], y[:count] = widen(tokens[:-1]), widen(tokens[1:])
    return x.view(rows, block_size), y.view(rows, block_size)


def random_integers(seed: int, first, count: int, limit: int, device) -> torch.Tensor:
    """Integers [0, limit) at places `first` ... of the sequence `seed`, (count,) int64.

    splitmix64 (Steele, Lea and Flood 2014) of the place: no state, the same on every device.
    `first` may be a tensor () on the device, so that a CUDA graph replays other places.
    """
    places = torch.arange(count, dtype=torch.int64, device=device) + first
    return scramble(places, seed) % limit


def scramble(places: torch.Tensor, seed: int) -> torch.Tensor:
    """The sequence `seed` at `places`, any int64: integers [0, 2^63) of the same shape."""
    z = (places + _signed(seed * 0xD1342543DE82EF95)) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    z = z ^ (z >> 31 & (1 << 33) - 1)
    return z & (1 << 63) - 1


def _signed(value: int) -> int:
    """The low 64 bits as the int64 with the same bits, since PyTorch has no uint64 product."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
