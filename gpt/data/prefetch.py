"""Batches of a file that does not fit in GPU memory, read ahead by a thread."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from gpt.data.batches import TokenDataset, gather
from gpt.data.dataset import Batch, Row

AHEAD = 4  # batches


class Place(NamedTuple):
    """The arguments of `batch` that identify a training batch."""

    seed: int
    first_row: int
    rows: int
    block_size: int


class Buffer(NamedTuple):
    """Where the thread gathers a batch: pinned memory, for a copy that overlaps computation."""

    chunk: torch.Tensor  # (rows, block_size + 1) int64
    copied: torch.cuda.Event | None  # the thread may overwrite the chunk after this


class Prefetched(TokenDataset):
    """The same data and the same batches; a thread reads those of the next steps.

    Batches of a run are consecutive, so the next ones are known. Any other batch is read on demand.
    An exception of the thread is raised by the call that asks for its batch.
    """

    def __init__(self, data: TokenDataset, world_size: int = 1):
        """world_size: the number of ranks, each of which takes every world_size-th batch."""
        super().__init__(data.name, data.train, data.val, data.tokenizer, data.device)
        self.world_size = world_size
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._coming: deque[tuple[Place, Future]] = deque()

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def batch(
        self, seed: int, first_row: Row, rows: int, block_size: int, split: str = "train"
    ) -> Batch:
        if split != "train":
            return super().batch(seed, first_row, rows, block_size, split)
        place = Place(seed, int(first_row), rows, block_size)
        if not self._coming or self._coming[0][0] != place:
            self._restart(place)
        _, gathered = self._coming.popleft()
        buffer = gathered.result()
        chunk = buffer.chunk.to(self.device, non_blocking=True, copy=True)
        if buffer.copied is not None:
            buffer.copied.record()
        self._request(self._after(place, AHEAD), buffer)
        return chunk[:, :-1], chunk[:, 1:]

    def _restart(self, place: Place) -> None:
        """Read ahead from `place`, into new buffers."""
        for _, unwanted in self._coming:
            unwanted.cancel()
        self._coming.clear()
        on_gpu = torch.device(self.device).type == "cuda"
        shape = (place.rows, place.block_size + 1)
        for number in range(AHEAD):
            chunk = torch.empty(shape, dtype=torch.int64, pin_memory=on_gpu)
            buffer = Buffer(chunk, torch.cuda.Event() if on_gpu else None)
            self._request(self._after(place, number), buffer)

    def _request(self, place: Place, buffer: Buffer) -> None:
        self._coming.append((place, self._thread.submit(self._gather, place, buffer)))

    def _gather(self, place: Place, buffer: Buffer) -> Buffer:
        if buffer.copied is not None:
            buffer.copied.synchronize()
        buffer.chunk.copy_(gather(self.train, *place))
        return buffer

    def _after(self, place: Place, count: int) -> Place:
        """This rank's batch `count` batches after `place`."""
        rows = count * self.world_size * place.rows
        return place._replace(first_row=place.first_row + rows)
