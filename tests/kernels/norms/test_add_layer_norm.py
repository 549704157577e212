"""add_layer_norm: the sum and its norm, dropout that backward replays, gradients into both."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import torch_ops
from kernels.common import launch, philox
from kernels.norms.add_layer_norm import STREAM, add_layer_norm
from tests.numerics import (
    DEVICE,
    DTYPES,
    SIZES,
    assert_deterministic,
    assert_rounded_once,
    differentiate,
    hold_against,
    layouts,
    randn,
    shapes,
)

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


def operation(dropout_p):
    def run(residual, x, weight, bias=None, x_bias=None):
        options = {"dropout_p": dropout_p, "seed": SEED}
        return add_layer_norm(residual, x, weight, bias, x_bias=x_bias, **options)

    return run


def definition(inputs, dropout_p):
    """The sum, and the norm of the sum as it was returned: that one is rounded to its dtype."""
    returned = operation(dropout_p)(*inputs)[0]

    def oracle(residual, x, weight, bias, x_bias=None):
        x = x if x_bias is None else x + x_bias
        total = residual + x * factors(x, dropout_p)
        rounded = total + (returned.to(total.dtype) - total).detach()  # gradients pass
        return total, torch_ops.layer_norm(rounded, weight, bias)

    return oracle


def factors(x, dropout_p):
    """What `dropout_p` makes of each element of x: 0, or the inverse of the rate that is kept."""
    C = x.shape[-1]
    _, scale = philox.threshold_and_scale(dropout_p)
    kept = philox.rows_kept(SEED, STREAM.value, x.numel() // C, C, dropout_p)
    return kept.view(x.shape).to(x.dtype) * scale


def hold(inputs, dropout_p=0.0, **options):
    hold_against(operation(dropout_p), definition(inputs, dropout_p), inputs, **options)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("count", [3, 4, 5], ids=["", "bias", "bias and x_bias"])
@pytest.mark.parametrize("C", [1, 2, 3, 7])
def test_gradients_are_those_of_the_definition(C, count, dropout_p):
    inputs = [x.requires_grad_() for x in operands(2, C, dtype=torch.float64)[:count]]
    in_one_direction = C > 3  # a random one; below it each element's derivative is taken
    torch.autograd.gradcheck(operation(dropout_p), inputs, fast_mode=in_one_direction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("C", SIZES[1:])  # of one column the gradient cancels to 0
def test_rounded_once(C, dtype):
    hold(operands(3, 5, C, dtype=dtype), dropout_p=0.0 if C % 2 else 0.25)


@pytest.mark.parametrize("C", [384, 8193])
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_wide_rows(C, dropout_p):
    hold(operands(2, C, dtype=torch.bfloat16), dropout_p)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_programs_that_visit_many_tiles(dropout_p, monkeypatch):
    a_card_of_one_sm = {80: (512, 512, 4, 1, 128)}
    for name in ("add_layer_norm_backward", "add_layer_norm_backward_x_bias"):
        monkeypatch.setitem(launch.TILES, name, a_card_of_one_sm)
    hold(operands(150, 65), dropout_p)
    hold(operands(150, 65)[:4], dropout_p)


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


def test_the_norm_is_of_the_sum_as_it_was_returned():
    residual, x, weight, bias, _ = operands(7, 48, dtype=torch.bfloat16)
    total, y = add_layer_norm(residual, x, weight, bias)
    assert torch.equal(total, residual + x)
    exact, baseline = (
        torch_ops.layer_norm(*(t.to(dtype) for t in (total, weight, bias)))
        for dtype in (torch.float64, torch.float32)
    )
    assert_rounded_once(y, exact, baseline)


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_gradients_when_one_output_is_not_used(used, dropout_p):
    inputs = operands(4, 33)
    oracle = definition(inputs, dropout_p)
    hold_against(
        lambda *x: operation(dropout_p)(*x)[used],
        lambda *x: (
            oracle(*x)[used] + 0 * oracle(*x)[1]
        ),  # the parameters' gradients are 0, not None
        inputs,
    )


def test_one_tensor_as_residual_and_branch():
    """Both gradients may be the same memory; autograd has to add them, not one twice."""
    _, x, weight, bias, _ = operands(5, 20)
    for function in (add_layer_norm, torch_ops.add_layer_norm):
        leaf = x.clone().requires_grad_()
        total, y = function(leaf, leaf, weight, bias)
        (total * x + y).sum().backward()
        if function is add_layer_norm:
            actual = leaf.grad
    torch.testing.assert_close(actual, leaf.grad, rtol=1e-5, atol=1e-5)


def test_what_is_dropped_is_exactly_the_residual_and_gets_no_gradient():
    residual, x, weight, *_ = operands(40, 100)
    kept = factors(x, 0.5) > 0
    (total, _), (dresidual, dx, _) = differentiate(
        operation(0.5), [residual, x, weight], [randn(40, 100, seed=i) for i in range(2)]
    )
    assert 0.45 < kept.double().mean() < 0.55
    assert torch.equal(total[~kept], residual[~kept])
    assert (dx[~kept] == 0).all()
    torch.testing.assert_close(dx[kept], 2 * dresidual[kept], rtol=1e-4, atol=0)


def test_seeds_are_drawn_from_the_default_generator():
    inputs = operands(9, 30)

    def total(seed):
        torch.manual_seed(seed)
        return add_layer_norm(*inputs[:4], dropout_p=0.5)[0]

    assert torch.equal(total(1), total(1))
    assert not torch.equal(total(1), total(2))


def test_a_rate_that_is_no_probability():
    with pytest.raises(ValueError, match="from 0 to 1"):
        add_layer_norm(*operands(2, 5)[:4], dropout_p=1.5)


def test_residual_and_branch_of_different_shapes():
    residual, x, weight, bias, _ = operands(2, 5)
    with pytest.raises(ValueError, match=r"residual has shape \(2, 4\) and x \(2, 5\)"):
        add_layer_norm(residual[:, :4], x, weight, bias)


def test_the_same_bits_every_time():
    inputs = operands(67, 130, dtype=torch.bfloat16)
    upstream = [randn(67, 130, dtype=torch.bfloat16, seed=i) for i in range(2)]
    assert_deterministic(lambda: sum(differentiate(operation(0.2), inputs, upstream), ()))
