"""Batches of a file that does not fit in GPU memory, read ahead by a thread."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from .batches import TokenDataset, gather
from .dataset import Batch, Row

AHEAD = 4  # batches, or those of a step


class Prefetched(TokenDataset):
    """The same data and the same batches; a thread reads those of the next steps.

    Batches of a run are consecutive, so the next ones are known. Any other batch is read on demand.
    An exception of the thread is raised by the call that asks for its batch.
    """

    def __init__(self, data: TokenDataset, world_size: int = 1, passes: int = 1):
        """world_size: ranks, each of which takes every world_size-th batch. passes: of a step."""
        super().__init__(data.name, data.train, data.val, data.tokenizer, data.device)
        self.world_size, self.ahead = world_size, max(AHEAD, passes)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._coming: deque[tuple[tuple, Future]] = deque()

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def batch(
        self, seed: int, first: Row, rows: int, block_size: int, split: str = "train"
    ) -> Batch:
        if split != "train":
            return super().batch(seed, first, rows, block_size, split)
        arguments, step = (seed, int(first), rows, block_size), self.world_size * rows
        if not self._coming or self._coming[0][0] != arguments:
            for _, unwanted in self._coming:
                unwanted.cancel()
            self._coming.clear()
            for count in range(self.ahead):
                self._request(seed, int(first) + count * step, rows, block_size)
        _, gathered = self._coming.popleft()
        self._request(seed, int(first) + self.ahead * step, rows, block_size)
        return self.on_device(gathered.result())

    def _request(self, *arguments: int) -> None:
        self._coming.append((arguments, self._thread.submit(gather, self.train, *arguments)))
