"""The contract of `kernels.Ops`: both tables take the same calls, whatever tensors they are given.

Values are held against fp64 in each operation's own file; here it is what all have in common.
"""

import inspect

import pytest
import torch

import kernels
from kernels import torch_ops, triton_ops
from tests.numerics import DEVICE, randn, stepped, transposed

B, T, C, H, F, V = 2, 3, 8, 2, 16, 5


def tokens(*shape, below=V):
    return (torch.arange(torch.Size(shape).numel()).view(shape) * 3 % below).to(DEVICE)


# operation -> its operands for B rows of T tokens; the floating-point ones have gradients
OPERANDS = {
    "embedding": lambda B, T: (tokens(B, T), randn(V, C), randn(max(T, 1), C)),
    "layer_norm": lambda B, T: (randn(B, T, C), randn(C), randn(C)),
    "rms_norm": lambda B, T: (randn(B, T, C), randn(C)),
    "add_layer_norm": lambda B, T: (randn(B, T, C), randn(B, T, C, seed=1), randn(C), randn(C)),
    "attention": lambda B, T: tuple(randn(B, H, T, C // H, seed=i) for i in range(3)),
    "attention_qkv": lambda B, T: (randn(B, T, 3 * C), H),
    "feed_forward": lambda B, T: (randn(B, T, C), randn(F, C), randn(F), randn(C, F), randn(C)),
    "cross_entropy": lambda B, T: (randn(B, T, V), tokens(B, T)),
    "linear_cross_entropy": lambda B, T: (randn(B, T, C), randn(V, C), randn(V), tokens(B, T)),
    "decode_linear": lambda B, T: (randn(B, C), randn(F, C), randn(F)),
    "decode_attention": lambda B, T: (
        randn(B, 3 * C),
        randn(2, B, H, max(T, 1), C // H),
        tokens(B, below=max(T, 1)),
    ),
    "sample_token": lambda B, T: (randn(B, V),),
}
STEPS = ("decode_linear", "decode_attention", "sample_token")  # no gradients
TABLES = {"torch": torch_ops.OPS, "triton": triton_ops.OPS}
all_calls = pytest.mark.parametrize("operation", OPERANDS)
both_tables = pytest.mark.parametrize("table", TABLES)


def call(table, operation, operands):
    """Outputs and, where there are any, the gradients of the floating-point operands."""
    operands = [x.detach() if _is_tensor(x) else x for x in operands]
    options = {"temperature": 0.0} if operation == "sample_token" else {}
    if operation in STEPS:
        return [getattr(TABLES[table], operation)(*operands, **options)]
    outputs, differentiate = _forward(TABLES[table], operation, operands)
    return [*(output.detach() for output in outputs), *differentiate()]


def _forward(ops, operation, operands):
    """Outputs, and a function that gives the gradients as often as it is called."""
    leaves = [x.requires_grad_() for x in operands if _is_tensor(x) and x.is_floating_point()]
    outputs = getattr(ops, operation)(*operands)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.ones_like(output) for output in outputs]
    return outputs, lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)


def _is_tensor(x):
    return isinstance(x, torch.Tensor)


def test_every_operation_is_called_here():
    assert {*OPERANDS, "adamw"} == {*kernels.Ops._fields}


@pytest.mark.parametrize("operation", sorted({*kernels.Ops._fields} - {"adamw"}))
def test_both_tables_have_one_signature(operation):
    theirs, ours = (inspect.signature(getattr(ops, operation)) for ops in TABLES.values())
    assert ours == theirs


def test_both_optimizers_take_the_same_options():
    theirs, ours = (inspect.signature(ops.adamw).parameters for ops in TABLES.values())
    assert {name: p.default for name, p in ours.items()} == {
        n: p.default for n, p in theirs.items()
    }


@both_tables
@all_calls
def test_no_rows(table, operation):
    """Nothing in, nothing out; a loss of nothing is 0, and so are gradients."""
    results = call(table, operation, OPERANDS[operation](0, T))
    truth = call("torch", operation, OPERANDS[operation](B, T))
    assert len(results) == len(truth)
    for result, full in zip(results, truth, strict=True):
        assert result.dtype == full.dtype
        assert result.ndim == full.ndim
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize(("B", "T"), [(1, 1), (2, 1), (1, 3)])
@all_calls
def test_one_row_and_one_token(operation, B, T):
    operands = OPERANDS[operation](B, T)
    torch.testing.assert_close(
        call("triton", operation, operands), call("torch", operation, operands)
    )


@both_tables
@pytest.mark.parametrize("layout", [transposed, stepped])
@all_calls
def test_any_strides(table, operation, layout):
    """But those of the cache of `decode_attention`, which is written to and never made elsewhere."""
    operands = OPERANDS[operation](B, T)
    strided = [layout(x) if _is_tensor(x) and 1 < x.ndim < 5 else x for x in operands]
    torch.testing.assert_close(call(table, operation, strided), call(table, operation, operands))


@both_tables
@all_calls
def test_inputs_are_not_written(table, operation):
    operands = OPERANDS[operation](B, T)
    before = [x.clone() if _is_tensor(x) else x for x in operands]
    call(table, operation, operands)
    for index, (x, old) in enumerate(zip(operands, before, strict=True)):
        if _is_tensor(x) and (operation, index) != ("decode_attention", 1):  # its cache
            assert torch.equal(x, old)


@pytest.mark.parametrize("operation", [name for name in OPERANDS if name not in STEPS])
def test_a_second_backward_over_the_same_graph(operation):
    _, differentiate = _forward(triton_ops.OPS, operation, OPERANDS[operation](B, T))
    assert all(map(torch.equal, differentiate(), differentiate()))


# dynamo looks at all attributes of a tensor that it goes on from
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("operation", [name for name in OPERANDS if name not in STEPS])
def test_what_is_around_it_can_be_compiled(operation):
    def results(function):
        operands = [x.detach() if _is_tensor(x) else x for x in OPERANDS[operation](B, T)]
        leaves = [x.requires_grad_() for x in operands if _is_tensor(x) and x.is_floating_point()]
        loss = function(*operands)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    def model(*operands):
        outputs = getattr(triton_ops.OPS, operation)(*operands)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum(output.sin().square().sum() for output in outputs)

    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(results(compiled), results(model))


WRONG = {  # the operand that is given one channel, row or label too many
    "embedding": (2, 0),
    "layer_norm": (1, 0),
    "rms_norm": (1, 0),
    "add_layer_norm": (1, 2),
    "attention": (1, 3),
    "attention_qkv": (0, 2),
    "feed_forward": (1, 1),
    "cross_entropy": (1, 1),
    "linear_cross_entropy": (1, 1),
    "decode_linear": (1, 1),
    "decode_attention": (0, 1),
    "sample_token": (0, None),
}


@all_calls
def test_a_wrong_shape_is_named(operation):
    operands = list(OPERANDS[operation](B, T))
    index, dimension = WRONG[operation]
    right = operands[index]
    if dimension is None:
        wrong = right.flatten()
    elif operation == "embedding":
        wrong = right[:, : C - 1].contiguous()
    else:
        wrong = torch.cat((right, right.narrow(dimension, 0, 1)), dimension)
    operands[index] = wrong
    with pytest.raises(ValueError, match=r"\(") as error:
        call("triton", operation, operands)
    assert str(tuple(wrong.shape)) in str(error.value)
