"""Token plus position embedding.

    y[b, t] = token_table[tokens[b, t]] + position_table[t]
    dtoken_table[v]    = sum of dy[b, t] over tokens[b, t] = v
    dposition_table[t] = sum_b dy[b, t]

Decisions:
- Backward sorts the tokens stably. The rows of dy that belong to one row of the table are then
  adjacent and in a fixed order, and one program adds them in fp32. This needs no atomics, gives the
  same bits every run, rounds every element once, and writes 0 to rows that no token selects.
- With a small vocabulary, one common token would occupy a single program for long: one in seven of
  the 16,384 characters of the lecture's batch is a space. Then several programs share a row of the
  table, as many as the shapes give, and their partial sums are added in order.
- A token outside the table gives NaN; with TRITON_DEBUG=1 the kernel stops with a message.
"""

import torch
import triton
import triton.language as tl

from .common.dtypes import accumulator, triton_accumulator
from .common.launch import cdiv, launch, next_power_of_2, tile
from .common.operands import check_operands
from .common.operator import Operation

ROWS_PER_SHARE = 8  # fewest rows of dy per program if all tokens were equally common
MOST_SHARES = 32


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
    gradient_ptr,  # (shares, V, C)
    V, C, dy_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    token, share, shares = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    column = (tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    first = tl.load(first_ptr + token)
    last = tl.load(first_ptr + token + 1)
    length = tl.cdiv(last - first, shares)
    first += share * length
    last = tl.minimum(first + length, last)
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(first, last, ROWS):
        at = start + tl.arange(0, ROWS)
        row = tl.load(order_ptr + at, mask=at < last, other=0)
        inside = (at < last)[:, None] & (column < C)
        total += tl.load(dy_ptr + row[:, None] * dy_stride + column, inside, other=0.0).to(ACC)
    gradient = tl.sum(total, 0)[None, :].to(gradient_ptr.dtype.element_ty)
    at = (share.to(tl.int64) * V + token) * C + column
    tl.store(gradient_ptr + at, gradient, mask=column < C)


class Embedding(Operation):
    """tokens (B, T), token_table (V, C), position_table (P, C) or None -> y (B, T, C)."""

    schema = (
        "embedding(Tensor tokens, Tensor token_table, Tensor? position_table, int? padding_idx)"
    )

    @staticmethod
    def empty(tokens, token_table, position_table, padding_idx):
        dtype = token_table.dtype
        if position_table is not None:
            dtype = torch.promote_types(dtype, position_table.dtype)
        shape = (*tokens.shape, token_table.shape[1])
        return (torch.empty(shape, dtype=dtype, device=tokens.device),)

    @staticmethod
    def forward(tokens, token_table, position_table, padding_idx):
        (y,) = Embedding.empty(tokens, token_table, position_table, padding_idx)
        (B, T), (V, C) = tokens.shape, token_table.shape
        tables = [
            table if table is None or table.stride(1) == 1 else table.contiguous()
            for table in (token_table, position_table)
        ]
        strides = (0 if table is None else table.stride(0) for table in tables)
        operands = tokens.contiguous(), *tables, y, B * T, T, V, C, *strides
        options = _tiles(C, y.dtype, tokens.device)
        grid = cdiv(B * T, options["ROWS"]), cdiv(C, options["COLUMNS"])
        launch(embedding_forward_kernel, grid, *operands, **options)
        return (y,)

    @staticmethod
    def saved(tokens, token_table, position_table, padding_idx, y):
        return tokens, token_table, position_table

    @staticmethod
    def backward(gradients, saved, needs, padding_idx):
        (dy,), (tokens, token_table, position_table) = gradients, saved
        dtokens = dpositions = None
        if needs[1]:
            dtokens = _token_gradient(dy, tokens, token_table.shape, token_table.dtype)
            if padding_idx is not None:
                dtokens[padding_idx] = 0
        if needs[2]:
            dpositions = torch.zeros_like(position_table, memory_format=torch.contiguous_format)
            dpositions[: dy.shape[1]] = dy.sum(0)
        return None, dtokens, dpositions


def _token_gradient(dy, tokens, shape, dtype):
    V, C = shape
    dy = dy.reshape(-1, C)
    if dy.stride(1) != 1:
        dy = dy.contiguous()
    # int32 halves the passes of the radix sort
    ordered, order = tokens.reshape(-1).to(torch.int32).sort(stable=True)
    boundaries = torch.arange(V + 1, dtype=torch.int32, device=tokens.device)
    first = torch.searchsorted(ordered, boundaries, out_int32=True)  # (V + 1,)
    shares = min(max(len(dy) // (ROWS_PER_SHARE * V), 1), MOST_SHARES)
    wide = accumulator(dtype) if shares > 1 else dtype
    gradient = torch.empty(shares, V, C, dtype=wide, device=dy.device)
    options = _tiles(C, dy.dtype, dy.device)
    grid = V, shares, cdiv(C, options["COLUMNS"])
    operands = dy, order, first, gradient, V, C, dy.stride(0)
    launch(embedding_backward_kernel, grid, *operands, **options)
    return gradient.sum(0).to(dtype) if shares > 1 else gradient[0]


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
    padding_idx: int | None = None,
) -> torch.Tensor:
    """token_table[tokens], plus the first T rows of position_table if there is one.

    tokens (B, T) int64, token_table (V, C), position_table (>= T, C) -> (B, T, C), in the wider
    dtype of the tables. As in `torch.nn.functional.embedding`, the row `padding_idx` of the token
    table, which may count from the end, gets no gradient. A token outside the table gives NaN.
    Raises ValueError if shapes or dtypes do not fit.
    """
    form = "tokens (B, T) int64, token_table (V, C), position_table (>= T, C)"
    check_operands("embedding", form, tokens, token_table, position_table)
    V = token_table.shape[0]
    if padding_idx is not None and not -V <= padding_idx < V:
        raise ValueError(
            f"embedding: padding_idx is {padding_idx} for a table of {V} rows; give a row of it"
        )
    return Embedding.apply(tokens, token_table, position_table, padding_idx)
