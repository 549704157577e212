"""The contract of `kernels.Ops`, which every operation of both tables satisfies.

Values are compared with fp64 in the file of each operation; here are the properties they share.
"""

import inspect
import itertools
import math
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels import check, torch_ops, triton_ops
from tests.numerics import assert_deterministic
from tests.operands import DEVICE, offset, randn, stepped, transposed

B, T, C, H, V = 2, 3, 8, 2, 5
OPERATIONS = [name for name in kernels.Ops._fields if name != "adamw"]
DIFFERENTIABLE = [name for name in OPERATIONS if name not in check.WITHOUT_GRADIENTS]
DROPOUT = ("add_layer_norm", "attention", "attention_qkv")
TABLES = {"torch": torch_ops.OPS, "triton": triton_ops.OPS}
all_operations = pytest.mark.parametrize("operation", OPERATIONS)
with_gradients = pytest.mark.parametrize("operation", DIFFERENTIABLE)
with_dropout = pytest.mark.parametrize("operation", DROPOUT)
both_tables = pytest.mark.parametrize("table", TABLES)


def operands_of(operation, B=B, T=T):
    """The operands for B rows of T tokens; the floating-point ones have gradients."""
    seeds = itertools.count()

    def normal(*shape, scale=1.0):
        return randn(*shape, scale=scale, seed=next(seeds))

    def integers(high, *shape):
        return (torch.arange(math.prod(shape)).view(shape) * 3 % high).to(DEVICE)

    return check.operands(operation, normal, integers, (B, T, C, H, V))


def call(table, operation, operands):
    """Outputs, and gradients of the floating-point operands unless the operation has none."""
    operands = [x.detach() if torch.is_tensor(x) else x for x in operands]
    options = {"temperature": 0.0} if operation == "sample_token" else {}
    if operation in check.WITHOUT_GRADIENTS:
        return [getattr(TABLES[table], operation)(*operands, **options)]
    return results(getattr(TABLES[table], operation), operands)


def results(function, operands, wanted=None, expand=torch.ones_like):
    """Outputs, and gradients of the floating-point operands or of the `wanted` one."""
    outputs, differentiate = forward(function, operands, wanted, expand)
    return [*(output.detach() for output in outputs), *differentiate()]


def forward(function, operands, wanted=None, expand=torch.ones_like):
    """Outputs, and a function that returns the gradients as often as it is called."""
    operands = [x.detach() if torch.is_tensor(x) else x for x in operands]
    leaves = [operands[i] for i in floating(operands) if wanted in (None, i)]
    for leaf in leaves:
        leaf.requires_grad_()
    outputs = function(*operands)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [expand(output) for output in outputs]
    return outputs, partial(torch.autograd.grad, outputs, leaves, upstream, retain_graph=True)


def dropping(operation):
    """The Triton operation, with dropout if it has any."""
    options = {"dropout_p": 0.5} if operation in DROPOUT else {}
    return partial(getattr(triton_ops.OPS, operation), **options)


def floating(operands):
    return [i for i, x in enumerate(operands) if torch.is_tensor(x) and x.is_floating_point()]


@all_operations
def test_both_tables_have_the_same_signature(operation):
    theirs, ours = (inspect.signature(getattr(ops, operation)) for ops in TABLES.values())
    assert ours == theirs


def test_both_optimizers_take_the_same_options():
    theirs, ours = (inspect.signature(ops.adamw).parameters for ops in TABLES.values())
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


@both_tables
@all_operations
def test_no_rows_give_empty_outputs_and_zero_gradients(table, operation):
    empty = call(table, operation, operands_of(operation, B=0))
    reference = call("torch", operation, operands_of(operation))
    assert len(empty) == len(reference)
    for result, full in zip(empty, reference, strict=True):
        assert result.dtype == full.dtype
        assert result.ndim == full.ndim
        assert torch.equal(result, torch.zeros_like(result))


@both_tables
@pytest.mark.parametrize("layout", [transposed, stepped, offset])
@all_operations
def test_operands_of_any_strides(table, operation, layout):
    """Except the cache of `decode_attention`, which is written to and must be contiguous."""
    operands = operands_of(operation)
    strided = [layout(x) if torch.is_tensor(x) and 1 < x.ndim < 5 else x for x in operands]
    torch.testing.assert_close(call(table, operation, strided), call(table, operation, operands))


@with_gradients
def test_upstream_gradients_of_any_strides(operation):
    """The gradient of a sum has strides of 0, that of a transposed output reversed strides."""
    operands, function = operands_of(operation), dropping(operation)
    for expand in (lambda y: y.new_ones(()).expand_as(y), lambda y: transposed(randn(*y.shape))):
        torch.manual_seed(0)
        actual = results(function, operands, expand=expand)
        torch.manual_seed(0)
        dense = results(function, operands, expand=lambda y, of=expand: of(y).contiguous())
        torch.testing.assert_close(actual, dense, rtol=1e-5, atol=1e-5)


