"""The packed attention of the models: that of its parts, without copies."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import torch_ops
from kernels.common import launch
from kernels.flash_attention.attention import attention, attention_qkv
from tests.kernels.flash_attention.plain import operands, plain_attention
from tests.numerics import hold_against
from tests.operands import LAYOUTS, randn


@pytest.mark.parametrize("table", [torch_ops.attention_qkv, attention_qkv])
@pytest.mark.parametrize(("H", "Hkv", "window"), [(2, 2, 7), (4, 2, 0), (6, 2, 20), (3, 1, 5)])
def test_packed_is_attention_of_the_parts(table, H, Hkv, window):
    def plain(qkv):
        q, k, v = qkv.view(2, 33, H + 2 * Hkv, 8).transpose(1, 2).split((H, Hkv, Hkv), dim=1)
        return plain_attention(q, k, v, window=window).transpose(1, 2).reshape(2, 33, H * 8)

    qkv = randn(2, 33, (H + 2 * Hkv) * 8)
    ours = partial(table, n_head=H, n_kv_head=Hkv, window=window)
    hold_against(ours, plain, (qkv,), compute=qkv.dtype, gradient_factor=3.0)


def wide(x):
    """The same values in the first columns of wider rows, the batch second in memory."""
    both = torch.cat((x, x), dim=-1).transpose(0, 1).contiguous().transpose(0, 1)
    return both[..., : x.shape[-1]]


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=str)
@pytest.mark.parametrize("layout", [*LAYOUTS, wide])
def test_a_packed_projection_and_angles_of_any_layout(layout, options):
    qkv = layout(randn(2, 33, 3 * 2 * 16, dtype=torch.bfloat16))
    cos, sin = (layout(randn(33, 16, seed=seed)) for seed in (11, 12))
    if options:
        options = options | {"cos": cos, "sin": sin}
    functions = (partial(f, n_head=2, **options) for f in (attention_qkv, torch_ops.attention_qkv))
    hold_against(*functions, (qkv,), compute=qkv.dtype, gradient_factor=3.0)


FREE = ("empty", "new_empty", "detach", "_unsafe_view")  # allocations and unmarked views


class Count(TorchDispatchMode):
    """Collect the PyTorch operations that run inside, except views and allocations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation._schema.name.removeprefix("aten::")
        if not operation.is_view and not name.startswith(FREE):
            self.names.append(name)
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize("Hkv", [2, 1])
def test_the_packed_operation_copies_nothing(Hkv):
    qkv = randn(2, 33, (2 + 2 * Hkv) * 16, dtype=torch.float16).requires_grad_()
    dout = randn(2, 33, 32, dtype=torch.float16)
    with Count() as count, launch.record(90) as launches:
        (dqkv,) = torch.autograd.grad(attention_qkv(qkv, 2, n_kv_head=Hkv), qkv, dout)
    assert count.names == []
    assert len(launches) == 3
    assert dqkv.is_contiguous()


def test_joining_the_heads_copies_nothing():
    tensors = [tensor.requires_grad_() for tensor in operands(2, 2, 2, 33, 33, 16)]
    dout = randn(2, 33, 32)
    with Count() as count, launch.record(90):
        out = attention(*tensors).transpose(1, 2).reshape(2, 33, 32)
        torch.autograd.grad(out, tensors, dout)
    assert count.names == []
