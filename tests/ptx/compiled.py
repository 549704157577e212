"""Every operation that the ledger's workloads call: compiled, executed, and compared with fp64.

`pytest --ptx=80 tests/ptx/compiled.py`, which `test_execute.py` runs. The workloads run at
small sizes with a table of operations whose functions compare each distinct call with
`hold_against`, and then return what PyTorch computes.
"""

import inspect
import json
import math
import re
from functools import partial
from unittest import mock

import pytest
import torch
import triton
from torch.nn import functional as F

from bench.ledger.__main__ import COMMITTED
from bench.workloads.operations import CASES, LECTURE, TOKENS, UPDATES, WIDE_HEADS
from bench.workloads.steps import STEPS, DecodingStep, Evaluation, TrainingStep
from kernels import Ops, torch_ops, triton_ops
from kernels.common import launch
from kernels.common.philox import attention_kept, rows_kept, threshold_and_scale
from kernels.flash_attention import options as attention_options
from kernels.norms import add_layer_norm
from tests.kernels.decoding.test_sample_token import sample_by_sorting
from tests.kernels.flash_attention.plain import SEED, hold, operands
from tests.numerics import hold_against
from tests.ptx.execute import executing
from tests.ptx.memory import Fault

CPU = torch.device("cpu")
# operations that round intermediate results, as PyTorch does in the same dtype
ROUNDING = ("attention", "attention_qkv", "feed_forward", "linear_cross_entropy")
SMALL = {
    "embedding": {"V": 304},
    "linear_cross_entropy": {"C": 64},
    "decode_attention": {"T": 1024},
}
LARGEST_LOGIT = 8.0  # of random queries and keys
compared, keys = set(), set()  # calls that were compared, kernels that were executed


def check(name, *arguments, **options):
    """Compare a call of an operation with fp64, unless an equal one has been; return PyTorch's."""
    ours, theirs = getattr(triton_ops.OPS, name), getattr(torch_ops.OPS, name)
    given = inspect.signature(theirs).bind(*arguments, **options).arguments
    if given.get("dropout_p"):
        given["seed"] = SEED
    tensors = {key: x for key, x in given.items() if torch.is_tensor(x) and key != "seed"}
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in tensors.values())
    described = [(key, x.shape, x.dtype, x.stride()) for key, x in tensors.items()]
    described += [(key, x) for key, x in given.items() if key not in tensors]
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    call, result = str((name, described, backward, low)), theirs(**given)
    if call not in compared:
        compared.add(call)
        if name == "sample_token":
            rule = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | given
            greedy = rule["temperature"] == 0.0
            expected = result if greedy else sample_by_sorting(**rule | {"seed": SEED})
            assert torch.equal(ours(**rule | {"seed": SEED}), expected)
        else:
            compare(name, given, tensors, backward, low, result)
    return result


