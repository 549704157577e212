"""add_layer_norm: the sum and its norm, dropout that backward replays, gradients into both."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import torch_ops
from kernels.common import philox
from kernels.norms import norm_parameter_gradients
from kernels.norms.add_layer_norm import STREAM, add_layer_norm
from kernels.norms.layer_norm import WIDEST
from tests.numerics import hold_against
from tests.operands import DEVICE, DTYPES, SIZES, layouts, randn, shapes

SEED = torch.tensor(0x1234_5678_9ABC_DEF, device=DEVICE)


def operands(*shape, dtype=torch.float32):
    """residual, x, weight, bias, x_bias; the sum is well-conditioned, as in `test_layer_norm`."""
    C = shape[-1]
    scale = 1.0 if C > 2 else 3e-3
    ramp = torch.linspace(-2, 2, C, dtype=torch.float64, device=DEVICE)
    residual = (randn(*shape, dtype=torch.float64).clamp(-1, 1) + ramp) * scale
    x = randn(*shape, dtype=torch.float64, seed=1).clamp(-1, 1) * scale / 2
    weight, bias = randn(C, dtype=dtype, shift=1.0, seed=2), randn(C, dtype=dtype, seed=3)
    x_bias = (randn(C, dtype=torch.float64, seed=4).clamp(-1, 1) * scale / 4).to(dtype)
    return [residual.to(dtype), x.to(dtype), weight, bias, x_bias]


def operation(dropout_p, residual, x, weight, bias=None, x_bias=None):
    options = {"x_bias": x_bias, "dropout_p": dropout_p, "seed": SEED}
    return add_layer_norm(residual, x, weight, bias, **options)


def definition(inputs, dropout_p):
    """The sum, and the norm of the sum as it is returned, rounded to its dtype."""
    returned = operation(dropout_p, *inputs)[0]
    C = returned.shape[-1]
    kept = philox.rows_kept(SEED, STREAM.value, returned.numel() // C, C, dropout_p)
    factors = kept.view(returned.shape) * philox.threshold_and_scale(dropout_p)[1]

    def reference(residual, x, weight, bias=None, x_bias=None):
        x = x if x_bias is None else x + x_bias
        total = x * factors.to(x.dtype)
        total = total if residual is None else residual + total
        rounded = total + (returned.to(total.dtype) - total).detach()  # gradients pass
        return total, torch_ops.layer_norm(rounded, weight, bias)

    return reference


def hold(inputs, dropout_p=0.0, **options):
    functions = partial(operation, dropout_p), definition(inputs, dropout_p)
    hold_against(*functions, inputs, **options)


# the number of operands: without bias, with bias, and with x_bias, too
@pytest.mark.parametrize(("count", "dropout_p"), [(3, 0.3), (4, 0.0), (5, 0.3)])
@pytest.mark.parametrize("C", [1, 2, 7])
def test_gradients_match_the_definition(C, count, dropout_p):
    inputs = [x.requires_grad_() for x in operands(2, C, dtype=torch.float64)[:count]]
    in_one_direction = C > 1  # a random one
    torch.autograd.gradcheck(partial(operation, dropout_p), inputs, fast_mode=in_one_direction)


@pytest.mark.parametrize("C", SIZES[1:])  # for a single column the gradient cancels to 0
def test_results_are_rounded_once_at_every_width(C):
    hold(operands(3, 5, C, dtype=DTYPES[C % 3]), dropout_p=0.0 if C % 2 else 0.25)


@pytest.mark.parametrize("C", [384, WIDEST])
def test_wide_rows(C):
    hold(operands(2, C, dtype=torch.bfloat16)[:3], dropout_p=0.2)


@pytest.mark.parametrize(("count", "dropout_p"), [(4, 0.0), (5, 0.2)])
def test_programs_that_visit_many_tiles(count, dropout_p, monkeypatch):
    monkeypatch.setattr(norm_parameter_gradients, "multiprocessors", lambda device: 1)
    hold(operands(150, 65)[:count], dropout_p)


@given(shape=shapes(300).filter(lambda shape: shape[-1] > 1), data=st.data())
def test_any_shape_and_stride(shape, data):
    dropout_p = data.draw(st.sampled_from([0.0, 0.1, 1.0]))
    hold([data.draw(layouts())(x) for x in operands(*shape)], dropout_p)


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_a_residual_of_another_dtype(dropout_p):
    """Autocast: the residual stream in fp32, the branch in bf16."""
    residual, x, *parameters = operands(6, 40)
    inputs = [residual, x.bfloat16(), *parameters]
    hold(inputs, dropout_p, out_dtype=torch.float32)


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_without_a_residual(dropout_p):
    _, *inputs = operands(6, 40)
    both = partial(operation, dropout_p), definition([None, *inputs], dropout_p)
    hold_against(*(partial(function, None) for function in both), inputs)


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_gradients_if_one_output_is_unused(used, dropout_p):
    inputs = operands(4, 33)
    both = definition(inputs, dropout_p)

    def reference(*inputs):
        outputs = both(*inputs)
        return outputs[used] + 0 * outputs[1]  # gradients of the parameters are 0, not None

    hold_against(lambda *x: operation(dropout_p, *x)[used], reference, inputs)


def test_one_tensor_as_residual_and_branch():
    """Both gradients may share memory; autograd has to add both, not one twice."""
    _, x, weight, bias, _ = operands(5, 20)
    for function in (add_layer_norm, torch_ops.add_layer_norm):
        leaf = x.clone().requires_grad_()
        total, y = function(leaf, leaf, weight, bias)
        (total * x + y).sum().backward()
        if function is add_layer_norm:
            actual = leaf.grad
    torch.testing.assert_close(actual, leaf.grad, rtol=1e-5, atol=1e-5)
