"""decode_linear against fp64: every dtype, int8, tile, layout and combination of options."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import torch_ops
from kernels.common import launch
from kernels.decoding.decode_linear import MOST_ROWS, WIDEST, decode_linear
from tests.numerics import hold_against
from tests.operands import DEVICE, DTYPES, dtypes, layouts, randn

TILES = ((64, 1), (1_024, 1), (8_192, 108))  # elements per program, fewest programs
FLOATS = DTYPES if DEVICE == "cuda" else (*DTYPES, torch.float64)  # compiled ones have no fp64
NORMS = (None, "layer_norm", "rms_norm")
ACTIVATIONS = (None, *torch_ops.ACTIVATIONS)
OPERANDS = ("x", "weight", "bias", "scale", "norm_weight", "norm_bias", "residual")


@pytest.fixture(params=TILES, ids=str)
def tile(request, monkeypatch):
    monkeypatch.setitem(launch.TILES, "decode_linear", {80: (*request.param, None)})


def operands(B, N, K, dtype, *, norm=None, bias=True, residual=True, int8=False, scale=1.0):
    """The tensors of `OPERANDS`."""
    weight = randn(N, K, dtype=dtype, scale=K**-0.5, seed=1)
    if int8:
        generator = torch.Generator().manual_seed(1)
        weight = torch.randint(-128, 128, (N, K), dtype=torch.int8, generator=generator).to(DEVICE)
    return (
        randn(B, K, dtype=dtype, scale=scale),
        weight,
        randn(N, dtype=dtype, seed=2) if bias else None,
        randn(N, scale=0.01, seed=3).abs() if int8 else None,
        randn(K, dtype=dtype, shift=1.0, seed=4) if norm else None,
        randn(K, dtype=dtype, seed=5) if norm == "layer_norm" and bias else None,
        randn(B, N, dtype=dtype, seed=6) if residual else None,
    )


def hold(B, N, K, dtype, *, norm=None, activation=None, layout=torch.clone, **what):
    tensors = operands(B, N, K, dtype, norm=norm, **what)
    tensors = [tensor if tensor is None else layout(tensor) for tensor in tensors]

    def call(function, *tensors):
        options = dict(zip(OPERANDS, tensors, strict=True))
        return function(**options, norm=norm, activation=activation)

    functions = (partial(call, function) for function in (decode_linear, torch_ops.decode_linear))
    hold_against(*functions, tensors, backward=False)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_every_dtype_norm_and_tile(norm, dtype):
    hold(3, 17, 96, dtype, norm=norm, activation="gelu_tanh")
    hold(1, 5, 33, dtype, norm=norm)


@given(
    st.integers(1, MOST_ROWS),
    st.integers(1, 20),
    st.sampled_from([1, 2, 3, 7, 31, 33, 64, 129, 257]),
    dtypes(),
    st.sampled_from(NORMS),
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    layouts(),
)
def test_any_combination_of_options(B, N, K, dtype, norm, activation, bias, residual, int8, layout):
    what = {"bias": bias, "residual": residual, "int8": int8, "layout": layout}
    hold(B, N, K, dtype, norm=norm, activation=activation, **what)


@pytest.mark.parametrize(("scale", "int8"), [(1e-3, False), (30.0, True)])
def test_small_and_large_inputs(scale, int8):
    hold(2, 9, 65, torch.bfloat16, norm="layer_norm", int8=int8, scale=scale)


@pytest.mark.parametrize("B", [MOST_ROWS + 1, 2 * MOST_ROWS + 3])
def test_more_rows_than_a_program_processes(B):
    hold(B, 5, 33, torch.float32, norm="layer_norm", int8=True)
    hold(B, 5, 33, torch.float32, norm="layer_norm", activation="relu")


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [1, 8, 33, 40, 48, 64])
@pytest.mark.parametrize("B", [1, 3])
def test_pytorchs_products(B, K, dtype, int8):
    x, weight, bias, scale, *_ = operands(B, 8, K, dtype, int8=int8, bias=not int8)
    stands_for = weight.double() if scale is None else weight.double() * scale.double()[:, None]
    product = x.double() @ stands_for.T
    added = torch.zeros_like(product) if bias is None else bias.double()
    exact = product + added
    y = torch_ops.decode_linear(x.T.contiguous().T, weight, bias, scale=scale)
    # scale, product and sum are rounded to the dtype, and a sum in fp32 is rounded K times
    products = x.double().abs() @ stands_for.abs().T
    bound = 2 * torch.finfo(dtype).eps * (exact.abs().max() + added.abs().max())
    bound += K / 2 * torch.finfo(torch.float32).eps * products.max()
    assert (y - exact).abs().max() <= bound


def test_many_rows_and_very_wide_rows_use_pytorch():
    def launches(B, K, dtype):
        x = torch.empty(B, K, device="meta")
        scale = torch.empty(6, device="meta") if dtype == torch.int8 else None
        with launch.record(90) as recorded:
            y = decode_linear(x, torch.empty(6, K, dtype=dtype, device="meta"), scale=scale)
        assert y.shape == (B, 6)
        return len(recorded)

    assert launches(MOST_ROWS, 8, torch.float32) == 1
    assert launches(MOST_ROWS + 1, 8, torch.float32) == 0
    assert launches(MOST_ROWS + 1, 8, torch.int8) == 1
    assert launches(1, WIDEST, torch.float32) == 1
    assert launches(1, WIDEST + 1, torch.float32) == 0
