"""The operations of a GPT, by PyTorch (`torch_ops.py`) and by Triton (`triton_ops.py`).

`load("triton")` returns the table of Triton kernels, `load("torch")` the same table by PyTorch's
own operations, and `load("triton,attention=torch")` a mixture. There is no silent fallback: an
implementation that cannot run on this machine raises `Unavailable`, and the message says what to
do.

Every Triton operation guarantees the following. The same inputs give the same bits, every time.
Values and gradients differ from fp64 by at most twice the error of PyTorch's own fp32 computation,
rounded once to the output's dtype (docs/library.md gives the bounds for operations with matrix
products inside). Inputs are never written, and may have any strides. A wrong shape is a
`ValueError`.
"""
# ruff: noqa: F405

import sys
from typing import TYPE_CHECKING, Any

import torch

from . import namesake
from .key_ranges import KeyRanges
from .ops import Ops, Unavailable

if TYPE_CHECKING:  # at run time `__getattr__` imports them, because they need Triton
    from .triton_ops import *  # noqa: F403 (`__all__` lists what is public)

__all__ = [
    "AdamW", "KeyRanges", "Ops", "Unavailable", "add_layer_norm", "attention", "attention_qkv",
    "cross_entropy", "decode_attention", "decode_linear", "embedding", "explain_auto",
    "feed_forward", "layer_norm", "linear_cross_entropy", "load", "rms_norm",
    "sample_token", "serving", "unavailable_reason",
]  # fmt: skip

namesake.share(sys.modules[__name__])


def __getattr__(name: str) -> Any:
    """Return the Triton operation `name`: `from kernels import layer_norm`."""
    if name not in Ops._fields and name != "AdamW":
        return namesake.attribute(name)
    return getattr(_triton_table(), name.lower())


def load(choice: str, device: str | torch.device | None = None) -> Ops:
    """Return the table for `choice`: "auto", "triton", "torch", or "triton,attention=torch".

    `device` is where the operations will run, by default CUDA if it is available. Raises
    `ValueError` for an unknown name and `Unavailable` for an implementation that cannot run there.
    """
    base, *overrides = (part.strip() for part in choice.split(","))
    ops = _table(base, device)
    for override in overrides:
        name, equals, implementation = (part.strip() for part in override.partition("="))
        if not equals or name not in Ops._fields:
            raise ValueError(
                f"kernels: {override!r} is not an override; write OPERATION=triton or "
                f"OPERATION=torch, where OPERATION is one of {', '.join(Ops._fields)}"
            )
        ops = ops._replace(**{name: getattr(_table(implementation, device), name)})
    return ops


def explain_auto(device: str | torch.device | None = None) -> tuple[str, str]:
    """Return what "auto" means on `device`: the name of a table, and the reason in a few words."""
    device = _device(device)
    reason = unavailable_reason(device)
    if reason is None and device.type == "cuda":
        return "triton", "the GPU has compute capability 8.0 or newer"
    interpreted = f"the device is {device.type}, where kernels run only in the interpreter"
    return "torch", reason or interpreted


def unavailable_reason(device: str | torch.device | None = None) -> str | None:
    """Return why the Triton operations cannot run on `device`, or None if they can."""
    device = _device(device)
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
        return f"triton {triton.__version__} is older than 3.6"
    if triton.knobs.runtime.interpret:
        return None  # TRITON_INTERPRET=1 runs on any device, slowly
    if device.type != "cuda":
        return f"the device is {device.type}, and Triton kernels need an NVIDIA GPU"
    if torch.version.hip:
        return "the GPU is an AMD GPU, on which the kernels have never been tested"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, and the kernels need 8.0"
    return None


def _device(device: str | torch.device | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def serving(ops: Ops) -> dict[str, str]:
    """Return the implementation of each operation in a table: {"layer_norm": "triton", ...}."""
    return {
        name: "torch" if ".torch_" in function.__module__ else "triton"
        for name, function in ops._asdict().items()
    }


def _triton_table() -> Ops:
    try:
        from . import triton_ops
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise Unavailable("triton is not installed") from None
    return triton_ops.OPS


def _table(name: str, device: str | torch.device | None) -> Ops:
    if name == "auto":
        name, _ = explain_auto(device)
    if name == "torch":
        from . import torch_ops

        return torch_ops.OPS
    if name == "triton":
        reason = unavailable_reason(device)
        if reason is not None:
            raise Unavailable(reason)
        return _triton_table()
    raise ValueError(f"kernels: {name!r} is not an implementation; choose auto, triton or torch")
