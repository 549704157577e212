"""Shared by the kernel tests: one tolerance, and guarded memory.

Most tests call `hold_against(operation, reference, operands)`. It compares values and gradients of
a kernel with the same operation in fp64, places every operand between guards, and fills the memory
that the kernel allocates with NaN. Other functions are the parts of it, for tests that need only
one.
"""

import contextlib
import math
from unittest import mock

import numpy as np
import torch

from tests.operands import randn

GUARD = 256  # elements on either side: more than a tile may overshoot, and 16-byte aligned


# --- one tolerance --------------------------------------------------------------------------------


def assert_rounded_once(actual, exact, baseline, name="value", factor=2.0, largest_logit=0.0):
    """Assert err(actual) <= factor * err(baseline) + tiny, where err is the largest error.

    `exact` is fp64; `baseline` is PyTorch's computation on the same inputs in fp32 (fp64 for fp64),
    rounded once to the dtype of `actual`. tiny is four roundings of the computation, for small
    tensors on which the baseline is exact by chance; an exponential of logits is rounded once more
    for every unit of the largest logit. NaN and infinity never pass.
    """
    assert exact.dtype == torch.float64, f"{name}: the exact value is {exact.dtype}, not float64"
    assert actual.shape == exact.shape, f"{name}: {tuple(actual.shape)}, not {tuple(exact.shape)}"
    if actual.numel() == 0:
        return
    assert actual.isfinite().all(), f"{name}: {(~actual.isfinite()).sum()} elements are not finite"
    accumulator = torch.finfo(torch.promote_types(actual.dtype, torch.float32))
    roundings = 4 * (1 + largest_logit) * accumulator.eps
    tiny = roundings * exact.abs().max().item() + accumulator.smallest_normal
    error = (actual.double() - exact).abs()
    bound = factor * (baseline.to(actual.dtype).double() - exact).abs().max().item() + tiny
    worst = np.unravel_index(error.argmax().item(), error.shape)
    assert error.max() <= bound, (
        f"{name}: error {error.max().item():.3e} at {tuple(map(int, worst))}, "
        f"where at most {bound:.3e} is allowed ({actual.dtype}, shape {tuple(actual.shape)})"
    )


def differentiate(function, operands, upstream=None, dtype=None):
    """Outputs of `function(*operands)` and gradients of its floating operands, as flat tuples.

    Computed in `dtype` if it is given. `upstream` holds a gradient for each output; without it the
    gradients are ().
    """

    def leaf(operand):
        if not torch.is_tensor(operand) or not operand.is_floating_point():
            return operand
        return operand.detach().to(dtype or operand.dtype).requires_grad_(upstream is not None)

    leaves = [leaf(operand) for operand in operands]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if upstream is None:
        return outputs, ()
    wanted = [leaf for leaf in leaves if torch.is_tensor(leaf) and leaf.requires_grad]
    upstream = [gradient.to(dtype or gradient.dtype) for gradient in upstream]
    gradients = torch.autograd.grad(outputs, wanted, upstream)
    return tuple(output.detach() for output in outputs), gradients


def hold_against(
    operation,
    reference,
    operands,
    *,
    backward=True,
    out_dtype=None,
    compute=None,
    factor=2.0,
    gradient_factor=None,
    largest_logit=0.0,
) -> None:
    """Compare `operation(*operands)` and its gradients with `reference`, and check memory.

    Both functions take `operands` (tensors or None) in this order and return a tensor or a tuple of
    tensors of `out_dtype` (default: that of the first operand). Upstream gradients are random.
    `compute` is the dtype of the baseline, for operations that round intermediate results (default:
    fp32), and `gradient_factor` the factor for gradients. `largest_logit` is that of a softmax
    inside.
    """
    out_dtype = out_dtype or operands[0].dtype
    compute = compute or torch.promote_types(out_dtype, torch.float32)
    outputs, _ = differentiate(reference, operands, dtype=compute)
    upstream = None
    if backward:
        upstream = [randn(*y.shape, dtype=out_dtype, seed=7 + i) for i, y in enumerate(outputs)]
    exact = sum(differentiate(reference, operands, upstream, torch.float64), ())
    baseline = sum(differentiate(reference, operands, upstream, compute), ())

    inside, checks = zip(*map(guarded, (*operands, *(upstream or ()))), strict=True)
    inside, arriving = inside[: len(operands)], inside[len(operands) :]
    with guarded_memory():
        actual = sum(differentiate(operation, inside, arriving if backward else None), ())
    for check in checks:
        check()

    expected = [(f"output {i}", out_dtype, factor) for i in range(len(outputs))]
    if backward:
        for i, operand in enumerate(operands):
            if torch.is_tensor(operand) and operand.is_floating_point():
                gradient = f"gradient of operand {i}", operand.dtype, gradient_factor or factor
                expected.append(gradient)
    for (name, dtype, allowed), *values in zip(expected, actual, exact, baseline, strict=True):
        assert values[0].dtype == dtype, f"{name} is {values[0].dtype}, not {dtype}"
        assert_rounded_once(*values, name, allowed, largest_logit)


