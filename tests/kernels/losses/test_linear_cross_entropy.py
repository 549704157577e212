"""The output layer and the loss in chunks: the same as both in sequence, for any chunks."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck

from kernels import torch_ops
from kernels.common import launch
from kernels.losses.linear_cross_entropy import linear_cross_entropy
from tests.kernels.losses.test_cross_entropy import IGNORED, OPTIONS, targets_below, with_weights
from tests.numerics import assert_rounded_once, guarded_memory, hold_against
from tests.operands import DEVICE, DTYPES, randn

FLOAT32 = torch.float32
LOGITS_BYTES = launch.logits_bytes


def set_chunk(monkeypatch, limit):
    monkeypatch.setattr(launch, "logits_bytes", lambda device: limit)


@pytest.fixture(autouse=True)
def chunks_of_128_rows(monkeypatch):
    set_chunk(monkeypatch, 1)


ours = partial(linear_cross_entropy, ignore_index=IGNORED)
exactly = partial(torch_ops.linear_cross_entropy, ignore_index=IGNORED)


def for_classes(options, V, dtype=FLOAT32):
    """`with_weights` under the name that class weights have here."""
    options = with_weights(options, V, dtype)
    return {"class_weight" if name == "weight" else name: options[name] for name in options}


def operands(N, C, V, dtype=FLOAT32, bias=True):
    x, weight = randn(N, C, dtype=dtype), randn(V, C, dtype=dtype, scale=C**-0.5, seed=1)
    return x, weight, randn(V, dtype=dtype, seed=2) if bias else None, targets_below(V, N)


def gradients(function, x, weight, bias, targets, dloss=1.0):
    leaves = [t if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    loss = (function(*leaves, targets) * dloss).sum()
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "C", "V"), [(127, 16, 65), (260, 33, 129)])
def test_as_exact_as_linear_and_cross_entropy_in_the_same_dtype(N, C, V, dtype, bias):
    # at most twice the error of a linear layer and a loss that both round to `dtype`
    hold_against(ours, exactly, operands(N, C, V, dtype, bias), out_dtype=FLOAT32, compute=dtype)


@pytest.mark.parametrize(
    ("N", "C", "V", "options"),
    [
        *((*sizes, {}) for sizes in ((1, 1, 1), (2, 7, 3), (3, 1, 2), (129, 2, 7))),
        *((260, 16, 65, options) for options in OPTIONS),
    ],
)
def test_every_option_and_the_smallest_shapes(N, C, V, options):
    options = for_classes(options, V)
    functions = (partial(function, **options) for function in (ours, exactly))
    hold_against(*functions, operands(N, C, V), out_dtype=FLOAT32)


@pytest.mark.parametrize(
    ("bias", "options"), [(True, {}), (False, {}), (True, OPTIONS[-1]), (False, OPTIONS[-3])]
)
def test_gradients_match_the_definition(bias, options):
    *leaves, targets = operands(3, 2, 5, torch.float64, bias)
    leaves = [leaf if leaf is None else leaf.requires_grad_() for leaf in leaves]
    options = for_classes(options, 5, torch.float64)
    function = partial(ours, targets=targets, **options)
    assert gradcheck(lambda *inside: function(*inside) * 3.0, leaves, fast_mode=True)


@pytest.mark.parametrize("options", [{}, *OPTIONS[-3:]])
def test_results_do_not_depend_on_the_chunks(monkeypatch, options):
    arguments = operands(260, 9, 33, torch.float64)
    dloss = randn(260, dtype=torch.float64) if options.get("reduction") == "none" else 1.0
    function = partial(ours, **for_classes(options, 33, torch.float64))

    def results():
        return function(*arguments), *gradients(function, *arguments, dloss)

    in_chunks = results()
    set_chunk(monkeypatch, 2**28)
    for some, all_ in zip(in_chunks, results(), strict=True):
        torch.testing.assert_close(some, all_, rtol=1e-12, atol=1e-15)


def test_sums_over_rows_are_never_rounded_to_bf16(monkeypatch):
    # two chunks of 640 rows; 639 rows of each add 1/2, in total 319.5, which is 320 in bf16
    set_chunk(monkeypatch, 640 * 128)
    x, weight = torch.ones(1280, 1, device=DEVICE), torch.zeros(2, 1, device=DEVICE)
    targets = torch.zeros(1280, dtype=torch.int64, device=DEVICE)
    targets[::640] = IGNORED
    with torch.autocast(DEVICE, torch.bfloat16):
        _, dweight, dbias = gradients(ours, x, weight, torch.zeros(2, device=DEVICE), targets)
    assert dweight.flatten().tolist() == dbias.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("V", [65, 257, 1000])
def test_padding_does_not_enter_the_loss(V):
    # every logit is far below zero, so padding of 0 would have all the probability
    x, weight, _, targets = operands(130, 4, V)
    bias = torch.full((V,), -1000.0, device=DEVICE)
    hold_against(ours, exactly, (x, weight, bias, targets), out_dtype=FLOAT32)


def test_all_logits_are_never_stored(monkeypatch):
    set_chunk(monkeypatch, 2**19)
    x, weight, _, targets = operands(1000, 8, 1001, torch.bfloat16)
    with launch.record(90) as launches:
        ours(x.requires_grad_(), weight.requires_grad_(), None, targets).backward()
    logits = [recorded.arguments[0] for recorded in launches[:-2]]  # then dx and dW are scaled
    assert [tuple(chunk.shape) for chunk in logits] == 3 * [(256, 1001)] + [(232, 1001)]
    assert {chunk.stride() for chunk in logits} == {(1024, 1)}
    assert len({chunk.data_ptr() for chunk in logits}) == 1


@pytest.mark.parametrize(("gigabytes", "expected"), [(8, 28), (42, 29), (85, 30), (150, 30)])
def test_chunks_are_larger_on_gpus_with_more_memory(monkeypatch, gigabytes, expected):
    memory = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(launch, "_properties", lambda device: memory)
    assert LOGITS_BYTES(torch.device("cuda")) == 2**expected


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_gradients_of_fp32_parameters(narrow):
    x, weight, bias, targets = operands(140, 16, 65)
    exact = gradients(exactly, x.double(), weight.double(), bias.double(), targets)
    with torch.autocast(DEVICE, narrow):
        loss = ours(x, weight, bias, targets)
        actual = gradients(ours, x, weight, bias, targets)
        baseline = gradients(exactly, x, weight, bias, targets)
    assert loss.dtype == FLOAT32
    for mine, torchs, exact_one in zip(actual, baseline, exact, strict=True):
        assert mine.dtype == FLOAT32
        assert_rounded_once(mine.double().float(), exact_one, torchs)
    representable = actual[1].to(narrow).float()
    assert not torch.equal(actual[1], representable)


def test_small_gradients_survive_fp16_under_a_loss_scale():
    arguments = operands(200, 8, 500, torch.float16, bias=False)
    scaled = gradients(ours, *arguments, dloss=2.0**16)
    x, weight, _, targets = arguments
    exact = gradients(exactly, x.double(), weight.double(), None, targets, dloss=2.0**16)
    for mine, exact_one in zip(scaled, exact, strict=True):
        assert (mine.double() - exact_one).abs().max() < 2**-8 * exact_one.abs().max()


def test_targets_that_are_all_ignored_or_outside_the_vocabulary():
    x, weight, bias, targets = operands(130, 4, 65)
    with guarded_memory():
        nothing = torch.full_like(targets, IGNORED)
        assert ours(x, weight, bias, nothing) == 0
        for gradient in gradients(ours, x, weight, bias, nothing):
            assert not gradient.any()
    targets[2] = 65  # the first column of the padding
    assert ours(x, weight, bias, targets).isnan()
