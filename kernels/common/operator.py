"""Operations as PyTorch operators, so that torch.compile and torch.export can trace them.

`Operation` defines an operation once and runs it in two ways. An eager call is an
`autograd.Function`, which takes the host half as long as an operator. While a call is traced (by
torch.compile, torch.export, make_fx or a FakeTensorMode) it is the operator
`torch.ops.gpt_kernels.NAME` instead, with a fake implementation that only allocates, a backward
that is an operator too, and a rule for autocast.

Operators return lists of tensors: the results, then what their backward needs. A schema has no
optional results, so a missing one is an empty tensor of dtype bool.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _TorchDispatchModeKey as Mode

from .dtypes import autocast_dtype
from .launch import is_recording

NAMESPACE = "gpt_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
TRACING = (Mode.FAKE, Mode.PROXY, Mode.FUNCTIONAL)


def is_traced() -> bool:
    """Whether operations are traced, so that their tensors have no data."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._len_torch_dispatch_stack() == 0 or is_recording():
        return False
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in TRACING)


def register(schema: str, function: Callable, fake: Callable) -> Any:
    """Define an operator, for example "name(Tensor x, int n) -> Tensor", and return it.

    `function` computes it on tensors of any device, and `fake` allocates its results.
    """
    name = schema.partition("(")[0]
    if not hasattr(getattr(torch.ops, NAMESPACE), name):  # the package may have a second name
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name)


class Operation:
    """An operation with a gradient. A subclass gives `schema` and static functions:

    - `empty(*arguments)` allocates the outputs: `results` results, then what backward needs;
    - `forward(*arguments)` computes these outputs;
    - `saved(*arguments, *outputs)` selects the tensors for backward;
    - `backward(gradients, saved, needs, *options)` computes one gradient for each tensor argument,
      or None. `gradients` are those of the results, `needs` says which arguments need one, and
      `options` are the arguments after the tensors;
    - `empty_gradients` allocates them, by default like the first tensors of `saved`.
    """

    schema: str  # "name(Tensor x, Tensor? weight, float eps)", tensors first
    results = 1
    cast = 0  # the number of first arguments that autocast casts

    empty: Callable[..., Sequence[Tensor | None]]
    forward: Callable[..., Sequence[Tensor | None]]
    saved: Callable[..., Sequence[Tensor | None]]
    backward: Callable[..., Sequence[Tensor | None]]

    name: str
    tensors: int  # the number of tensor arguments
    operator: Any
    function: type[torch.autograd.Function]

    def __init_subclass__(cls) -> None:
        cls.name, _, arguments = cls.schema.removesuffix(")").partition("(")
        listed = arguments.split(", ")
        cls.tensors = sum(argument.startswith("Tensor") for argument in listed)
        if "function" not in cls.__dict__:
            cls.function = type(cls.__name__, (EagerFunction,), {"operation": cls})
        cls.operator = _register(cls, ", ".join(listed[cls.tensors :]))

    @classmethod
    def empty_gradients(cls, gradients: Any, saved: Any, needs: Any, *options: Any) -> Any:
        return [
            None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
            for x in saved[: cls.tensors]
        ]

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """The result of the operation, or a tuple of its results."""
        if is_traced():
            outputs = cls.operator(*arguments)
            return outputs[0] if cls.results == 1 else tuple(outputs[: cls.results])
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"{cls.name}: torch.func's transforms (vmap, grad, ...) are not supported; use "
                'PyTorch\'s operation, kernels.load("torch")'
            )
        return cls.function.apply(*arguments)


class EagerFunction(torch.autograd.Function):
    """An `Operation` as an autograd.Function."""

    operation: type[Operation]

    @classmethod
    def forward(cls, ctx, *arguments):
        operation = cls.operation
        outputs = operation.forward(*arguments)
        ctx.save_for_backward(*operation.saved(*arguments, *outputs))
        ctx.options = arguments[operation.tensors :]
        ctx.set_materialize_grads(False)
        return outputs[0] if operation.results == 1 else tuple(outputs[: operation.results])

    @classmethod
    def backward(cls, ctx, *gradients):
        return _differentiate(cls.operation, cls.operation.backward, ctx, gradients)


def _differentiate(operation, function, ctx, gradients):
    """The gradient of each argument by `function`, which has the signature of `backward`."""
    if torch.is_grad_enabled():  # only under create_graph=True
        raise RuntimeError(
            f"{operation.name}: gradients of gradients (create_graph=True) are not supported; use "
            'PyTorch\'s operation, kernels.load("torch")'
        )
    if all(gradient is None for gradient in gradients):
        return tuple(None for _ in ctx.needs_input_grad)
    needs = ctx.needs_input_grad[: operation.tensors]
    found = function(gradients, ctx.saved_tensors, needs, *ctx.options)
    return *found, *(None for _ in ctx.options)


def _register(operation: type[Operation], options: str) -> Any:
    """Register an operation, its backward, and its rules for autograd and autocast."""
    name, tensors = operation.name, operation.tensors
    signature = "(Tensor?[] gradients, Tensor?[] saved, bool[] needs"

    def needed(function: Callable) -> Callable:
        def gradients(arrived, saved, needs, *options):
            found = zip(function(arrived, saved, needs, *options), needs, strict=True)
            return _encode([one if need else None for one, need in found], saved)

        return gradients

    differentiate = register(
        f"{name}_backward{signature}{options and ', ' + options}) -> Tensor[]",
        *map(needed, (operation.backward, operation.empty_gradients)),
    )
    if hasattr(getattr(torch.ops, NAMESPACE), name):
        return getattr(getattr(torch.ops, NAMESPACE), name)
    operator = register(
        f"{operation.schema} -> Tensor[]",
        lambda *arguments: _encode(operation.forward(*arguments), arguments[:tensors]),
        lambda *arguments: _encode(operation.empty(*arguments), arguments[:tensors]),
    )

    def set_up(ctx, inputs, output):
        ctx.save_for_backward(*operation.saved(*inputs, *map(_decode, output)))
        ctx.options = inputs[tensors:]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[operation.results :])

    def differentiated(gradients, saved, needs, *options):
        return map(_decode, differentiate(gradients, list(saved), list(needs), *options))

    def backward(ctx, gradients):
        results = gradients[: operation.results]
        return _differentiate(operation, differentiated, ctx, results)

    def cast(*arguments):
        operands = [*map(_cast, arguments[: operation.cast])]  # before autocast is excluded
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return operator(*operands, *arguments[operation.cast :])

    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=set_up, lib=LIBRARY
    )
    for device in ("CPU", "CUDA") if operation.cast else ():
        LIBRARY.impl(name, cast, f"Autocast{device}")
    return operator


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
_AUTOCAST |= torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def _cast(operand):
    return operand if operand is None else operand.to(autocast_dtype(operand) or operand.dtype)


def _encode(outputs, inputs):
    """Outputs as an operator may return them: none is missing or shares memory with another."""
    inputs = [one for one in inputs if one is not None]
    seen = {one.untyped_storage()._cdata for one in inputs}
    encoded = []
    for output in outputs:
        if output is None:
            output = torch.empty(0, dtype=torch.bool, device=inputs[0].device)
        elif output.untyped_storage()._cdata in seen:
            output = output.clone()
        seen.add(output.untyped_storage()._cdata)
        encoded.append(output)
    return encoded


def _decode(output):
    return None if output.dtype == torch.bool else output
