"""The interface between data and training: what a text, token files and a task have in common."""

from typing import Protocol

import torch

from ..config.model import ModelConfig
from .tokenizers import Tokenizer

# x and y, each (rows, block_size) int64: y is one token ahead, or IGNORE_INDEX if it does not count
Batch = tuple[torch.Tensor, torch.Tensor]
Device = torch.device | str
Row = int | torch.Tensor  # a tensor () on the device lets a CUDA graph replay with other rows


class Dataset(Protocol):
    """A source of batches with a validation split: a `TokenDataset` or a task."""

    name: str
    tokenizer: Tokenizer
    device: Device  # of the batches

    @property
    def source(self) -> torch.device:
        """The device that builds the batches; they are copied if it is not `device`."""
        return torch.device(self.device)

    def to(self, device: Device) -> "Dataset":
        """The same data with batches on `device`."""

    def fingerprint(self) -> dict:
        """Plain JSON that differs for other data; {} for a task, whose name says everything."""
        return {}

    def batch(
        self, seed: int, first: Row, rows: int, block_size: int, split: str = "train"
    ) -> Batch:
        """The next `rows` rows from `first` of the endless random sequence that `seed` selects.

        Step s of a run with R rows per step takes rows s * R to (s + 1) * R - 1, however many
        passes or ranks share them: a batch depends on seed and step alone.
        """

    def validation_rows(self, block_size: int) -> int:
        """The number of rows of the validation split, which predict each position once."""

    def validation(self, block_size: int, first: int = 0, rows: int | None = None) -> Batch:
        """The next `rows` rows from `first` of the validation split, or what there is of them."""

    def check_model(self, config: ModelConfig) -> None:
        """Raise UserError if a model of these sizes cannot be trained on this data."""
