"""Token plus position embedding.

    y[b, t] = token_table[tokens[b, t]] + position_table[t]
    dtoken_table[v]    = sum of dy[b, t] over tokens[b, t] = v
    dposition_table[t] = sum_b dy[b, t]

Decisions:
- Backward sorts the tokens stably. The rows of dy that belong to one row of the table are then
  adjacent and in a fixed order, and one program adds them in fp32. This needs no atomics, gives the
  same bits every run, rounds every element once, and writes 0 to rows that no token selects.
- With a vocabulary of at most `FEW_TOKENS`, sorting would take longer than reading dy. There the
  gradient is the product of the one-hot tokens, transposed, and dy, in shares of the rows, which
  are then added. Products with 0 and 1 are exact, but dy that is not finite reaches all tokens.
- The model asks for its residual stream in 16 bits (`dtype`), so that no other pass casts it.
- A token outside the table gives NaN; with TRITON_DEBUG=1 the kernel stops with a message.
"""

import torch
import triton
import triton.language as tl

from .common.dtypes import accumulator, triton_accumulator
from .common.launch import cdiv, launch, multiprocessors, next_power_of_2, tile
from .common.operands import check_operands
from .common.operator import Operation
from .common.sums import WIDE, sum_shares

FEW_TOKENS = 256  # of a vocabulary of bytes


@triton.jit
def embedding_forward_kernel(
    tokens_ptr,  # (N,), N = B * T
    token_table_ptr,  # (V, C)
    position_table_ptr,  # (>= T, C) or None
    y_ptr,  # (N, C)
    N, T, V, C, token_stride, position_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < N)[:, None] & (column < C)
    token = tl.load(tokens_ptr + row, mask=row < N, other=0)
    known = (token >= 0) & (token < V)
    tl.device_assert(known, "embedding: a token is outside the table")
    at = token[:, None] * token_stride + column
    y = tl.load(token_table_ptr + at, mask=inside & known[:, None], other=float("nan")).to(ACC)
    if position_table_ptr is not None:
        at = (row % T)[:, None] * position_stride + column
        y += tl.load(position_table_ptr + at, mask=inside).to(ACC)
    tl.store(y_ptr + row[:, None] * C + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def embedding_backward_kernel(
    dy_ptr,  # (N, C)
    order_ptr,  # (N,): the stable order of the tokens
    first_ptr,  # (V + 1,): where each token begins in that order
    gradient_ptr,  # (V, C)
    C, dy_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    last = tl.load(first_ptr + token + 1)
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(tl.load(first_ptr + token), last, ROWS):
        at = start + tl.arange(0, ROWS)
        row = tl.load(order_ptr + at, mask=at < last, other=0)
        inside = (at < last)[:, None] & (column < C)
        total += tl.load(dy_ptr + row[:, None] * dy_stride + column, inside, other=0.0).to(ACC)
    gradient = tl.sum(total, 0)[None, :].to(gradient_ptr.dtype.element_ty)
    tl.store(gradient_ptr + token * C + column, gradient, mask=column < C)


@triton.jit
def embedding_backward_one_hot_kernel(
    dy_ptr,  # (N, C)
    tokens_ptr,  # (N,)
    share_ptr,  # (shares, V, C)
    N, V, C, dy_stride, rows_per_share,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    share = tl.program_id(2)
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS))[:, None]
    first = share * rows_per_share  # a multiple of ROWS
    total = tl.zeros((TOKENS, COLUMNS), ACC)
    for start in range(first, tl.minimum(first + rows_per_share, N), ROWS):
        row = start + tl.arange(0, ROWS)
        selected = tl.load(tokens_ptr + row, mask=row < N, other=-1)
        inside = (row < N)[:, None] & (column < C)
        at = row.to(tl.int64)[:, None] * dy_stride + column
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0)  # (ROWS, COLUMNS)
        one_hot = (selected[None, :] == token).to(dy.dtype)  # (TOKENS, ROWS)
        total = tl.dot(one_hot, dy, total, input_precision="ieee", out_dtype=ACC)
    at = (share * V + token) * C + column  # the shares are small
    tl.store(share_ptr + at, total, mask=(token < V) & (column < C))


