"""The implementations of each case: ours, PyTorch's in several modes, peers', the lecture's."""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from bench.workloads.operations import Case, Update
from gpt.models import reference
from kernels import torch_ops

OURS = "triton"
SDPA = {"sdpa flash": SDPBackend.FLASH_ATTENTION, "sdpa cudnn": SDPBackend.CUDNN_ATTENTION}
ATTENTIONS = ("attention", "attention_qkv")  # torch.compile adds nothing to a call of SDPA
MAX_REFERENCE_LENGTH = 1024  # tokens; the reference's T x T weights take too long beyond
ANYWHERE = ("torch", "torch fused", "reference")  # all others are timed on CUDA GPUs only


class Baseline(NamedTuple):
    """Calls `function(*inputs, **options)`; forward and backward both run in `context()`."""

    function: Callable
    context: Callable = contextlib.nullcontext
    writes_inputs: bool = False


Maker = Callable[[], Baseline]


def implementations(case, device: torch.device) -> dict[str, Maker | str]:
    """Name -> a function that makes the implementation, or the reason why it is not available."""
    makers = _optimizers(device) if isinstance(case, Update) else _operations(case, device)
    return {name: _unavailable_reason(name, device) or maker for name, maker in makers.items()}


def _unavailable_reason(name: str, device: torch.device) -> str | None:
    if name not in ANYWHERE and device.type != "cuda":
        return "it is timed on CUDA GPUs only"
    if name in PEERS and importlib.util.find_spec(PEERS[name]) is None:
        return f"{PEERS[name]} is not installed"
    return kernels.unavailable_reason(device) if name == OURS else None


def _operations(case: Case, device: torch.device) -> dict[str, Maker]:
    name = case.operation
    by_torch = getattr(torch_ops, name)
    makers = {
        OURS: lambda: Baseline(getattr(kernels.load("triton", device), name)),
        "torch": lambda: Baseline(by_torch),
    }
    if name in ATTENTIONS:
        for sdpa, backend in SDPA.items():
            context = functools.partial(sdpa_kernel, backend)
            makers[sdpa] = functools.partial(Baseline, by_torch, context)
    if name not in ATTENTIONS:
        makers["torch.compile"] = lambda: Baseline(compiled(by_torch))
    for peer, functions in FUNCTIONS.items():
        if name in functions and not case.options.get("dropout_p"):
            makers[peer] = functools.partial(Baseline, functions[name], writes_inputs=True)
    if name in REFERENCES and case.sizes.T <= MAX_REFERENCE_LENGTH:
        makers["reference"] = lambda: Baseline(REFERENCES[name])
    return makers


def compiled(function):
    """`function` compiled for static shapes, with an empty compiler cache."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def _liger(name: str, *operands):
    from liger_kernel.transformers import functional

    return getattr(functional, f"liger_{name}")(*operands)


PEERS = {"liger": "liger_kernel", "flash-attn-4": "flash_attn"}  # modules


def _flash_attention_4(q, k, v):
    """Heads (B, H, T, D) without dropout, which it lacks."""
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")  # read on import
    from flash_attn.cute import flash_attn_func

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return flash_attn_func(q, k, v, causal=True)[0].transpose(1, 2)


FUNCTIONS: dict[str, dict[str, Callable]] = {  # of each peer, by operation
    "liger": {
        "layer_norm": lambda x, weight, bias: _liger("layer_norm", x, weight, bias, 1e-5),
        "cross_entropy": lambda logits, targets: _liger(
            "cross_entropy", logits.flatten(0, 1), targets.flatten()
        ),
        "linear_cross_entropy": lambda x, weight, bias, targets: _liger(
            "fused_linear_cross_entropy", x.flatten(0, 1), weight, targets.flatten(), bias
        ),
    },
    "flash-attn-4": {"attention": _flash_attention_4},
}


def attention_head_by_head(q, k, v, *, dropout_p=0.0):
    """The causal attention of the lecture's heads, given q, k and v (gpt/models/reference.py)."""
    T = q.shape[2]
    tril = torch.tril(torch.ones(T, T, device=q.device))
    out = []
    for head in range(q.shape[1]):
        wei = q[:, head] @ k[:, head].mT * q.shape[-1] ** -0.5  # (B, T, T)
        wei = wei.masked_fill(tril == 0, float("-inf"))
        wei = F.dropout(F.softmax(wei, dim=-1), dropout_p)
        out.append(wei @ v[:, head])  # (B, T, D)
    return torch.stack(out, dim=1)  # (B, H, T, D)


REFERENCES = {
    "attention": attention_head_by_head,
    "rms_norm": lambda x, no_weight: reference.root_mean_square_normalise(x, 1e-5),
}


def _optimizers(device: torch.device) -> dict[str, Maker]:
    """Functions that take parameters and return the `step` of an optimizer over them."""

    def maker(optimizer, **options) -> Maker:
        return lambda: Baseline(lambda *parameters: optimizer(parameters, **options).step)

    return {
        OURS: maker(lambda parameters: kernels.load("triton", device).adamw(parameters)),
        "torch": maker(torch.optim.AdamW),
        "torch fused": maker(torch.optim.AdamW, fused=True),
    }
