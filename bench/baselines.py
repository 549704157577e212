"""The implementations of each case: ours, PyTorch's in several modes, Liger's, the lecture's.

`implementations(case, device)` lists all of them; one that is not available here is represented by
the reason. The backend of SDPA is fixed for each of them.
"""

import contextlib
import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from bench.workloads.operations import Update
from bench.workloads.timed import ModuleCase
from gpt.config.model import NORM_EPS, ModelConfig
from gpt.models import layers, reference
from gpt.models.residual import total
from kernels import torch_ops

OURS = "triton"
SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
COMPILED = (
    "layer_norm",
    "add_layer_norm",
    "rms_norm",
    "feed_forward",
    "cross_entropy",
    "linear_cross_entropy",
    "embedding",
)
ATTENTIONS = ("attention", "attention_qkv")
MAX_REFERENCE_LENGTH = 1024  # tokens; the reference's T x T weights take too long beyond


class Baseline(NamedTuple):
    """Calls `function(*inputs, **options)`; forward and backward both run in `context()`."""

    function: Callable
    context: Callable = contextlib.nullcontext
    writes_inputs: bool = False


Maker = Callable[[], Baseline]


def implementations(case, device: torch.device) -> dict[str, Maker | str]:
    """Name -> a function that makes the implementation, or the reason why it is not available."""
    if isinstance(case, ModuleCase):
        return _modules(case, device)
    if isinstance(case, Update):
        return _optimizers(device)
    name = case.operation
    by_torch = getattr(torch_ops, name)
    on_gpu = functools.partial(_on_gpu, device)
    found: dict[str, Maker | str] = {
        OURS: _unavailable_reason(name, device)
        or (lambda: Baseline(getattr(kernels.load("triton", device), name))),
        "torch": lambda: Baseline(by_torch),
    }
    if name in ATTENTIONS:
        for sdpa, backend in SDPA.items():
            pinned = functools.partial(_with_backend, by_torch, backend)
            found[sdpa] = on_gpu(lambda pinned=pinned: Baseline(pinned))
    if name in (*ATTENTIONS, "embedding"):
        found["torch deterministic"] = on_gpu(lambda: Baseline(by_torch, deterministic))
    if name in COMPILED:
        found["torch.compile"] = on_gpu(lambda: Baseline(compiled(by_torch)))
    if name in LIGER:
        found["liger"] = on_gpu(lambda: Baseline(LIGER[name], writes_inputs=True))
        if importlib.util.find_spec("liger_kernel") is None:
            found["liger"] = "liger-kernel is not installed"
    if name in REFERENCES and case.sizes.T <= MAX_REFERENCE_LENGTH:
        found["reference"] = lambda: Baseline(REFERENCES[name])
    return found


def _on_gpu(device, maker: Maker) -> Maker | str:
    return maker if device.type == "cuda" else "it is timed on CUDA GPUs only"


def _unavailable_reason(name: str, device: torch.device) -> str | None:
    """Why `name`, an operation or a module, cannot be timed with our kernels on `device`."""
    if device.type != "cuda":
        return "kernels are timed on CUDA GPUs only"
    reason = kernels.unavailable_reason(device)
    if reason is None and kernels.serving(kernels.load("triton", device)).get(name) == "torch":
        reason = f"the Triton table uses PyTorch for {name}"
    return reason


# --- PyTorch's modes ------------------------------------------------------------------------------


def _with_backend(function, backend, *inputs, **options):
    with sdpa_kernel(backend):
        return function(*inputs, **options)


@contextlib.contextmanager
def deterministic():
    """PyTorch's deterministic mode without its filling of empty tensors, which costs time."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def compiled(function):
    """`function` compiled for static shapes, with an empty compiler cache."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


# --- Liger ----------------------------------------------------------------------------------------


def _liger(name: str):
    from liger_kernel.transformers import functional

    return getattr(functional, f"liger_{name}")


def _liger_linear_cross_entropy(x, weight, bias, targets):
    loss = _liger("fused_linear_cross_entropy")
    return loss(x.view(-1, x.shape[-1]), weight, targets.view(-1), bias)


LIGER = {
    "layer_norm": lambda *operands: _liger("layer_norm")(*operands, NORM_EPS),
    "cross_entropy": lambda logits, targets: _liger("cross_entropy")(
        logits.view(-1, logits.shape[-1]), targets.view(-1)
    ),
    "linear_cross_entropy": _liger_linear_cross_entropy,
}


# --- the lecture ----------------------------------------------------------------------------------


def attention_head_by_head(q, k, v, *, causal=True, dropout_p=0.0):
    """The attention of the lecture's heads, given q, k and v (gpt/models/reference.py)."""
    T = q.shape[2]
    tril = torch.tril(torch.ones(T, T, device=q.device))
    out = []
    for head in range(q.shape[1]):
        wei = q[:, head] @ k[:, head].mT * q.shape[-1] ** -0.5  # (B, T, T)
        if causal:
            wei = wei.masked_fill(tril == 0, float("-inf"))
        wei = F.dropout(F.softmax(wei, dim=-1), dropout_p)
        out.append(wei @ v[:, head])  # (B, T, D)
    return torch.stack(out, dim=1)  # (B, H, T, D)


def rms_norm_reference(x, weight):
    x = reference.root_mean_square_normalise(x)
    return x if weight is None else x * weight


REFERENCES = {"attention": attention_head_by_head, "rms_norm": rms_norm_reference}


# --- modules and optimizers -----------------------------------------------------------------------


def _modules(case: ModuleCase, device: torch.device) -> dict[str, Maker | str]:
    """The module of gpt/models/reference.py, and that of gpt/models/layers.py with each table."""
    _, _, T, C, H, V = case.sizes
    config = ModelConfig(vocab_size=V, block_size=T, n_head=H, n_embd=C, **case.config)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def with_table(ops):
        """The packed module and its last residual sum, which the next block's norm would add."""
        module = getattr(layers, case.operation)(config, ops)
        module.register_forward_hook(lambda module, inputs, output: total(output))
        return module.to(device, dtype)

    def lecture():
        return getattr(reference, case.operation)(config).to(device, dtype)

    return {
        OURS: _unavailable_reason(case.operation, device)
        or (lambda: Baseline(with_table(kernels.load("triton", device)))),
        "torch": lambda: Baseline(with_table(torch_ops.OPS)),
        "torch.compile": _on_gpu(device, lambda: Baseline(compiled(with_table(torch_ops.OPS)))),
        "reference": lambda: Baseline(lecture()),
    }


def _optimizers(device: torch.device) -> dict[str, Maker | str]:
    """Functions that take parameters and return the `step` of an optimizer over them."""

    def ours(*parameters):
        return kernels.load("triton", device).adamw(parameters).step

    return {
        OURS: _unavailable_reason("adamw", device) or (lambda: Baseline(ours)),
        "torch": lambda: Baseline(lambda *parameters: torch.optim.AdamW(parameters).step),
        "torch fused": lambda: Baseline(
            lambda *parameters: torch.optim.AdamW(parameters, fused=True).step
        ),
    }
