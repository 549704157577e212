"""Dropout masks that any kernel can replay: each element's mask is a pure function of its position.

Philox 4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps a counter of
four 32-bit words to four random words without any state. One call serves a cell of eight elements
with 16 bits each:

    bits(row, column) = half k of philox(key = seed, counter = (cell row, cell column, stream))
    keep = bits >= threshold,  threshold = round(65536 p)

Forward and backward therefore see the same mask without storing it, whatever their tiles. p is
rounded to a multiple of 1/65536 (0.2 becomes 0.1999969), and kept elements are scaled by the
inverse of the exact probability of being kept, 65536 / (65536 - threshold), so the mean is exact.

A call is cheap if one thread owns all eight elements of its cell, so there are two shapes of cells:
- `keep_in_rows`: 8 adjacent columns, for tensors that are read and written in rows;
- `keep_in_tile`: rows {r, r+8} by columns {c, c+8, c+16, c+24}, for the accumulator of a matrix
  product. There a thread owns all eight, and in the transposed accumulator (dK and dV of attention)
  the four of {r, r+8} by {c, c+8}. With 8 bits per element a cell would have sixteen elements, of
  which a thread of the transposed accumulator still owns four, and p would be a multiple of 1/256.
"""

import torch
import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)  # the fewest that pass BigCrush (Salmon et al.); FlashAttention uses 7


def threshold_and_scale(p: float) -> tuple[int, float]:
    """The threshold that drops with probability `p`, and the scale of elements that are kept."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout_p is {p}; give a probability from 0 to 1")
    threshold = round(p * 65536)
    if threshold == 65536:
        return 65535, 0.0  # the threshold has 16 bits; the factor 0 drops the remaining elements
    return threshold, 65536 / (65536 - threshold)


def new_seed(device: torch.device) -> torch.Tensor:
    """A seed, () int64 on `device`, from its default generator."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def seed_of_call(seed: torch.Tensor | None, p: float, device: torch.device) -> torch.Tensor | None:
    """The given seed or else a new one; None if nothing is dropped, so that nothing is drawn."""
    threshold, _ = threshold_and_scale(p)
    if threshold == 0:
        return None
    return new_seed(device) if seed is None else seed


@triton.jit
def keep_in_rows(seed, stream, rows, threshold, COLUMNS: tl.constexpr):
    """The mask (R, COLUMNS) of `rows` (R,), for COLUMNS a power of two from 8 on."""
    cell_row = rows.to(tl.int32)[:, None]  # (R, 1)
    cell_column = tl.arange(0, COLUMNS // 8)[None, :]  # (1, COLUMNS / 8)
    stream = tl.cast(stream, tl.uint32)
    a, b, c, d = tl.philox(seed, cell_row, cell_column, stream, 0, ROUNDS)  # (R, COLUMNS / 8) each
    a, b, c, d = a[:, :, None], b[:, :, None], c[:, :, None], d[:, :, None]
    k = tl.arange(0, 8)[None, None, :]
    word = tl.where(k < 4, tl.where(k < 2, a, b), tl.where(k < 6, c, d))  # (R, COLUMNS / 8, 8)
    return tl.reshape(_is_kept(word, k % 2, threshold), (rows.shape[0], COLUMNS))


@triton.jit
def keep_in_tile(
    seed, stream, substream, first_row, first_column, threshold, M: tl.constexpr, N: tl.constexpr
):
    """The mask (M, N) of rows first_row + [0, M) and columns first_column + [0, N).

    `first_row` and M are multiples of 16, `first_column` and N of 32; M and N are powers of two.
    """
    # a row is 16 m + 8 i + r, a column 32 n + 16 j + 8 h + c: dimensions (m, i, r, n, j, h, c)
    cell_row = first_row // 2 + tl.arange(0, M // 2)  # 8 m + r
    cell_row = tl.reshape(cell_row, (M // 16, 1, 8, 1, 1, 1, 1))
    cell_column = first_column // 4 + tl.arange(0, N // 4)  # 8 n + c
    cell_column = tl.reshape(cell_column, (1, 1, 1, N // 32, 1, 1, 8))
    stream, substream = tl.cast(stream, tl.uint32), tl.cast(substream, tl.uint32)
    a, b, c, d = tl.philox(seed, cell_row, cell_column, stream, substream, ROUNDS)
    i = tl.reshape(tl.arange(0, 2), (1, 2, 1, 1, 1, 1, 1))
    j = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 2, 1, 1))
    h = tl.reshape(tl.arange(0, 2), (1, 1, 1, 1, 1, 2, 1))
    word = tl.where(j == 0, tl.where(i == 0, a, b), tl.where(i == 0, c, d))
    return tl.reshape(_is_kept(word, h, threshold), (M, N))


@triton.jit
def _is_kept(word, half, threshold):
    """Whether the upper (half 0) or lower (half 1) 16 bits of `word` are at least the threshold."""
    return (word << (16 * half).to(tl.uint32)) >= (tl.cast(threshold, tl.uint32) << 16)


# --- the same masks in PyTorch, on any device -----------------------------------------------------


def rows_kept(seed: torch.Tensor, stream: int, rows: int, columns: int, p: float) -> torch.Tensor:
    """The mask of `keep_in_rows` over a whole tensor: booleans (rows, columns)."""
    row = torch.arange(rows, device=seed.device)[:, None]
    column = torch.arange(columns, device=seed.device)
    words = _philox(seed, row, column // 8, stream, 0)  # (4, rows, columns)
    return _kept(words, column % 8 // 2, column % 2, p)


def attention_kept(
    seed: torch.Tensor, batches: int, heads: int, queries: int, keys: int, p: float
) -> torch.Tensor:
    """The mask of the attention kernels: booleans (batches, heads, queries, keys)."""
    head, batch, row, column = (
        torch.arange(size, device=seed.device) for size in (heads, batches, queries, keys)
    )
    head, batch, row = head[:, None, None], batch[:, None, None, None], row[:, None]
    cell_row, cell_column = row // 16 * 8 + row % 8, column // 32 * 8 + column % 8
    words = _philox(seed, cell_row, cell_column, head, batch)  # (4, batches, heads, rows, columns)
    return _kept(words, row % 16 // 8 + column % 32 // 16 * 2, column % 16 // 8, p)


def _kept(words, index, half, p):
    """Select word `index` of four, then its upper or lower 16 bits, and compare them with `p`."""
    threshold, scale = threshold_and_scale(p)
    word = torch.take_along_dim(words, index.expand(words.shape[1:])[None], dim=0)[0]
    bits = (word >> (16 - 16 * half)) & 0xFFFF
    return (bits >= threshold) & (scale > 0)


def _philox(seed, *counter):
    """Philox 4x32 on int64 tensors that hold 32-bit words; returns four words, stacked."""
    low = 0xFFFFFFFF
    a, b, c, d = torch.broadcast_tensors(
        *(torch.as_tensor(word, device=seed.device) & low for word in counter)
    )
    key_0, key_1 = seed & low, (seed >> 32) & low
    for _ in range(ROUNDS.value):
        product_0, product_1 = 0xD2511F53 * a, 0xCD9E8D57 * c  # int64 overflow wraps
        a, b, c, d = (
            (product_1 >> 32) & low ^ b ^ key_0,
            product_1 & low,
            (product_0 >> 32) & low ^ d ^ key_1,
            product_0 & low,
        )
        key_0, key_1 = (key_0 + 0x9E3779B9) & low, (key_1 + 0xBB67AE85) & low
    return torch.stack((a, b, c, d))