@all_operations
def test_repeated_calls_give_the_same_bits(operation):
    operands = operands_of(operation, 3, 130 if DEVICE == "cuda" else 20)
    half = [x.half() if i in floating(operands) else x for i, x in enumerate(operands)]
    assert_deterministic(lambda: tuple(call("triton", operation, half)), repeats=2)


@with_gradients
def test_each_operand_can_be_the_only_one_with_a_gradient(operation):
    operands, function = operands_of(operation), getattr(triton_ops.OPS, operation)
    indices = floating(operands)
    gradients = results(function, operands)[-len(indices) :]
    for index, gradient in zip(indices, gradients, strict=True):
        assert torch.equal(results(function, operands, wanted=index)[-1], gradient)


@with_dropout
def test_seeds_come_from_the_default_generator(operation):
    operands = operands_of(operation, T=20)

    def dropped(dropout_p=0.5):
        outputs = getattr(triton_ops.OPS, operation)(*operands, dropout_p=dropout_p)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    torch.manual_seed(3)
    first, second = dropped(), dropped()
    torch.manual_seed(3)
    assert torch.equal(first, dropped())
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    dropped(0.0)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn if nothing is dropped


@pytest.mark.parametrize(
    "operation", ["attention", "attention_qkv", "feed_forward", "linear_cross_entropy"]
)
def test_autocast_casts_operands_as_linear_does_but_not_fp64(operation):
    operands, function = operands_of(operation), getattr(triton_ops.OPS, operation)
    half = [x.bfloat16() if i in floating(operands) else x for i, x in enumerate(operands)]
    wide = [x.double() if i in floating(operands) else x for i, x in enumerate(operands)]
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(function(*operands), function(*half))
        assert function(*wide).dtype == torch.float64
        if operation == "feed_forward":  # the operator has the same rule
            y, *_ = torch.ops.gpt_kernels.feed_forward(*operands, "gelu")
            assert y.dtype == torch.bfloat16


@with_gradients
def test_gradients_of_gradients_and_transforms_of_torch_func_are_errors(operation):
    first, *others = operands_of(operation)
    function = getattr(triton_ops.OPS, operation)
    outputs, _ = forward(function, (first, *others))
    with pytest.raises(RuntimeError, match=f"^{operation}: gradients of gradients .* use"):
        outputs[0].sum().backward(create_graph=True)
    with pytest.raises(RuntimeError, match=f"^{operation}: torch.func's transforms .* use"):
        torch.func.vmap(lambda one: function(one, *others))(first[None].detach())


@all_operations
def test_operators_pass_opcheck(operation):
    """On zeros and noise, with the shapes and options of an ordinary call."""
    calls, has_gradients = [], operation in DIFFERENTIABLE

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "gpt_kernels":
                calls.append((func, args))
            return func(*args, **kwargs or {})

    def real(x):
        if not torch.is_tensor(x):
            return x
        zeros = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        return zeros.normal_().requires_grad_(has_gradients) if x.is_floating_point() else zeros

    with FakeTensorMode() as mode, Calls():
        fake = [mode.from_tensor(x) if torch.is_tensor(x) else x for x in operands_of(operation)]
        dropping(operation)(*fake)
    ((operator, arguments),) = calls
    torch.library.opcheck(operator, [real(x) for x in arguments])


@with_gradients
def test_torch_compile_traces_an_operation_into_one_graph(operation):
    def model(*operands):
        outputs = getattr(triton_ops.OPS, operation)(*operands)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum(output.sin().square().sum() for output in outputs)

    torch._dynamo.reset()  # it counts how often it has compiled `model`
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (B, B + 1):
        operands = operands_of(operation, rows)
        leaves = [operands[i].requires_grad_() for i in floating(operands)]
        loss, expected = compiled(*operands), model(*operands)
        torch.testing.assert_close(loss, expected)
        gradients = (torch.autograd.grad(one, leaves) for one in (loss, expected))
        torch.testing.assert_close(*gradients)


def test_torch_export_keeps_operations_for_any_batch():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(C)
            self.up, self.down = torch.nn.Linear(C, 4 * C), torch.nn.Linear(4 * C, C)

        def forward(self, x):  # (B, T, C)
            ops, up, down = triton_ops.OPS, self.up, self.down
            x = ops.layer_norm(x, self.norm.weight, self.norm.bias)
            x = ops.attention_qkv(x.repeat(1, 1, 3), H)
            return ops.feed_forward(x, up.weight, up.bias, down.weight, down.bias)

    block, sizes = Block().to(DEVICE), {"x": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}}
    exported = torch.export.export(block, (randn(B, T, C),), dynamic_shapes=sizes).module()
    x = randn(5, 7, C)
    assert torch.equal(exported(x), block(x))
