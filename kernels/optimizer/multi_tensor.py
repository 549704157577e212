"""Tables on the device through which one launch reaches many tensors.

A kernel cannot take a list of tensors, but it can read their addresses from a table with one row
per tensor, and its own work from a table of chunks with one row per program. Whole vectors of a
chunk move in 16 bytes; the rest of a tensor, less than a vector, is handled separately, because a
mask that cuts a vector would make every load of the chunk narrow.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ..common.launch import cdiv

CHUNK = 2048  # elements per program: 8 for each of 256 threads
VECTOR = 8  # elements of 16 bits in 16 bytes
WIDE = 16  # bytes of the widest load

# Columns of the table of chunks, and their number. The chunk is counted in units of CHUNK.
TENSOR, PLACE, LENGTH, COLUMNS = map(tl.constexpr, range(4))


@triton.jit
def pointer(addresses_ptr, place, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address at index `place` of a table, aligned to ALIGNED bytes, as a pointer to DTYPE."""
    address = tl.load(addresses_ptr + place)
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), ALIGNED)


@triton.jit
def chunk(chunks_ptr, CHUNK: tl.constexpr, VECTOR: tl.constexpr):
    """This program's tensor, the start of its chunk, its length in whole vectors, and in total."""
    row = chunks_ptr + tl.program_id(0).to(tl.int64) * COLUMNS
    length = tl.load(row + LENGTH)
    start = tl.load(row + PLACE).to(tl.int64) * CHUNK
    return tl.load(row + TENSOR), start, length // VECTOR * VECTOR, length


def chunks(lengths: list[int], device: torch.device) -> torch.Tensor:
    """The table of chunks of tensors with `lengths` elements, (chunks, COLUMNS) int32."""
    rows = [
        (tensor, place, min(CHUNK, length - place * CHUNK))
        for tensor, length in enumerate(lengths)
        for place in range(cdiv(length, CHUNK))
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device).reshape(-1, COLUMNS.value)


class Sent:
    """A table on the device that follows rows of numbers on the host, without synchronisation.

    Rows that change while a CUDA graph is captured are sent by the first `send` after the capture:
    a graph must not replay the copy, and its kernels read the table only when they are replayed.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str):
        self.dtype, self.device = dtype, torch.device(device)
        self.rows: Any = None
        self.tensor: Any = None
        self.unsent: torch.Tensor | None = None

    def send(self, rows: list[list[int]] | list[list[float]]) -> bool:
        """Send `rows` to the device if they have changed; return whether they have."""
        changed = rows != self.rows
        if changed:
            self.rows, self.unsent = rows, torch.tensor(rows, dtype=self.dtype)
        if self.unsent is not None and not self._is_capturing():
            if self.tensor is None:
                self.tensor = torch.empty_like(self.unsent, device=self.device)
            host = self.unsent.pin_memory() if self.tensor.is_cuda else self.unsent
            self.tensor.copy_(host, non_blocking=True)
            self.unsent = None
        return changed

    def _is_capturing(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
