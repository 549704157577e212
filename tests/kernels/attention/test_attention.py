"""Attention without dropout: the reference's heads, fp64, causality, layouts, every tile."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gpt.config.model import ModelConfig
from gpt.models import packed, reference
from gpt.models.layouts import packed_from_lecture
from gpt.models.residual import IntoStream
from kernels import torch_ops
from kernels.attention.attention import attention, attention_qkv
from kernels.common import launch
from tests.kernels.attention.plain_attention import (
    assert_one_weight,
    hold,
    operands,
    plain_attention,
)
from tests.numerics import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_deterministic,
    differentiate,
    guarded_memory,
    hold_against,
    layouts,
    randn,
    sizes,
)

OPS = torch_ops.OPS._replace(attention=attention, attention_qkv=attention_qkv)


# over fewer tokens the plain gradients, some exactly 0, are right by luck
several = sizes(100).filter(lambda size: size >= 7)


# --- the definition -------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("Tq", "Tk", "H", "Hkv"), [(5, 5, 2, 2), (3, 7, 4, 2), (7, 3, 3, 1)])
def test_the_plain_computation_is_native(Tq, Tk, H, Hkv, causal):
    """The oracle below, which also takes a mask, agrees with PyTorch's own, Tq != Tk included."""
    tensors = [tensor.double() for tensor in operands(2, H, Hkv, Tq, Tk, 8)]
    expected = torch_ops.attention(*tensors, causal=causal, scale=0.3)
    torch.testing.assert_close(plain_attention(*tensors, causal=causal, scale=0.3), expected)


@pytest.mark.parametrize(
    ("B", "H", "Hkv", "Tq", "Tk", "D", "causal"),
    [(2, 1, 1, 1, 1, 1, True), (1, 2, 1, 3, 3, 2, True), (1, 1, 1, 2, 3, 1, False)],
)
def test_gradients_are_derivatives(B, H, Hkv, Tq, Tk, D, causal):
    tensors = [tensor.double().requires_grad_() for tensor in operands(B, H, Hkv, Tq, Tk, D)]
    assert gradcheck(partial(attention, causal=causal, scale=0.7), tensors)


@pytest.mark.parametrize(("T", "H", "D"), [(1, 1, 1), (3, 2, 1), (7, 1, 1)])
def test_packed_gradients_are_derivatives(T, H, D):
    qkv = randn(1, T, 3 * H * D, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda qkv: attention_qkv(qkv, H), [qkv])


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("T", "D"), [(7, 16), (31, 80), (33, 20), (63, 16), (64, 64), (65, 20), (128, 64)]
)
def test_as_exact_as_the_plain_computation(T, D, dtype):
    hold(operands(1, 2, 2, T, T, D, dtype))


@pytest.mark.parametrize(("T", "D"), [(2, 20), (3, 64)])
def test_few_tokens(T, D):
    """In fp32: of few tokens the plain computation in 16 bits is right by luck."""
    hold(operands(1, 2, 2, T, T, D))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_token_sees_itself(dtype):
    """out is v and dv is dout; dq and dk are 0 up to the roundings of dP - delta."""
    q, k, v = operands(2, 2, 2, 1, 1, 16, dtype)
    dout = randn(2, 2, 1, 16, dtype=dtype, seed=3)
    (out,), (dq, dk, dv) = differentiate(attention, (q, k, v), [dout])
    assert_one_weight(out, v, q, k)
    assert_one_weight(dv, dout, q, k)
    roundings = 16 * torch.finfo(torch.float32).eps * (dout * v).float().abs().sum(-1, True)
    assert (dq.float().abs() <= roundings * k.float().abs()).all()
    assert (dk.float().abs() <= roundings * q.float().abs()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "D"), [(127, 128), (129, 16), (257, 64)])
