"""Documents, variable lengths and padding: the ranges, and attention within them."""

from functools import partial

import pytest
import torch

from kernels import KeyRanges, torch_ops
from kernels.flash_attention.attention import attention_qkv
from tests.kernels.flash_attention.plain import hold, operands
from tests.numerics import differentiate
from tests.operands import DEVICE, randn


def tensor(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


DOCUMENTS = tensor([0] * 40 + [7] * 3 + [3] * 27, [5] * 70)
PADDED = torch.arange(70, device=DEVICE) % 53 >= tensor([20], [0], [52])  # left, right, both
PADDED[1:, 50:], PADDED[0, 53:] = False, True
PADDED[2] = False  # no token at all
RANGES = {
    "documents": KeyRanges.of_documents(DOCUMENTS),
    "documents of the whole batch": KeyRanges.of_documents(DOCUMENTS[:1]),
    "lengths": KeyRanges.of_cu_seqlens(tensor(0, 33, 33, 34, 60), 70),
    "lengths of keys": KeyRanges.of_cu_seqlens(tensor(0, 9, 70), 70, tensor(0, 20, 200), 200),
    "padding": KeyRanges.of_padding(PADDED, 70),
}


def seen(ranges, Tk):
    """(B, Tq, Tk): which row may see which key, by both of the ranges."""
    key, row = torch.arange(Tk), torch.arange(ranges.of_rows.shape[1])[:, None]
    by_rows, by_keys = (x[..., None, :].cpu() for x in ranges)
    of_rows = (key >= by_rows[..., 0]) & (key < by_rows[..., 1])
    of_keys = (row >= by_keys[..., 0].mT) & (row < by_keys[..., 1].mT)
    assert torch.equal(of_rows, of_keys)
    return of_rows


def test_the_constructors():
    same = DOCUMENTS[:, :, None] == DOCUMENTS[:, None]
    assert torch.equal(seen(RANGES["documents"], 70), same.cpu())
    assert torch.equal(seen(RANGES["padding"], 70), PADDED.cpu()[:, None].expand(-1, 70, -1))
    sequence = torch.tensor([0] * 33 + [2] + [3] * 26 + [4] * 10)
    same = (sequence[:, None] == sequence) & (sequence < 4)
    assert torch.equal(seen(RANGES["lengths"], 70)[0], same)
    row, key = torch.arange(70)[:, None] >= 9, torch.arange(200)
    assert torch.equal(seen(RANGES["lengths of keys"], 200)[0], (row == (key >= 20)))


@pytest.mark.parametrize(
    ("name", "Tk", "dtype", "options"),
    [
        ("documents", 70, torch.float32, {}),
        ("documents of the whole batch", 70, torch.float32, {"window": 5, "p": 0.2}),
        ("lengths", 70, torch.float32, {"causal": False}),
        ("lengths of keys", 200, torch.float16, {"causal": False}),
        ("padding", 70, torch.float16, {"causal": False}),
        ("padding", 70, torch.float32, {"causal": "bottom_right", "p": 0.2}),
        ("documents", 70, torch.float32, {"softcap": 3.0, "window": 9}),
    ],
)
def test_attention_within_ranges(name, Tk, dtype, options):
    B = max(2, len(RANGES[name].of_rows))
    hold(operands(B, 2, 1, 70, Tk, 16, dtype), ranges=RANGES[name], **options)


@pytest.mark.parametrize("table", [torch_ops.attention_qkv, attention_qkv])
def test_a_packed_document_is_attended_to_as_if_alone(table):
    """Nothing outside the tiles of a document is read: it could be NaN."""
    cu_seqlens, document = tensor(0, 32, 96, 105), slice(32, 96)
    qkv, dout = randn(1, 105, 3 * 32), randn(1, 105, 32, seed=3)
    run = partial(differentiate, partial(table, n_head=2))
    alone = run([qkv[:, document]], [dout[:, document]])
    if table is attention_qkv:
        for outside in (slice(32), slice(96, None)):
            qkv[:, outside], dout[:, outside] = torch.nan, torch.nan
    ranges = KeyRanges.of_cu_seqlens(cu_seqlens, 105)
    packed = differentiate(partial(table, n_head=2, ranges=ranges), [qkv], [dout])
    for actual, expected in zip(sum(packed, ()), sum(alone, ()), strict=True):
        torch.testing.assert_close(actual[:, document], expected)
