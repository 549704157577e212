"""layer_norm and rms_norm: their definition, one rounding, memory, strides, properties."""

import functools
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import torch_ops
from kernels.common import launch, row_layout
from kernels.norms import norm_parameter_gradients
from kernels.norms.layer_norm import layer_norm, rms_norm
from kernels.norms.norm_parameter_gradients import SUM_ROWS
from tests.numerics import (
    DEVICE,
    DTYPES,
    SIZES,
    assert_deterministic,
    differentiate,
    dtypes,
    hold_against,
    layouts,
    randn,
    shapes,
)

NORMS = {
    "layer_norm": (layer_norm, torch_ops.layer_norm, 2),
    "layer_norm without bias": (layer_norm, torch_ops.layer_norm, 1),
    "rms_norm": (rms_norm, torch_ops.rms_norm, 1),
    "rms_norm without weight": (rms_norm, torch_ops.rms_norm, 0),
}
norms = pytest.mark.parametrize("norm", NORMS)


def operands(norm, *shape, dtype=torch.float32, scale=1.0, shift=0.0):
    """x, weight and bias, on which the result is well-conditioned.

    A ramp keeps every row from being nearly constant, where the rounding of its mean would decide.
    Rows of one or two elements are so small that eps counts: else their gradients cancel to 0.
    """
    C, parameters = shape[-1], NORMS[norm][2]
    scale *= 1.0 if C > 2 else 3e-3
    x = randn(*shape, dtype=torch.float64).clamp(-1.5, 1.5)
    x = (x + torch.linspace(-2, 2, C, dtype=torch.float64, device=DEVICE)) * scale + shift
    weight_and_bias = [randn(C, dtype=dtype, shift=1.0, seed=1), randn(C, dtype=dtype, seed=2)]
    missing = [None] * (1 - parameters)  # rms_norm takes its weight by position
    return [x.to(dtype), *weight_and_bias[:parameters], *missing]


def several(shape):
    """More than the one column whose gradient cancels to 0."""
    return shape[-1] > 1


def hold(norm, inputs):
    operation, oracle, _ = NORMS[norm]
    hold_against(operation, oracle, inputs)


@norms
@pytest.mark.parametrize("C", [1, 2, 3, 7])
def test_gradients_are_those_of_the_definition(norm, C):
    inputs = operands(norm, 2, C, dtype=torch.float64)
    operation, oracle, _ = NORMS[norm]
    torch.testing.assert_close(operation(*inputs), oracle(*inputs), rtol=1e-13, atol=1e-13)
    torch.autograd.gradcheck(operation, [x if x is None else x.requires_grad_() for x in inputs])


@norms
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("C", SIZES[1:])
def test_rounded_once(norm, dtype, C):
    hold(norm, operands(norm, 3, 5, C, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_single_column_is_its_own_mean(dtype):
    """y is the bias and dx is 0, up to a rounding of dy weight rstd: a GPU fuses products."""
    inputs, dy = operands("layer_norm", 3, 5, 1, dtype=dtype), randn(3, 5, 1, dtype=dtype, seed=7)
    (y,), (dx, *_) = differentiate(layer_norm, inputs, [dy])
    assert torch.equal(y, inputs[2].expand_as(y))
    rounding = torch.finfo(torch.float32).eps * (dy * inputs[1]).float().abs() * 1e-5**-0.5
    assert (dx.float().abs() <= rounding).all()


@norms
@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (1e3, 0.0), (1.0, 30.0)])
def test_rounded_once_at_every_scale(norm, scale, shift):
    for dtype in DTYPES:
        hold(norm, operands(norm, 9, 48, dtype=dtype, scale=scale, shift=shift))


@pytest.mark.parametrize(
    ("norm", "C"),
    [("layer_norm", C) for C in (384, 1000, 8192, 16384)] + [("rms_norm", 8193)],
)
def test_wide_rows(norm, C):
    hold(norm, operands(norm, 2, C, dtype=torch.bfloat16))


@norms
@pytest.mark.parametrize("count", [1, 17, 150])
def test_programs_that_visit_many_tiles(norm, count, monkeypatch):
    monkeypatch.setattr(norm_parameter_gradients, "multiprocessors", lambda device: 1)
    hold(norm, operands(norm, count, 65))


def test_more_programs_than_their_shares_are_added_up_at_a_time():
    hold("layer_norm", operands("layer_norm", 2 * SUM_ROWS + 9, 600))  # two rows to a program


@given(shape=shapes(600).filter(several), dtype=dtypes(), data=st.data())
def test_any_shape_stride_and_dtype(shape, dtype, data):
    norm = data.draw(st.sampled_from(list(NORMS)))
    inputs = operands(norm, *shape, dtype=dtype)
    hold(norm, [x if x is None else data.draw(layouts())(x) for x in inputs])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_of_a_packed_projection(dtype):
    qkv = randn(2, 50, 9, 16, dtype=dtype)  # 300 rows for several programs
    queries = qkv[:, :, 3:6]
    hold("rms_norm without weight", [queries, None])
    hold("layer_norm", [queries, *operands("layer_norm", 16, dtype=dtype)[1:]])
    (seen,), (inner, *_), _ = row_layout.as_rows(queries)
    assert seen.data_ptr() == queries.data_ptr()  # no copy
    assert inner == 3


@pytest.mark.parametrize("expand", [lambda y: y.sum(), lambda y: y[..., 0].sum()])
def test_gradients_of_any_stride_arrive(expand):
    inputs = operands("layer_norm", 3, 4, 10)
    results = []
    for function in (layer_norm, torch_ops.layer_norm):
        leaves = [x.clone().requires_grad_() for x in inputs]
        results.append(torch.autograd.grad(expand(function(*leaves)), leaves))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@norms
