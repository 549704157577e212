"""Tables on the device by which one launch reaches many tensors.

A kernel cannot take a list of tensors, but it can read where they lie: a table of addresses, one
row per tensor, and a table of chunks, one row per program, say all there is to say. Whole chunks
and their ends move in 16-byte vectors; what is left of a tensor, less than a vector, is done
apart, because a mask that cuts a vector would make every load of the chunk narrow.
"""

import torch
import triton
import triton.language as tl

from kernels.common.launch import cdiv

CHUNK = 2048  # elements of a program: 8 for each of 256 threads
VECTOR = 8  # elements that fill 16 bytes in 16 bits
WIDE = 16  # bytes of the widest load


@triton.jit
def pointer(addresses_ptr, place, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address at `place` of a table, a multiple of ALIGNED bytes, as a pointer to DTYPE."""
    address = tl.load(addresses_ptr + place)
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), ALIGNED)


@triton.jit
def chunk(chunks_ptr, CHUNK: tl.constexpr, VECTOR: tl.constexpr):
    """This program's tensor, where its chunk begins, and its length in whole vectors and in all."""
    row = chunks_ptr + tl.program_id(0).to(tl.int64) * 3
    length = tl.load(row + 2)
    return tl.load(row), tl.load(row + 1).to(tl.int64) * CHUNK, length // VECTOR * VECTOR, length


def chunks(lengths, device):
    """(chunks, 3) int32: the tensor, the place in units of CHUNK, the length."""
    rows = [
        (tensor, place, min(CHUNK, length - place * CHUNK))
        for tensor, length in enumerate(lengths)
        for place in range(cdiv(length, CHUNK))
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device).reshape(-1, 3)


class Sent:
    """A table on the device that follows rows of numbers on the host, without synchronisation.

    Rows that change while a CUDA graph is captured are sent by the first `send` after it: a graph
    must not replay the copy, and its kernels read the table only when they are replayed.
    """

    def __init__(self, dtype, device):
        self.dtype, self.device = dtype, torch.device(device)
        self.rows = self.tensor = self.unsent = None

    def send(self, rows) -> bool:
        """Send `rows` to the device if they have changed; returns whether they have."""
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