class Embedding(Operation):
    """tokens (B, T), token_table (V, C), position_table (P, C) or None -> y (B, T, C)."""

    schema = (
        "embedding(Tensor tokens, Tensor token_table, Tensor? position_table, ScalarType dtype)"
    )

    @staticmethod
    def empty(tokens, token_table, position_table, dtype):
        shape = (*tokens.shape, token_table.shape[1])
        return (torch.empty(shape, dtype=dtype, device=tokens.device),)

    @staticmethod
    def forward(tokens, token_table, position_table, dtype):
        (y,) = Embedding.empty(tokens, token_table, position_table, dtype)
        (B, T), (V, C) = tokens.shape, token_table.shape
        tables = [
            table if table is None or table.stride(1) == 1 else table.contiguous()
            for table in (token_table, position_table)
        ]
        strides = (0 if table is None else table.stride(0) for table in tables)
        operands = tokens.contiguous(), *tables, y, B * T, T, V, C, *strides
        options = _tiles(C, torch.promote_types(dtype, token_table.dtype), tokens.device)
        grid = cdiv(B * T, options["ROWS"]), cdiv(C, options["COLUMNS"])
        launch(embedding_forward_kernel, grid, *operands, **options)
        return (y,)

    @staticmethod
    def saved(tokens, token_table, position_table, dtype, y):
        return tokens, token_table, position_table

    @staticmethod
    def backward(gradients, saved, needs, dtype):
        (dy,), (tokens, token_table, position_table) = gradients, saved
        dtokens = dpositions = None
        (B, T), (V, C) = tokens.shape, token_table.shape
        rows = dy.reshape(B * T, C)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        if needs[1]:
            function = _one_hot_gradient if V <= FEW_TOKENS else _sorted_gradient
            dtokens = function(rows, tokens.reshape(-1), V, token_table.dtype)
        if needs[2]:
            empty = torch.empty_like if len(position_table) == T else torch.zeros_like
            dpositions = empty(position_table, memory_format=torch.contiguous_format)
            sum_shares(dy.reshape(B, T * C).contiguous(), dpositions[:T].view(T * C), WIDE)
        return None, dtokens, dpositions


def _sorted_gradient(dy, tokens, V, dtype):
    """The gradient (V, C) of the table from dy (N, C) and tokens (N,)."""
    # int32 halves the passes of the radix sort
    ordered, order = tokens.to(torch.int32).sort(stable=True)
    boundaries = torch.arange(V + 1, dtype=torch.int32, device=tokens.device)
    first = torch.searchsorted(ordered, boundaries, out_int32=True)  # (V + 1,)
    C = dy.shape[1]
    gradient = torch.empty(V, C, dtype=dtype, device=dy.device)
    options = _tiles(C, dy.dtype, dy.device)
    grid = V, cdiv(C, options["COLUMNS"])
    launch(embedding_backward_kernel, grid, dy, order, first, gradient, C, dy.stride(0), **options)
    return gradient


def _one_hot_gradient(dy, tokens, V, dtype):
    """The same for few tokens, by matrix products with two programs on each SM."""
    N, C = dy.shape
    kernel = "embedding_one_hot" if dy.element_size() == 2 else "embedding_one_hot_fp32"
    TOKENS, ROWS, COLUMNS, num_warps = tile(kernel, dy.device)
    TOKENS = min(max(next_power_of_2(V), 16), TOKENS)
    tiles = cdiv(C, COLUMNS), cdiv(V, TOKENS)
    wanted = cdiv(2 * multiprocessors(dy.device), tiles[0] * tiles[1])
    rows = cdiv(cdiv(N, wanted), ROWS) * ROWS  # of a share
    shares = dy.new_empty((cdiv(N, max(rows, 1)), V, C), dtype=accumulator(dy.dtype))
    constants = {"TOKENS": TOKENS, "ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": num_warps}
    constants["ACC"] = triton_accumulator(dy.dtype)
    operands = dy, tokens.contiguous(), shares, N, V, C, dy.stride(0), rows
    launch(embedding_backward_one_hot_kernel, (*tiles, len(shares)), *operands, **constants)
    return sum_shares(shares, torch.empty(V, C, dtype=dtype, device=dy.device), WIDE)


def _tiles(C, dtype, device):
    elements, rows, num_warps = tile("embedding", device)
    COLUMNS = min(next_power_of_2(C), elements)
    tiles = {"ROWS": min(elements // COLUMNS, rows), "COLUMNS": COLUMNS, "num_warps": num_warps}
    return tiles | {"ACC": triton_accumulator(dtype)}


def embedding(
    tokens: torch.Tensor,
    token_table: torch.Tensor,
    position_table: torch.Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """token_table[tokens], plus the first T rows of position_table if there is one.

    tokens (B, T) int64, token_table (V, C), position_table (>= T, C) -> (B, T, C) in `dtype`, by
    default the wider dtype of the tables. A token outside the table gives NaN. Raises ValueError if
    shapes or dtypes do not fit.
    """
    form = "tokens (B, T) int64, token_table (V, C), position_table (>= T, C)"
    check_operands("embedding", form, tokens, token_table, position_table)
    if dtype is None:
        dtype = token_table.dtype
        if position_table is not None:
            dtype = torch.promote_types(dtype, position_table.dtype)
    return Embedding.apply(tokens, token_table, position_table, dtype)