@pytest.mark.parametrize("width", [9, 12, 24])
def test_rows_of_16_bytes_that_lie_in_wider_ones(norm, width):
    """16 bytes at a time only where every row begins at a multiple of them."""
    x, *parameters = operands(norm, 5, 3, width, dtype=torch.bfloat16)
    parameters = [p if p is None else p[:8] for p in parameters]
    hold(norm, [x[..., :8], *parameters])


def test_parameters_of_another_dtype():
    """Under autocast the parameters are fp32 and x may be bf16: y has x's dtype."""
    x, weight, bias = operands("layer_norm", 6, 33)
    hold_against(layer_norm, torch_ops.layer_norm, [x.bfloat16(), weight, bias])


@norms
def test_no_rows(norm):
    inputs = operands(norm, 0, 5)
    (y,), (dx, *parameters) = differentiate(NORMS[norm][0], inputs, [inputs[0]])
    assert y.shape == dx.shape == (0, 5)
    assert all(torch.equal(gradient, torch.zeros(5, device=DEVICE)) for gradient in parameters)


def test_a_constant_row_gives_the_bias():
    x = torch.full((4, 37), 1000.0, device=DEVICE)
    weight, bias = randn(37), randn(37, seed=1)
    assert torch.equal(layer_norm(x, weight, bias), bias.expand(4, 37))


@pytest.mark.parametrize(("changed", "C"), [(0, 1), (3, 5), (4, 64), (8, 129)])
def test_a_row_does_not_see_its_neighbours(changed, C):
    x = randn(9, C)
    other = x.clone()
    other[changed] = randn(C, seed=3)
    weight, dy = randn(C, seed=1), randn(9, C, seed=2)
    keep = torch.arange(9) != changed
    for y, z in zip(
        *(sum(differentiate(layer_norm, [v, weight], [dy]), ()) for v in (x, other)), strict=True
    ):
        if y.shape == x.shape:
            assert torch.equal(y[keep], z[keep])


@given(C=st.integers(3, 70), seed=st.integers(0, 100))
def test_what_normalising_takes_out_gets_no_gradient(C, seed):
    """y stays with x + a (LayerNorm) and with a x (both), so the loss does, where eps is small."""
    x, dy = (randn(2, C, dtype=torch.float64, seed=seed + i) for i in range(2))
    ones = torch.ones(C, dtype=torch.float64, device=DEVICE)
    for norm in (layer_norm, rms_norm):
        (y,), (dx, _) = differentiate(functools.partial(norm, eps=1e-14), [x, ones], [dy])
        scale = dx.abs().sum(1)
        assert ((dx * y).sum(1).abs() < 1e-9 * scale).all()
        if norm is layer_norm:
            assert (dx.sum(1).abs() < 1e-9 * scale).all()


@norms
def test_the_same_bits_every_time(norm):
    inputs, dy = operands(norm, 67, 130, dtype=torch.bfloat16), randn(67, 130, seed=5)
    operation = NORMS[norm][0]
    assert_deterministic(lambda: sum(differentiate(operation, inputs, [dy.bfloat16()]), ()))


@norms
def test_a_number_of_rows_needs_no_code_of_its_own(norm):
    def options(count):
        meta = [x if x is None else x.to("meta") for x in operands(norm, count, 48)]
        with launch.record(90) as launches:
            differentiate(NORMS[norm][0], meta, [meta[0]])
        return [(one.kernel, one.options) for one in launches]

    assert options(1) == options(16) == options(1023)
    assert len(options(5)) == (3 if NORMS[norm][2] else 2)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
@pytest.mark.parametrize("shape", [(), (3, 0), (2, 16_385)])
def test_a_width_that_does_not_fit(norm, shape):
    with pytest.raises(ValueError, match=re.escape(f"x has shape {shape}")):
        norm(torch.empty(shape), torch.empty(shape[-1:]))


def test_pytorch_s_rms_norm_takes_a_wider_weight():
    """As under autocast; PyTorch itself warns, and warnings are errors here."""
    x, weight = randn(40, 96, dtype=torch.bfloat16), randn(96)
    exact = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-5)
    y = torch_ops.rms_norm(x, weight, eps=1e-5)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, (exact * weight.double()).bfloat16(), rtol=2**-8, atol=0)


def test_programs_are_counted_for_the_gpu_that_is_there(monkeypatch):
    """An RTX 3090 has 82 SMs, the largest GPU of its architecture 108."""
    properties = SimpleNamespace(multi_processor_count=82, major=8, minor=6)
    monkeypatch.setattr(launch, "_properties_of", lambda index: properties)
    assert launch.multiprocessors(torch.device("cuda", 0)) == 82
    with launch.target(86):  # none is there
        assert launch.multiprocessors(torch.device("cuda", 0)) == launch.LARGEST_CARD[80]


@pytest.mark.parametrize(("architecture", "sms"), launch.LARGEST_CARD.items())
def test_backward_s_programs_fill_the_gpu_once(architecture, sms):
    """As many on each SM as its 65,536 registers hold, and no second wave."""
    x = torch.empty(10**6, 768, dtype=torch.bfloat16, device="meta").requires_grad_()
    weight = torch.ones(768, dtype=torch.bfloat16, device="meta").requires_grad_()
    with launch.record(architecture) as launches:
        layer_norm(x, weight).backward(torch.empty_like(x))
    (backward,) = (one for one in launches if "backward" in one.kernel.fn.__name__)
    (programs,) = backward.grid
    registers = 32 * backward.options["num_warps"] * backward.options["maxnreg"]
    assert programs % sms == 0
    assert programs // sms * registers <= 65_536 < (programs // sms + 1) * registers
