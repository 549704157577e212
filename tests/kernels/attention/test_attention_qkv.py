"""The packed attention of the models: the parts, no copies, the lecture's heads."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.config.model import ModelConfig
from gpt.models import packed, reference
from gpt.models.layouts import packed_from_lecture
from gpt.models.residual import IntoStream
from kernels import torch_ops
from kernels.attention.attention import attention, attention_qkv
from kernels.common import launch, philox
from tests.kernels.attention.plain_attention import SEED, operands, plain_attention
from tests.numerics import DEVICE, LAYOUTS, hold_against, randn

OPS = torch_ops.OPS._replace(attention=attention, attention_qkv=attention_qkv)


@pytest.mark.parametrize(("T", "H", "D"), [(1, 1, 1), (3, 2, 1), (7, 1, 1)])
def test_packed_gradients_match_the_definition(T, H, D):
    qkv = randn(1, T, 3 * H * D, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda qkv: attention_qkv(qkv, H), [qkv])


@pytest.mark.parametrize("table", [torch_ops.attention_qkv, attention_qkv])
@pytest.mark.parametrize(("H", "Hkv", "window"), [(2, 2, 7), (4, 2, 0), (6, 2, 20), (3, 1, 5)])
def test_packed_is_attention_of_the_parts(table, H, Hkv, window):
    def plain(qkv):
        q, k, v = qkv.view(2, 33, H + 2 * Hkv, 8).transpose(1, 2).split((H, Hkv, Hkv), dim=1)
        return plain_attention(q, k, v, window=window).transpose(1, 2).reshape(2, 33, H * 8)

    qkv = randn(2, 33, (H + 2 * Hkv) * 8)
    ours = partial(table, n_head=H, n_kv_head=Hkv, window=window)
    hold_against(ours, plain, (qkv,), compute=qkv.dtype, gradient_factor=3.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_projection_of_any_layout(layout):
    dtype = torch.bfloat16

    def plain(qkv):
        B, T, _ = qkv.shape
        q, k, v = qkv.view(B, T, 3, 2, -1).permute(2, 0, 3, 1, 4)
        return plain_attention(q, k, v).transpose(1, 2).reshape(B, T, -1)

    qkv = layout(randn(2, 33, 3 * 2 * 16, dtype=dtype))
    ours = partial(attention_qkv, n_head=2)
    hold_against(ours, plain, (qkv,), compute=dtype, gradient_factor=3.0)


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


# --- the modules of the lecture -------------------------------------------------------------------


def lecture_and_ours(config):
    """The lecture's model and the packed model with its weights, in fp64."""
    lecture = reference.GPT(config).double().to(DEVICE)
    ours = packed.GPT(config, OPS).double().to(DEVICE)
    ours.load_state_dict(packed_from_lecture(lecture.state_dict(), config))
    return lecture, ours


def gradients_of(gpt, x, dout):
    """Output, dx and gradients of the weights of the first block's attention."""
    x = x.detach().requires_grad_()
    sa = gpt.blocks[0].sa
    out = sa(x)
    if isinstance(sa.proj, IntoStream):
        out = out + sa.proj.bias
    out.backward(dout)
    gradients = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in gpt.named_parameters()
    }
    return out, x.grad, gradients


@pytest.mark.parametrize(
    "options",
    [{}, {"qkv_bias": True}, {"qk_norm": True}, {"position": "rope"}],
    ids=lambda options: "-".join(options) or "lecture",
)
def test_the_lectures_heads(options):
    """Outputs and the gradients of x and of every weight, through the mapped weights."""
    config = ModelConfig(block_size=40, n_layer=1, n_head=3, n_embd=48, vocab_size=5, **options)
    lecture, ours = lecture_and_ours(config)
    x, dout = (randn(2, 37, 48, dtype=torch.float64, seed=seed) for seed in (0, 3))
    expected, expected_dx, gradients = gradients_of(lecture, x, dout)
    actual, actual_dx, actual_gradients = gradients_of(ours, x, dout)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if "position" in options else {}  # angles are fp32
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(actual_dx, expected_dx, **tolerance)
    torch.testing.assert_close(
        actual_gradients, packed_from_lecture(gradients, config), **tolerance
    )
    assert actual_gradients["blocks.0.sa.qkv.weight"].abs().max() > 0.1


def test_one_head_of_the_lecture():
    config = ModelConfig(block_size=40, n_head=2, n_embd=32)
    head = reference.Head(config).double().to(DEVICE)
    x = randn(2, 37, 32, dtype=torch.float64)
    q, k, v = (layer(x)[:, None] for layer in (head.query, head.key, head.value))  # (B, 1, T, D)
    torch.testing.assert_close(attention(q, k, v)[:, 0], head(x))


class Drop(torch.nn.Module):
    """nn.Dropout with a given mask (B, T, T) of one head."""

    def __init__(self, keep, scale):
        super().__init__()
        self.keep, self.scale = keep, scale

    def forward(self, wei):
        return wei * self.keep * self.scale


def test_the_lectures_heads_with_the_same_mask():
    """The lecture's MultiHeadAttention with p = 0.2: output, dx and gradients of every weight."""
    config = ModelConfig(block_size=40, n_layer=1, n_head=3, n_embd=48, vocab_size=5, dropout=0.2)
    lecture = reference.GPT(config).double().to(DEVICE)
    x, dout = (randn(2, 37, 48, dtype=torch.float64, seed=seed) for seed in (0, 3))
    x.requires_grad_()

    keep = philox.attention_kept(SEED, 2, 3, 37, 37, 0.2)
    _, scale = philox.threshold_and_scale(0.2)
    for h, head in enumerate(lecture.blocks[0].sa.heads):
        head.dropout = Drop(keep[:, h], scale)
    seeded = partial(attention_qkv, seed=SEED)
    ours = packed.GPT(config, torch_ops.OPS._replace(attention_qkv=seeded)).double().to(DEVICE)
    ours.load_state_dict(packed_from_lecture(lecture.state_dict(), config))

    gradients, dx = {}, {}
    for gpt in (lecture, ours):
        attend = gpt.blocks[0].sa
        attend.dropout = torch.nn.Identity()  # the one after the projection is another operation
        torch.nn.init.zeros_(attend.proj.bias)  # and so is the packed model's bias
        weights = {name: w for name, w in attend.named_parameters() if name != "proj.bias"}
        dx[gpt], *dweights = torch.autograd.grad(attend(x), (x, *weights.values()), dout)
        gradients[gpt] = {name: torch.zeros_like(w) for name, w in gpt.named_parameters()}
        for name, dweight in zip(weights, dweights, strict=True):
            gradients[gpt][f"blocks.0.sa.{name}"] = dweight
    torch.testing.assert_close(ours.blocks[0].sa(x), lecture.blocks[0].sa(x))
    torch.testing.assert_close(dx[ours], dx[lecture])
    torch.testing.assert_close(gradients[ours], packed_from_lecture(gradients[lecture], config))
