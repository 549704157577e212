"""Batches from a file that the card has no room for, ready before they are asked for."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from gpt.data.batches import Data, gather
from gpt.training import distributed

AHEAD = 4  # batches


class Buffer(NamedTuple):
    """Where the thread gathers a batch: pinned, so that a card copies it while it computes."""

    chunk: torch.Tensor  # (rows, block_size + 1) int64
    copied: torch.cuda.Event | None  # by the card; until then the thread may not write again


class Prefetched(Data):
    """The same data and the same batches; a thread reads those of the coming steps.

    A run's batches follow one another, so the next ones are known. Whoever asks for others gets
    them too, after a wait. An error of the thread is raised where its batch is asked for.
    """

    def __init__(self, data: Data):
        super().__init__(data.name, data.train, data.val, data.tokenizer, data.device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._coming: deque[tuple[tuple, Future]] = deque()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._thread.shutdown(cancel_futures=True)

    def batch(self, seed: int, first_row, rows: int, block_size: int, split: str = "train"):
        if split != "train":
            return super().batch(seed, first_row, rows, block_size, split)
        place = (seed, first_row, rows, block_size)
        if not self._coming or self._coming[0][0] != place:
            self._start(place)
        _, gathered = self._coming.popleft()
        buffer = gathered.result()
        chunk = buffer.chunk.to(self.device, non_blocking=True, copy=True)
        if buffer.copied is not None:
            buffer.copied.record()
        self._request(_after(place, AHEAD), buffer)
        return chunk[:, :-1], chunk[:, 1:]

    def _start(self, place: tuple) -> None:
        """Begin at `place` with new buffers."""
        for _, unwanted in self._coming:
            unwanted.cancel()
        self._coming.clear()
        _, _, rows, block_size = place
        on_card = torch.device(self.device).type == "cuda"
        for number in range(AHEAD):
            chunk = torch.empty(rows, block_size + 1, dtype=torch.int64, pin_memory=on_card)
            buffer = Buffer(chunk, torch.cuda.Event() if on_card else None)
            self._request(_after(place, number), buffer)

    def _request(self, place: tuple, buffer: Buffer) -> None:
        self._coming.append((place, self._thread.submit(self._gather, place, buffer)))

    def _gather(self, place: tuple, buffer: Buffer) -> Buffer:
        if buffer.copied is not None:
            buffer.copied.synchronize()
        buffer.chunk.copy_(gather(self.train, *place))
        return buffer


def _after(place: tuple, count: int) -> tuple:
    """The place `count` batches of this rank later."""
    seed, first_row, rows, block_size = place
    return seed, first_row + count * distributed.world() * rows, rows, block_size