def assert_deterministic(function, repeats=3) -> None:
    """Assert that `function()`, a tensor or a tuple of tensors, gives the same bits every time."""
    first = None
    for repeat in range(repeats):
        outputs = function()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        bits = [output.detach().reshape(-1).view(torch.uint8) for output in outputs]
        first = first or bits
        for index, (once, again) in enumerate(zip(first, bits, strict=True)):
            assert torch.equal(once, again), f"output {index} changed its bits in repeat {repeat}"


# --- guarded memory -------------------------------------------------------------------------------


def guarded(tensor):
    """A copy of `tensor` with the same strides between NaN guards, and a function that checks them.

    The check also fails if the copy itself was written. The gaps of a strided tensor are guards,
    too. None gives None and a check that passes.
    """
    if tensor is None:
        return None, lambda: None
    inside, guards_intact = _between_guards(tensor)
    distinct = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
    inside[distinct] = tensor.detach()[distinct]
    before = inside.clone()

    def check():
        guards_intact()
        same = torch.equal(before.nan_to_num(nan=12345.0), inside.detach().nan_to_num(nan=12345.0))
        assert same, f"an operand of shape {tuple(tensor.shape)} was written"

    return inside.requires_grad_(tensor.requires_grad), check


@contextlib.contextmanager
def guarded_memory():
    """Inside, torch.empty and similar functions return NaN (integers: a sentinel) between guards.

    Elements that a kernel does not write are then visible in its result, and a store past the end
    of a buffer, which the interpreter would not notice, fails on exit.
    """
    checks = []

    def poison(allocate):
        def poisoned(*arguments, **options):
            tensor = allocate(*arguments, **options)
            if tensor.is_meta:
                return tensor
            inside, check = _between_guards(tensor)
            checks.append(check)
            return inside

        return poisoned

    with contextlib.ExitStack() as patches:
        owners = dict.fromkeys(("empty", "empty_like", "empty_strided"), torch)
        for name, owner in (owners | {"new_empty": torch.Tensor}).items():
            patches.enter_context(mock.patch.object(owner, name, poison(getattr(owner, name))))
        yield
    for check in checks:
        check()


def sentinel(dtype):
    """The value of guards and poisoned memory: NaN, or an integer that no kernel computes."""
    if dtype == torch.bool:
        return True
    return math.nan if dtype.is_floating_point else torch.iinfo(dtype).max // 3


_real_empty = torch.empty  # `guarded_memory` replaces it


def _between_guards(tensor):
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    extent = last + 1 if tensor.numel() else 0
    options = {"dtype": tensor.dtype, "device": tensor.device}
    buffer = _real_empty(GUARD + extent + GUARD, **options).fill_(sentinel(tensor.dtype))
    inside = _real_empty(0, **options)
    inside.set_(buffer.untyped_storage(), GUARD, tensor.shape, tensor.stride())
    outside = _real_empty(buffer.shape, dtype=torch.bool, device=tensor.device).fill_(True)
    outside.as_strided(tensor.shape, tensor.stride(), GUARD).fill_(False)

    def check():
        guards = buffer[outside]
        intact = guards.isnan() if buffer.is_floating_point() else guards == sentinel(buffer.dtype)
        assert intact.all(), (
            f"{(~intact).sum()} elements were written outside a tensor of shape "
            f"{tuple(tensor.shape)}, strides {tensor.stride()}"
        )

    return inside, check
