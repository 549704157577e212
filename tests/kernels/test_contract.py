"""The contract of `kernels.Ops`, which every operation of both tables satisfies.

Values are compared with fp64 in the file of each operation; here are the properties they share.
"""

import inspect
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import kernels
from kernels import torch_ops, triton_ops
from tests.numerics import DEVICE, assert_deterministic, randn, stepped, transposed

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
DECODING = ("decode_linear", "decode_attention", "sample_token")  # without gradients
DROPOUT = ("add_layer_norm", "attention", "attention_qkv", "feed_forward")
TABLES = {"torch": torch_ops.OPS, "triton": triton_ops.OPS}
all_operations = pytest.mark.parametrize("operation", OPERANDS)
with_gradients = pytest.mark.parametrize(
    "operation", [name for name in OPERANDS if name not in DECODING]
)
with_dropout = pytest.mark.parametrize("operation", DROPOUT)
both_tables = pytest.mark.parametrize("table", TABLES)


def call(table, operation, operands):
    """Outputs, and gradients of the floating-point operands unless the operation has none."""
    operands = [x.detach() if torch.is_tensor(x) else x for x in operands]
    options = {"temperature": 0.0} if operation == "sample_token" else {}
    if operation in DECODING:
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


def floating(operands):
    return [i for i, x in enumerate(operands) if torch.is_tensor(x) and x.is_floating_point()]


def test_every_operation_is_tested():
    assert {*OPERANDS, "adamw"} == {*kernels.Ops._fields}


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
    empty = call(table, operation, OPERANDS[operation](0, T))
    reference = call("torch", operation, OPERANDS[operation](B, T))
    assert len(empty) == len(reference)
    for result, full in zip(empty, reference, strict=True):
        assert result.dtype == full.dtype
        assert result.ndim == full.ndim
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize(("B", "T"), [(1, 1), (2, 1), (1, 3)])
@all_operations
def test_one_row_and_one_token(operation, B, T):
    operands = OPERANDS[operation](B, T)
    torch.testing.assert_close(
        call("triton", operation, operands), call("torch", operation, operands)
    )


@both_tables
@pytest.mark.parametrize("layout", [transposed, stepped])
@all_operations
def test_operands_of_any_strides(table, operation, layout):
    """Except the cache of `decode_attention`, which is written to and must be contiguous."""
    operands = OPERANDS[operation](B, T)
    strided = [layout(x) if torch.is_tensor(x) and 1 < x.ndim < 5 else x for x in operands]
    torch.testing.assert_close(call(table, operation, strided), call(table, operation, operands))


@with_gradients
def test_upstream_gradients_of_any_strides(operation):
    """The gradient of a sum has strides of 0, that of a transposed output reversed strides."""
    operands = OPERANDS[operation](B, T)
    for expand in (lambda y: y.new_ones(()).expand_as(y), lambda y: transposed(randn(*y.shape))):
        actual, expected = (
            results(getattr(ops, operation), operands, expand=expand)
            for ops in (triton_ops.OPS, torch_ops.OPS)
        )
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@both_tables
@all_operations
def test_inputs_are_not_written(table, operation):
    operands = OPERANDS[operation](B, T)
    before = [x.clone() if torch.is_tensor(x) else x for x in operands]
    call(table, operation, operands)
    for index, (x, old) in enumerate(zip(operands, before, strict=True)):
        if torch.is_tensor(x) and (operation, index) != ("decode_attention", 1):  # its cache
            assert torch.equal(x, old)


@all_operations
def test_repeated_calls_give_the_same_bits(operation):
    operands = OPERANDS[operation](3, 130)
    half = [x.half() if i in floating(operands) else x for i, x in enumerate(operands)]
    assert_deterministic(lambda: tuple(call("triton", operation, half)), repeats=2)


@with_gradients
def test_a_second_backward_gives_the_same_bits(operation):
    _, differentiate = forward(getattr(triton_ops.OPS, operation), OPERANDS[operation](B, T))
    assert all(map(torch.equal, differentiate(), differentiate()))


@with_gradients
def test_each_operand_can_be_the_only_one_with_a_gradient(operation):
    operands, function = OPERANDS[operation](B, T), getattr(triton_ops.OPS, operation)
    expected = results(function, operands)
    for index, gradient in zip(
        floating(operands), expected[-len(floating(operands)) :], strict=True
    ):
        assert torch.equal(results(function, operands, wanted=index)[-1], gradient)


@with_gradients
def test_activation_checkpointing_gives_the_same_bits(operation):
    """Dropout included: the recomputation draws the same seed."""
    options = {"dropout_p": 0.5} if operation in DROPOUT else {}
    function = partial(getattr(triton_ops.OPS, operation), **options)
    again = partial(checkpoint, function, use_reentrant=False)
    gradients = []
    for run in (function, again):
        torch.manual_seed(4)
        gradients.append(results(run, OPERANDS[operation](B, 20)))
    assert all(map(torch.equal, *gradients))


@with_dropout
def test_seeds_come_from_the_default_generator(operation):
    operands = OPERANDS[operation](B, 20)

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
    operands, function = OPERANDS[operation](B, T), getattr(triton_ops.OPS, operation)
    half = [x.bfloat16() if i in floating(operands) else x for i, x in enumerate(operands)]
    wide = [x.double() if i in floating(operands) else x for i, x in enumerate(operands)]
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(function(*operands), function(*half))
        assert function(*wide).dtype == torch.float64


# dynamo looks at all attributes of a tensor from which it continues
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@with_gradients
def test_torch_compile_compiles_the_code_around_an_operation(operation):
    def model(*operands):
        outputs = getattr(triton_ops.OPS, operation)(*operands)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum(output.sin().square().sum() for output in outputs)

    operands = OPERANDS[operation](B, T)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(results(compiled, operands), results(model, operands))
