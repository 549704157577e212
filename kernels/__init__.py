"""The operations of a GPT, each by PyTorch (`native.py`) and by Triton (`fused.py`).

`load("triton")` gives a table of functions, `load("torch")` the same table by PyTorch's own
operations, `load("triton,attention=torch")` a mixture. Nothing is chosen behind the caller's
back: a name that cannot be served on this machine raises `Unavailable` with what to do.

The promise of every Triton operation: the same inputs give the same bits, every time; values and
gradients differ from fp64 by at most twice what PyTorch's own fp32 computation does, rounded once
to the output's dtype (docs/library.md has the bounds of those with a matrix product inside);
inputs are never written; tensors of any stride are taken; a wrong shape is a `ValueError`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Unavailable(RuntimeError):
    """The asked implementation cannot run here; the message says why and what to use instead."""


class Ops(NamedTuple):
    """One function per operation. B batch, T time, C channels, V vocabulary, H heads, D head size.

    A NamedTuple of functions rather than a module, because a module breaks `copy.deepcopy`.
    Where a function takes `dropout_p` and `seed`: kept values are scaled by 1/(1-p); `seed` is an
    int64 tensor () on the device, drawn from the device's default generator when it is None.
    """

    # (tokens (B, T) int64, token_table (V, C), position_table (>=T, C) or None) -> (B, T, C)
    embedding: Callable
    # (x (..., C), weight (C,), bias (C,) or None, *, eps) -> (..., C)
    layer_norm: Callable
    # (x (..., C), weight (C,) or None, *, eps) -> (..., C)
    rms_norm: Callable
    # (residual (..., C), x (..., C), weight, bias, *, x_bias (C,) or None, eps, dropout_p, seed)
    # -> residual + dropout(x + x_bias) (..., C), layer_norm of that (..., C)
    add_layer_norm: Callable
    # (q (B, H, Tq, D), k and v (B, Hkv, Tk, D), *, causal, window, dropout_p, scale, seed)
    # -> (B, H, Tq, D)
    # Where it is causal, row t sees the keys 0 ... t, of a window of W > 0 only the last W.
    attention: Callable
    # (qkv (B, T, (H + 2 Hkv) D) as [query | key | value], n_head,
    #  *, n_kv_head (None: n_head), causal, window, qk_norm, eps, cos and sin (>= T, D) or None,
    #  dropout_p, scale, seed) -> (B, T, H D)
    # With qk_norm queries and keys are RMS-normalised; with angles each x of them then becomes
    # x cos + roll(x, D / 2) sin.
    attention_qkv: Callable
    # (x (..., C), w1 (F, C), b1 (F,) or None, w2 (C, F), b2 (C,) or None,
    #  *, activation, dropout_p, seed) -> (..., C)
    feed_forward: Callable
    # (logits (..., V), targets (...) int64, *, ignore_index) -> () mean over counted targets
    cross_entropy: Callable
    # (x (..., C), weight (V, C), bias (V,) or None, targets (...) int64, *, ignore_index) -> ()
    linear_cross_entropy: Callable
    # (parameters or groups of them, *, lr, betas, eps, weight_decay) -> torch.optim.Optimizer
    adamw: Callable

    # One token of each of B rows, to generate text with; these have no gradient.
    # (x (B, K), weight (N, K), bias (N,) or None, *, scale (N,) of an int8 weight or None,
    #  norm "layer_norm", "rms_norm" or None, norm_weight (K,), norm_bias (K,) or None, eps,
    #  activation or None, residual (B, N) or None)
    # -> residual + activation(norm(x) @ (scale * weight)^T + bias) (B, N)
    decode_linear: Callable
    # (qkv (B, (H + 2 Hkv) D) as [query | key | value], cache (2, B, Hkv, T, D) of keys and values,
    #  position (B,) int64, *, window, qk_norm, eps, cos and sin (T, D) or None) -> (B, H D)
    # The new key and value are written to the cache at `position`; the query sees all up to it,
    # of a window of W > 0 only the last W.
    decode_attention: Callable
    # (logits (B, V), *, temperature, top_k, top_p, seed () int64) -> tokens (B,) int64
    # The same tokens for the same logits and seed, as exp(logits / temperature) would draw them.
    # Tokens count that have fewer than top_k likelier ones (0: any number), together below top_p.
    sample_token: Callable


def load(choice: str, device: str | torch.device | None = None) -> Ops:
    """The table for `choice`: "auto", "triton", "torch", or "triton,attention=torch".

    `device` (default: CUDA where there is one) is where the operations will run. Raises
    `ValueError` for a name that does not exist and `Unavailable` for one that cannot run there.
    """
    from kernels import torch_ops

    base, *overrides = (part.strip() for part in choice.split(","))
    ops = _table(base, device)
    for override in overrides:
        name, equals, implementation = (part.strip() for part in override.partition("="))
        if not equals or name not in Ops._fields:
            raise ValueError(
                f"kernels: {override!r} is not an override; write OPERATION=triton or "
                f"OPERATION=torch with an operation of {', '.join(Ops._fields)}"
            )
        table = torch_ops.OPS if implementation == "torch" else _table(implementation, device)
        ops = ops._replace(**{name: getattr(table, name)})
    return ops


def explain_auto(device: str | torch.device | None = None) -> tuple[str, str]:
    """What "auto" means on `device`: the name of a table, and the reason in a few words."""
    device = _device(device)
    reason = unavailable_reason(device)
    if reason is None and device.type == "cuda":
        return "triton", "a CUDA card of compute capability 8.0 or newer"
    return "torch", reason or f"the device is {device.type}, where kernels are only interpreted"


def unavailable_reason(device: str | torch.device | None = None) -> str | None:
    """Why the Triton operations cannot run on `device`, or None where they can."""
    device = _device(device)
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
        return f"triton {triton.__version__} is older than 3.6"
    if triton.knobs.runtime.interpret:
        return None  # TRITON_INTERPRET=1: slowly, on any device
    if device.type != "cuda":
        return f"the device is {device.type}, and Triton kernels need an NVIDIA GPU"
    if torch.version.hip:
        return "the GPU is AMD's, on which the kernels have never been proven"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA card"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the card's compute capability is {major}.{minor}, and the kernels need 8.0"
    return None


def _device(device) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def serving(ops: Ops) -> dict[str, str]:
    """Which implementation serves each operation of a table: {"layer_norm": "triton", ...}."""
    return {
        name: "torch" if function.__module__ == "kernels.torch_ops" else "triton"
        for name, function in ops._asdict().items()
    }


def _table(name: str, device) -> Ops:
    if name == "auto":
        name, _ = explain_auto(device)
    if name == "torch":
        from kernels import torch_ops

        return torch_ops.OPS
    if name == "triton":
        reason = unavailable_reason(device)
        if reason is not None:
            raise Unavailable(
                f"--kernels triton cannot run here: {reason}; use --kernels torch, or set "
                "TRITON_INTERPRET=1 to run the kernels slowly in the interpreter"
            )
        from kernels import triton_ops

        return triton_ops.OPS
    raise ValueError(f"kernels: {name!r} is unknown; choose auto, triton or torch")