def test_as_exact_over_several_tiles(T, D, dtype):
    hold(operands(1, 1, 1, T, T, D, dtype))


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_far_from_zero(sign):
    """2^207 and 2^-207: only differences within a row may be raised to a power."""
    q, k, v = operands(1, 2, 2, 33, 40, 16)
    hold((q + 6, k + 6 * sign, v), causal=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_thirty_times_as_large(dtype):
    hold(operands(1, 2, 2, 65, 65, 16, dtype, scale=30.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("H", "Hkv", "Tq", "Tk", "causal"),
    [
        (2, 2, 33, 70, True),
        (2, 2, 70, 33, True),
        (2, 1, 1, 65, False),
        (4, 2, 65, 64, False),
        (6, 2, 33, 33, True),
    ],
)
def test_cross_attention_and_grouped_heads(H, Hkv, Tq, Tk, causal, dtype):
    hold(operands(2, H, Hkv, Tq, Tk, 16, dtype), causal=causal)


def test_the_largest_head():
    hold(operands(1, 1, 1, 33, 33, 256, torch.float16))
    hold(operands(1, 1, 1, 33, 33, 200))


@settings(max_examples=10)
@given(several, several, strategies.sampled_from([(1, 1), (2, 1), (2, 2)]), layouts())
def test_any_shape_and_layout(Tq, Tk, heads, layout):
    tensors = [layout(tensor) for tensor in operands(1, *heads, Tq, Tk, 20)]
    hold(tensors, scale=0.5)


@pytest.mark.parametrize("T", [7, 65])
def test_expanded_operands(T):
    """One head of keys and values for a whole batch, by strides of zero."""
    q = randn(2, 4, T, 16)
    k, v = (randn(1, 1, T, 16, seed=seed).expand(2, 4, T, 16) for seed in (1, 2))
    hold((q, k, v))


def test_gradients_that_arrive_expanded():
    tensors = [tensor.requires_grad_() for tensor in operands(1, 2, 2, 5, 5, 16)]
    actual = torch.autograd.grad(attention(*tensors).sum(), tensors)
    expected = torch.autograd.grad(plain_attention(*tensors).sum(), tensors)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


# --- properties -----------------------------------------------------------------------------------


@settings(max_examples=12)
@given(strategies.data())
def test_causality_is_bitwise(data):
    """Whatever happens from token t on, the outputs before t keep their bits."""
    T = data.draw(sizes(130))
    t = data.draw(strategies.integers(0, T - 1))
    qkv = randn(1, T, 3 * 16)
    changed = qkv.clone()
    changed[:, t:] = randn(1, T - t, 3 * 16, seed=5, scale=100.0)
    before, after = attention_qkv(qkv, 1), attention_qkv(changed, 1)
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t:], after[:, t:])


@settings(max_examples=8)
@given(sizes(130), strategies.floats(-40, 40))
def test_a_shift_of_all_logits_changes_nothing(T, shift):
    """Softmax does not see what is added to a whole row: here q . direction, for every key."""
    q, k, v = operands(1, 1, 1, T, T, 16, torch.float64)
    direction = randn(1, 1, 1, 16, dtype=torch.float64, seed=9)
    shifted = attention(q, k + shift * direction, v)
    torch.testing.assert_close(shifted, attention(q, k, v), rtol=1e-9, atol=1e-9)


def test_uniform_weights_average_the_past():
    """The lecture's first version: with equal affinities the output is the running mean."""
    v = randn(1, 1, 70, 16, dtype=torch.float64)
    zero = torch.zeros_like(v)
    mean = v.cumsum(2) / torch.arange(1, 71, device=DEVICE)[:, None]
    torch.testing.assert_close(attention(zero, zero, v), mean)


def test_same_bits_every_time():
    tensors = operands(2, 4, 2, 130, 130, 16, torch.float16)
    upstream = [randn(2, 4, 130, 16, dtype=torch.float16, seed=4)]
    assert_deterministic(lambda: sum(differentiate(attention, tensors, upstream), ()), repeats=2)