def compare(name, given, tensors, backward, low, result):
    """hold_against with the arguments of a call; low: the dtype of autocast, or None."""
    varied = {key: x for key, x in tensors.items() if x.requires_grad or not backward}
    leaves, real_layer_norm = list(varied.values()), F.layer_norm

    def call(function, *operands):
        options = given | dict(zip(varied, operands, strict=True))
        if name == "decode_attention":  # writes the new token
            options["cache"] = options["cache"].clone()
        return function(**options)

    def ours(*operands):
        with torch.autocast("cpu", low, enabled=low is not None):
            return call(getattr(triton_ops.OPS, name), *operands)

    def reference(*operands):
        """PyTorch's operation in the dtype of its operands, with the kernels' dropout."""
        dtype = next(x.dtype for x in operands if x.is_floating_point())
        fixed = {key: x.to(dtype) if x.is_floating_point() else x for key, x in tensors.items()}
        fixed |= {"dtype": dtype} if "dtype" in given else {}
        patches = {"dropout": dropout}
        if name == "add_layer_norm":
            patches["layer_norm"] = of_the_returned_sum
        with mock.patch.dict(given, fixed), mock.patch.multiple(F, **patches):
            return call(getattr(torch_ops.OPS, name), *operands)

    def dropout(x, p):
        """With the mask that the kernels draw from SEED."""
        if p == 0:
            return x
        if name == "add_layer_norm":
            stream = add_layer_norm.STREAM.value
            kept = rows_kept(SEED, stream, x[..., 0].numel(), x.shape[-1], p)
        else:
            heads = given["n_head"] if name == "attention_qkv" else given["q"].shape[1]
            kept = attention_kept(SEED, len(x) // heads, heads, *x.shape[1:], p)
        return x * kept.view(x.shape) * threshold_and_scale(p)[1]

    def of_the_returned_sum(x, *options):
        """The norm of the sum as it is returned, rounded to its dtype; gradients pass."""
        rounded = ours(*varied.values())[0].detach().to(x.dtype)
        return real_layer_norm(x + (rounded - x).detach(), *options)

    outputs = result if isinstance(result, tuple) else (result,)
    floats = [x.dtype for x in leaves if x.is_floating_point()]
    options = {"backward": backward, "gradient_factor": 3.0, "out_dtype": outputs[0].dtype}
    if name in ROUNDING:
        options["compute"] = low or min(floats, key=lambda dtype: dtype.itemsize)
    if name.startswith("attention"):
        options["largest_logit"] = LARGEST_LOGIT
    hold_against(ours, reference, leaves, **options)
    if name == "add_layer_norm" and backward:  # the last one of a model passes on only the norm
        options["out_dtype"] = outputs[1].dtype
        norms = [lambda *x, function=function: function(*x)[1] for function in (ours, reference)]
        hold_against(*norms, leaves, **options)


TABLE = Ops(
    *(getattr(torch_ops.OPS, n) if n == "adamw" else partial(check, n) for n in Ops._fields)
)


def assert_all_executed(case, executed, is_optimizer=False) -> None:
    """Assert that this session has executed the ledger's kernels that `case` launches."""
    keys.update(executed)
    target = str(launch.architecture(CPU))
    ledger = json.loads(COMMITTED.read_text())
    rows = ledger.get(triton.__version__) or ledger[max(ledger)]
    rows = [row for row in rows if row["target"] == target and str(case) in row["cases"]]
    wanted = {row["key"] for row in rows if row["key"].startswith("adamw") == is_optimizer}
    assert wanted
    assert wanted <= keys


@pytest.mark.parametrize("case", [*CASES, *TOKENS], ids=str)
def test_operations(case, ptx, monkeypatch):
    sizes = case.sizes._replace(**{"B": 1, "T": 16} | SMALL.get(case.operation, {}))
    sizes = sizes._replace(V=min(sizes.V, case.sizes.V))  # an embedding of few tokens is another
    if case.operation.startswith("attention"):
        heads = 6 if case.operation == "attention_qkv" else 2
        whole = 256 if case.sizes == WIDE_HEADS or "wide_values" in case.options else 192  # tiles
        sizes = sizes._replace(T=320 if "window" in case.options else whole)
        sizes = sizes._replace(H=heads, C=heads * case.sizes.C // case.sizes.H)
        shorter = case.sizes.T / sizes.T  # with the kernels for sequences of the case's length
        monkeypatch.setattr(attention_options, "SHORT", attention_options.SHORT / shorter)
        logs = launch.tile("attention_described", CPU)
        logs = {head_size: log - math.log2(shorter) for head_size, log in logs.items()}
        monkeypatch.setitem(launch.TILES, "attention_described", {80: logs})
    elif case.operation == "feed_forward" and case.sizes != LECTURE:  # which has a route
        sizes = sizes._replace(C=128)
    compared.clear()  # the route of a product is not an argument
    case._replace(sizes=sizes).run(TABLE, CPU)
    assert_all_executed(case, ptx)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_steps(step, ptx):
    sizes = {} if isinstance(step, DecodingStep) else {"rows": 2, "block_size": 64}
    if step.operation == "gpt2" and not isinstance(step, Evaluation):
        sizes["vocab_size"] = 2_064  # a multiple of 16, as is the real one
    still = {"clip_grad_norm": lambda *_: torch.zeros(()), "step": lambda *_: None}
    with mock.patch.multiple(triton_ops.OPS.adamw, **still):  # test_optimizer_of_steps steps
        step.run(TABLE._replace(adamw=triton_ops.OPS.adamw), CPU, **sizes)
    assert_all_executed(step, ptx)


@pytest.mark.parametrize("case", UPDATES, ids=str)
def test_optimizer(case, ptx):
    case._replace(sizes=case.sizes._replace(C=48)).run(triton_ops.OPS, CPU)
    assert_all_executed(case, ptx, is_optimizer=True)


@pytest.mark.parametrize("step", [s for s in STEPS if isinstance(s, TrainingStep)], ids=str)
def test_optimizer_of_steps(step, ptx):
    ops = torch_ops.OPS._replace(adamw=triton_ops.OPS.adamw)
    step.run(ops, CPU, rows=2, block_size=16, n_embd=32, n_head=1, vocab_size=65)
    assert_all_executed(step, ptx, is_optimizer=True)


@pytest.mark.parametrize(
    ("pattern", "replacement", "found"),
    [
        (r"@%p\d+ st\.global", "st.global", "outside the operands"),
        (r"cp\.async\.wait_group\s+\d+;", "", "before a wait_group for it"),
        (r"bar\.sync\s+0;", "", "without a barrier between them"),
        (r"(mma.*?, \{ )(%r\d+), (%r\d+)", r"\1\3, \2", r"error .* is allowed"),
        (r"ldmatrix(.*?)\.trans", r"ldmatrix\1", r"error .* is allowed"),
        (r"%ctaid\.x", "%nctaid.x", "outside the operands|writes the same bytes"),
    ],
    ids=["mask of a store", "wait", "barrier", "fragment", "transposition", "program"],
)
def test_faults_that_the_interpreter_cannot_see(pattern, replacement, found):
    """Planted in the PTX of attention, for sm_80."""
    change = partial(re.sub, pattern, replacement)
    with executing(80, change), pytest.raises((Fault, AssertionError), match=found):
        hold(operands(1, 2, 2, 77, 77, 64, torch.bfloat16))
