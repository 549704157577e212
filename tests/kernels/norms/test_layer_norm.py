"""layer_norm and rms_norm: definition, rounding, memory, strides, properties, launches."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import torch_ops
from kernels.common import launch, row_layout
from kernels.common.sums import ELEMENTS, NARROW
from kernels.norms import norm_parameter_gradients
from kernels.norms.layer_norm import WIDEST, layer_norm, rms_norm
from tests.numerics import differentiate, hold_against
from tests.operands import DEVICE, DTYPES, SIZES, dtypes, layouts, randn, shapes

NORMS = {
    "layer_norm": (layer_norm, torch_ops.layer_norm, [True, True]),
    "layer_norm without bias": (layer_norm, torch_ops.layer_norm, [True, False]),
    "layer_norm without weight": (layer_norm, torch_ops.layer_norm, [False, True]),
    "rms_norm": (rms_norm, torch_ops.rms_norm, [True]),
    "rms_norm without weight": (rms_norm, torch_ops.rms_norm, [False]),
}
norms = pytest.mark.parametrize("norm", NORMS)


def operands(norm, *shape, dtype=torch.float32, scale=1.0, shift=0.0):
    """x, weight and bias or None, on which the result is well-conditioned.

    A ramp keeps rows from being nearly constant, where the rounding of the mean would dominate.
    Rows of one or two elements are so small that eps matters: otherwise their gradients cancel to
    0.
    """
    C, parameters = shape[-1], NORMS[norm][2]
    scale *= 1.0 if C > 2 else 3e-3
    x = randn(*shape, dtype=torch.float64).clamp(-1.5, 1.5)
    x = (x + torch.linspace(-2, 2, C, dtype=torch.float64, device=DEVICE)) * scale + shift
    weight_and_bias = [randn(C, dtype=dtype, shift=1.0, seed=1), randn(C, dtype=dtype, seed=2)]
    given = zip(weight_and_bias, parameters, strict=False)
    return [x.to(dtype), *(parameter if is_given else None for parameter, is_given in given)]


def hold(norm, inputs):
    operation, reference, _ = NORMS[norm]
    hold_against(operation, reference, inputs)


@norms
@pytest.mark.parametrize("C", [1, 2, 3, 7])
def test_gradients_match_the_definition(norm, C):
    inputs = operands(norm, 2, C, dtype=torch.float64)
    operation, reference, _ = NORMS[norm]
    torch.testing.assert_close(operation(*inputs), reference(*inputs), rtol=1e-13, atol=1e-13)
    inputs = [x if x is None else x.requires_grad_() for x in inputs]
    torch.autograd.gradcheck(operation, inputs, fast_mode=C > 2)


@pytest.mark.parametrize("C", SIZES[1:])  # for a single column the gradient cancels to 0
def test_results_are_rounded_once_at_every_width(C):
    """Each norm is tested in each dtype at several widths, without the full product."""
    for i, norm in enumerate(NORMS):
        hold(norm, operands(norm, 3, 5, C, dtype=DTYPES[(C + i) % 3]))


@norms
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-4, 0.0), (1e3, 0.0), (1.0, 300.0)])
def test_results_are_rounded_once_at_every_scale(norm, scale, shift):
    for dtype in DTYPES:
        hold(norm, operands(norm, 9, 48, dtype=dtype, scale=scale, shift=shift))


@pytest.mark.parametrize(
    ("norm", "rows", "C", "dtype"),
    [
        *(("layer_norm", 2, C, torch.bfloat16) for C in (384, 1000, WIDEST)),
        ("rms_norm", 2, 4097, torch.bfloat16),
        ("layer_norm", 2 * ELEMENTS // NARROW + 9, 600, torch.float32),  # two tiles of shares
    ],
)
def test_wide_rows(norm, rows, C, dtype):
    hold(norm, operands(norm, rows, C, dtype=dtype))


@pytest.mark.parametrize("value", [100.1, -3e4, 1e-3])
def test_constant_rows_are_their_own_mean(value):
    y = layer_norm(torch.full((3, 384), value, device=DEVICE), torch.ones(384, device=DEVICE))
    assert y.abs().max() <= 2 * torch.finfo(torch.float32).eps  # 0 in exact arithmetic


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_single_column_is_its_own_mean(dtype):
    """y is the bias and dx is 0, up to a rounding of dy weight rstd: a GPU fuses products."""
    inputs, dy = operands("layer_norm", 3, 5, 1, dtype=dtype), randn(3, 5, 1, dtype=dtype, seed=7)
    (y,), (dx, *_) = differentiate(layer_norm, inputs, [dy])
    assert torch.equal(y, inputs[2].expand_as(y))
    rounding = torch.finfo(torch.float32).eps * (dy * inputs[1]).float().abs() * 1e-5**-0.5
    assert (dx.float().abs() <= rounding).all()


@norms
def test_programs_that_visit_many_tiles(norm, monkeypatch):
    monkeypatch.setattr(norm_parameter_gradients, "multiprocessors", lambda device: 1)
    for rows in (17, 150):
        hold(norm, operands(norm, rows, 65))


@given(shape=shapes(600).filter(lambda shape: shape[-1] > 1), dtype=dtypes(), data=st.data())
def test_any_shape_stride_and_dtype(shape, dtype, data):
    norm = data.draw(st.sampled_from(list(NORMS)))
    inputs = operands(norm, *shape, dtype=dtype)
    hold(norm, [x if x is None else data.draw(layouts())(x) for x in inputs])


def test_heads_of_a_packed_projection_are_not_copied():
    qkv = randn(2, 50, 9, 16, dtype=torch.float16)  # 300 rows for several programs
    queries = qkv[:, :, 3:6]
    hold("rms_norm without weight", [queries, None])
    hold("layer_norm", [queries, *operands("layer_norm", 16)[1:]])  # as under autocast
    (seen,), (inner, *_), _ = row_layout.as_rows(queries)
    assert seen.data_ptr() == queries.data_ptr()
    assert inner == 3


@norms
@pytest.mark.parametrize("width", [9, 12, 24])
def test_rows_of_16_bytes_inside_wider_rows(norm, width):
    """16-byte loads are used only if every row begins at a multiple of 16 bytes."""
    x, *parameters = operands(norm, 5, 3, width, dtype=torch.bfloat16)
    parameters = [p if p is None else p[:8] for p in parameters]
    hold(norm, [x[..., :8], *parameters])


@norms
def test_the_number_of_rows_does_not_specialise_kernels(norm):
    def options(count):
        meta = [x if x is None else x.to("meta") for x in operands(norm, count, 48)]
        with launch.record(90) as launches:
            differentiate(NORMS[norm][0], meta, [meta[0]])
        return [(one.kernel, one.options) for one in launches]

    assert options(1) == options(16) == options(1023)
    assert len(options(5)) == 2 + any(NORMS[norm][2])


def test_pytorchs_rms_norm_takes_a_wider_weight():
    """As under autocast; PyTorch itself warns, and warnings are errors here."""
    x, weight = randn(40, 96, dtype=torch.bfloat16), randn(96)
    exact = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-5)
    y = torch_ops.rms_norm(x, weight, eps=1e-5)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, (exact * weight.double()).bfloat16(), rtol=2**-8, atol=0)


def test_the_number_of_sms_is_that_of_the_gpu(monkeypatch):
    """An RTX 3090 has 82 SMs, the largest GPU of its architecture 108."""
    properties = SimpleNamespace(multi_processor_count=82, major=8, minor=6)
    monkeypatch.setattr(launch, "_properties_of", lambda index: properties)
    assert launch.multiprocessors(torch.device("cuda", 0)) == 82
    with launch.target(86):  # another GPU than the one that is there
        assert launch.multiprocessors(torch.device("cuda", 0)) == launch.LARGEST_GPU[80]


@pytest.mark.parametrize(("architecture", "sms"), launch.LARGEST_GPU.items())
def test_backward_programs_fill_the_gpu_exactly_once(architecture, sms):
    """As many per SM as its 65,536 registers hold, without a second wave."""
    x = torch.empty(10**6, 768, dtype=torch.bfloat16, device="meta").requires_grad_()
    weight = torch.ones(768, dtype=torch.bfloat16, device="meta").requires_grad_()
    with launch.record(architecture) as launches:
        layer_norm(x, weight).backward(torch.empty_like(x))
    (backward,) = (one for one in launches if "backward" in one.kernel.fn.__name__)
    (programs,) = backward.grid
    registers = 32 * backward.options["num_warps"] * backward.options["maxnreg"]
    assert programs % sms == 0
    assert programs // sms * registers <= 65_536 < (programs // sms + 1) * registers