def test_a_second_backward_gives_the_same_bits():
    tensors = [tensor.requires_grad_() for tensor in operands(1, 2, 2, 65, 65, 16)]
    out = attention(*tensors)
    dout = randn(*out.shape, seed=4)
    first = torch.autograd.grad(out, tensors, dout, retain_graph=True)
    second = torch.autograd.grad(out, tensors, dout)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_what_grows_with_T_is_kept():
    kept = []
    tensors = [tensor.requires_grad_() for tensor in operands(1, 2, 2, 65, 65, 16)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attention(*tensors)
    assert sum(x.numel() for x in kept) == 4 * 2 * 65 * 16 + 2 * 65  # q, k, v, out; lse


# --- the packed projection ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_is_attention_of_the_parts(layout, dtype):
    def plain(qkv):
        B, T, _ = qkv.shape
        q, k, v = qkv.view(B, T, 3, 2, -1).permute(2, 0, 3, 1, 4)
        return plain_attention(q, k, v).transpose(1, 2).reshape(B, T, -1)

    qkv = layout(randn(2, 33, 3 * 2 * 16, dtype=dtype))
    ours = partial(attention_qkv, n_head=2)
    hold_against(ours, plain, (qkv,), compute=dtype, gradient_factor=3.0)


FREE = ("empty", "new_empty", "detach", "_unsafe_view")  # allocations, and views not marked so


class Count(TorchDispatchMode):
    """The operations of PyTorch that run inside, views and allocations aside."""

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


def test_the_model_joins_heads_for_nothing():
    tensors = [tensor.requires_grad_() for tensor in operands(2, 2, 2, 33, 33, 16)]
    dout = randn(2, 33, 32)
    with Count() as count, launch.record(90):
        out = attention(*tensors).transpose(1, 2).reshape(2, 33, 32)
        torch.autograd.grad(out, tensors, dout)
    assert count.names == []


# --- the modules of the lecture -------------------------------------------------------------------


def lecture_and_ours(config):
    """The lecture's MultiHeadAttention and the fused one with its weights, in fp64."""
    lecture = reference.GPT(config).double().to(DEVICE)
    ours = packed.GPT(config, OPS).double().to(DEVICE)
    ours.load_state_dict(packed_from_lecture(lecture.state_dict(), config))
    return lecture, ours


def gradients_of(gpt, x, dout):
    """Output and gradient of x of the first block's attention; those of the weights stay in it."""
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
    """Outputs, and the gradients of every weight and of x, through the mapped weights."""
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


# --- where it runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [64, 128, 256])
@pytest.mark.parametrize("family", launch.FAMILIES)
def test_every_tile_of_16_bits(family, D):
    with launch.target(family):
        hold(operands(1, 1, 1, 33, 65, D, torch.float16))
        hold(operands(1, 1, 1, 257, 33, D, torch.float16))


@pytest.mark.parametrize("D", [64, 128, 256])
def test_every_tile_of_32_bits(D):
    hold(operands(1, 1, 1, 17, 65, D))
    hold(operands(1, 1, 1, 257, 17, D))


def test_rows_that_begin_within_a_tile(monkeypatch):
    """dK and dV of keys 32 ... 63 begin at row 32, and a tile of 64 rows goes past the last one."""
    tiles = launch.TILES["attention_kv_fp32"][80] | {64: (64, 32, 4, 1, None)}
    monkeypatch.setitem(launch.TILES, "attention_kv_fp32", {80: tiles})
    hold(operands(1, 2, 2, 64, 64, 16))


def test_three_launches_are_recorded_without_running():
    q = torch.empty(2, 6, 300, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with launch.record(90) as launches:
        out = attention(q, q, q, dropout_p=0.1)
        torch.autograd.grad(out, q, torch.empty_like(out))
    names = [recorded.kernel.__name__ for recorded in launches]
    assert names == [
        "attention_forward_kernel",
        "attention_backward_q_kernel",
        "attention_backward_kv_kernel",
    ]
    assert [recorded.grid for recorded in launches] == 3 * [(5 * 6 * 2,)]


def test_under_activation_checkpointing():
    def gradients(run):
        tensors = [tensor.requires_grad_() for tensor in operands(1, 2, 2, 33, 33, 16)]
        return torch.autograd.grad(run(*tensors).sum(), tensors)

    plain = gradients(attention)
    again = gradients(lambda *tensors: checkpoint(attention, *tensors, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_under_autocast():
    q, k, v = operands(1, 2, 2, 33, 33, 16)
    qkv = randn(1, 33, 96)
    bf16 = torch.bfloat16
    with torch.autocast(DEVICE, dtype=bf16):
        assert torch.equal(attention(q, k, v), attention(q.to(bf16), k.to(bf16), v.to(bf16)))
        assert torch.equal(attention_qkv(qkv, 2), attention_qkv(qkv.to(bf16), 2))
        assert attention(q.double(), k.double(), v.double()).dtype == torch.float64


def test_nothing_to_attend():
    for B, H, Tq, Tk in ((0, 2, 3, 3), (2, 0, 3, 3), (2, 2, 0, 0), (2, 2, 0, 3)):
        Hkv = max(H, 1)
        tensors = [tensor.requires_grad_() for tensor in operands(B, H, Hkv, Tq, Tk, 16)]
        with guarded_memory():
            out = attention(*tensors)
            gradients = torch.autograd.grad(out, tensors, out)
        assert out.shape == (B, H, Tq, 16)
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
    assert attention_qkv(randn(2, 0, 96), 2).shape == (2, 0, 32)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 16), (2, 3, 16), (2, 3, 16)), r"q \(B, H, Tq, D\).*\(2, 3, 16\)"),
        (((1, 2, 3, 16), (1, 2, 4, 16), (1, 2, 3, 16)), r"k \(1, 2, 4, 16\)"),
        (((1, 2, 3, 16), (2, 2, 3, 16), (2, 2, 3, 16)), r"k \(2, 2, 3, 16\)"),
        (((1, 2, 3, 16), (1, 2, 3, 8), (1, 2, 3, 8)), r"k \(1, 2, 3, 8\)"),
        (((1, 3, 3, 16), (1, 2, 3, 16), (1, 2, 3, 16)), "multiple of Hkv"),
        (((1, 2, 3, 16), (1, 2, 0, 16), (1, 2, 0, 16)), "at least one key"),
        (((1, 2, 3, 257), (1, 2, 3, 257), (1, 2, 3, 257)), "1 to 256 channels, not 257"),
    ],
)
def test_wrong_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        attention(*(torch.zeros(shape, device=DEVICE) for shape in shapes))


@pytest.mark.parametrize(
    ("shape", "n_head"), [((2, 96), 2), ((2, 3, 97), 2), ((2, 3, 0), 2), ((2, 3, 96), 0)]
)
def test_wrong_packed_shapes(shape, n_head):
    with pytest.raises(ValueError, match=r"qkv \(B, T, \(H \+ 2 Hkv\) D\)"):
        attention_qkv(torch.zeros(shape, device=DEVICE), n_head)


def test_wrong_numbers():
    q, k, v = operands(1, 2, 2, 3, 3, 16)
    with pytest.raises(ValueError, match=r"one dtype.*float32, torch.float16"):
        attention(q, k.half(), v)
    with pytest.raises(ValueError, match=r"not torch\.int64"):
        attention(q.long(), k.long(), v.long())
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive scale"):
            attention(q, k, v, scale=scale)
    with pytest.raises(ValueError, match="from 0 to 1"):
        attention(q, k, v, dropout_p=1.5)
