"""The rivals of each operation: ours, PyTorch's in every way it can be asked, Liger's.

`rivals(case, device)` names them all; a rival that cannot run here is the sentence that says why.
Nothing of a peer's own choosing is left open: SDPA's backend is pinned, and the kernels that ran
are read from the profiler.
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
from bench.workloads import ModuleCase, OptimizerCase
from gpt.config.model import NORM_EPS, ModelConfig
from gpt.models import packed, reference
from gpt.models.residual import Total
from kernels import torch_ops
from kernels.common import launch

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
LONGEST_SPELLED_OUT = 1024  # tokens; beyond, its T x T weights would take all the time there is
ATTENTIONS = ("attention", "attention_qkv")


class Rival(NamedTuple):
    """`function(*inputs, **options)`; every call, the backward's too, happens inside `around`."""

    function: Callable
    around: Callable = contextlib.nullcontext
    own_inputs: bool = False  # it writes into what it is given


Maker = Callable[[], Rival]


def rivals(case, device: torch.device) -> dict[str, Maker | str]:
    """Name -> how to make that rival on `device`, or the reason why it cannot be made."""
    if isinstance(case, ModuleCase):
        return _modules(case, device)
    if isinstance(case, OptimizerCase):
        return _optimizers(device)
    name = case.operation
    found: dict[str, Maker | str] = {
        OURS: _why_not_ours(name, device)
        or (lambda: Rival(getattr(kernels.load("triton", device), name))),
        "torch": lambda: Rival(getattr(torch_ops, name)),
    }
    if name == "feed_forward":
        for product in launch.Route._fields:
            by_gemm = functools.partial(_feed_forward_by_gemm, product, device)
            found[f"{OURS}, {product} by gemm"] = _why_not_ours(name, device) or by_gemm
    on_card = functools.partial(_on_card, device)
    if name in ATTENTIONS:
        for sdpa, backend in SDPA.items():
            pinned = functools.partial(_pinned, getattr(torch_ops, name), backend)
            found[sdpa] = on_card(lambda pinned=pinned: Rival(pinned))
    if name in (*ATTENTIONS, "embedding"):
        found["torch deterministic"] = on_card(
            lambda: Rival(getattr(torch_ops, name), deterministic)
        )
    if name in COMPILED:
        found["torch.compile"] = on_card(lambda: Rival(compiled(getattr(torch_ops, name))))
    if name in LIGER:
        found["liger"] = _liger(name, device)
    if name in SPELLED_OUT and case.sizes.T <= LONGEST_SPELLED_OUT:
        found["reference"] = lambda: Rival(SPELLED_OUT[name])
    return found


def _on_card(device, maker: Maker) -> Maker | str:
    return maker if device.type == "cuda" else "it is timed on a CUDA card only"


def _feed_forward_by_gemm(product: str, device: torch.device) -> Rival:
    """What `launch.ROUTES` would gain by sending this product another way."""
    route = launch.CUBLAS._replace(**{product: "gemm"})
    return Rival(kernels.load("triton", device).feed_forward, lambda: launch.routed(route))


def _why_not_ours(name: str, device: torch.device) -> str | None:
    """Why `name`, an operation or a module, is not timed with our kernels on `device`."""
    if device.type != "cuda":
        return "kernels are timed on a CUDA card only"
    reason = kernels.unavailable_reason(device)
    if reason is None and kernels.serving(kernels.load("triton", device)).get(name) == "torch":
        reason = f"the Triton table serves {name} by PyTorch"
    return reason


# --- PyTorch, asked in every way ------------------------------------------------------------------


def _pinned(function, backend, *inputs, **options):
    with sdpa_kernel(backend):
        return function(*inputs, **options)


@contextlib.contextmanager
def deterministic():
    """PyTorch's deterministic mode, without its filling of empty tensors, which costs time."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def compiled(function):
    """Compiled for the shape it meets; what other cases left in the compiler's cache is dropped."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


# --- Liger ----------------------------------------------------------------------------------------


def _liger(name: str, device: torch.device) -> Maker | str:
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    return _on_card(device, lambda: Rival(LIGER[name], own_inputs=True))


def _liger_layer_norm(x, weight, bias):
    from liger_kernel.transformers.functional import liger_layer_norm

    return liger_layer_norm(x, weight, bias, NORM_EPS)


def _liger_cross_entropy(logits, targets):
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def _liger_linear_cross_entropy(x, weight, bias, targets):
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    x = x.view(-1, x.shape[-1])
    return liger_fused_linear_cross_entropy(x, weight, targets.view(-1), bias)


LIGER = {
    "layer_norm": _liger_layer_norm,
    "cross_entropy": _liger_cross_entropy,
    "linear_cross_entropy": _liger_linear_cross_entropy,
}


# --- the lecture ----------------------------------------------------------------------------------


def attention_head_by_head(q, k, v, *, causal=True, dropout_p=0.0):
    """What the lecture's heads do once they have queries, keys and values (gpt/models/reference.py)."""
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


def rms_norm_spelled_out(x, weight):
    x = reference.root_mean_square_normalise(x)
    return x if weight is None else x * weight


SPELLED_OUT = {"attention": attention_head_by_head, "rms_norm": rms_norm_spelled_out}


def _modules(case: ModuleCase, device: torch.device) -> dict[str, Maker | str]:
    """The module as gpt/models/reference.py spells it out, and as gpt/models/packed.py has it over each table."""
    _, _, T, C, H, V = case.sizes
    config = ModelConfig(vocab_size=V, block_size=T, n_head=H, n_embd=C, **case.config)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def fused(ops):
        """With the block's last sum, which else the next block's norm would do."""
        module = getattr(packed, case.operation)(config, ops)
        return torch.nn.Sequential(module, Total()).to(device, dtype)

    def spelled_out():
        return getattr(reference, case.operation)(config).to(device, dtype)

    return {
        OURS: _why_not_ours(case.operation, device)
        or (lambda: Rival(fused(kernels.load("triton", device)))),
        "torch": lambda: Rival(fused(torch_ops.OPS)),
        "torch.compile": _on_card(device, lambda: Rival(compiled(fused(torch_ops.OPS)))),
        "reference": lambda: Rival(spelled_out()),
    }


# --- optimizers -----------------------------------------------------------------------------------


def _optimizers(device: torch.device) -> dict[str, Maker | str]:
    """A rival's function takes the parameters and returns what makes a step over them."""

    def ours(*parameters):
        return kernels.load("triton", device).adamw(parameters).step

    return {
        OURS: _why_not_ours("adamw", device) or (lambda: Rival(ours)),
        "torch": lambda: Rival(lambda *parameters: torch.optim.AdamW(parameters).step),
        "torch fused": lambda: Rival(
            lambda *parameters: torch.optim.AdamW(parameters, fused=True).step
        ),
    }
