"""Token and position embedding: a gather, and its transpose without atomics."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from kernels import torch_ops
from kernels.token_embedding import embedding
from tests.numerics import hold_against
from tests.operands import DEVICE, DTYPES, randn


def operands(B, T, V, C, dtype=torch.float32):
    tokens = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return tokens, randn(V, C, dtype=dtype), randn(T + 2, C, dtype=dtype, seed=1)


def check(tokens, *tables):
    """y has the wider dtype of both tables."""
    dtypes = [table.dtype for table in tables if table is not None]
    wider = torch.promote_types(dtypes[0], dtypes[-1])
    hold_against(embedding, torch_ops.embedding, (tokens, *tables), out_dtype=wider)


@pytest.mark.parametrize(
    ("B", "T", "V", "C"),
    [
        *((2, 5, 7, C) for C in (1, 3, 33, 64, 257)),
        (8, 64, 7, 33),  # several programs share the rows of dy
        (1, 300, 300, 5),  # sorted
        (1, 300, 130, 5),  # more tokens than a tile
        (2, 3, 70, 16),  # most rows of the table are not selected
        (3, 1, 300, 5000),  # rows longer than a tile
        (1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_rounded_once(B, T, V, C, dtype):
    check(*operands(B, T, V, C, dtype))


def test_without_positions_and_with_one_token_everywhere():
    tokens, token_table, position_table = operands(4, 33, 9, 8)
    check(tokens, token_table, None)
    check(torch.full_like(tokens, 3), token_table, position_table)
    check(torch.full((1, 300), 3, device=DEVICE), randn(300, 8), None)  # many tiles of one row


@pytest.mark.parametrize("V", [9, 300])
def test_the_result_in_another_dtype(V):
    inputs, dtype = operands(4, 33, V, 8), torch.bfloat16
    hold_against(partial(embedding, dtype=dtype), torch_ops.embedding, inputs, out_dtype=dtype)
    assert torch_ops.embedding(*inputs, dtype=dtype).dtype == dtype


def test_gradients_match_the_definition():
    for V in (5, 300):  # by products and by sorting
        tokens, *tables = operands(2, 3, V, 3, torch.float64)
        tables = [table.requires_grad_() for table in tables]
        assert gradcheck(partial(embedding, tokens), tables, fast_mode=True)


def test_partial_sums_are_not_rounded():
    # three shares of 64 rows with a sum of 257, which is 256 in bf16
    tokens = torch.full((3, 64), 5, device=DEVICE)
    token_table = torch.zeros(32, 1, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    dy = torch.zeros(3, 64, 1, dtype=torch.bfloat16, device=DEVICE)
    dy[:, 0], dy[:, 1] = 256, 1
    embedding(tokens, token_table).backward(dy)
    assert token_table.grad[5] == 772  # 771 in bf16, not 768


@pytest.mark.parametrize("wrong", [7, -1, 2**40])
def test_a_token_outside_the_table_gives_nan(wrong):
    tokens, *tables = operands(1, 5, 7, 16)
    tokens[0, 2] = wrong
    y = embedding(tokens, *tables)
    assert y[0, 2].isnan().all()
    assert y[0, [0, 1, 3, 4]].isfinite().all()


def test_tables_of_two_dtypes():
    tokens, token_table, position_table = operands(2, 5, 7, 3)
    check(tokens, token_table.bfloat16(), position_table)
