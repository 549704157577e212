"""Weights as bytes: int8, symmetric, one scale for each output channel.

    scale[n] = max over k of |w[n, k]| / 127        int8[n, k] = round(w[n, k] / scale[n])

and scale * int8 stands for w, off by at most half a step, scale / 2. Every matrix becomes bytes:
those of the blocks, the head and the token table, a channel of which is a token. Norms, biases and
positions stay as they are, and so do activations: what is saved is memory, and the time to read it.
"""

import torch
import torch.nn as nn
from torch.nn import functional as F

from gpt import UserError
from gpt.models import reference
from gpt.models.packed import GPT

LEVELS = 127  # on either side of zero

State = dict[str, torch.Tensor]


class Quantized(nn.Module):
    """A linear layer or an embedding with an int8 weight (N, K) and its scale (N,), always fp32.

    `weight` is what they stand for, computed whenever it is asked for; a single token is computed
    from the bytes (`gpt/generation/kv_cache.py`).
    """

    def __init__(self, module: nn.Linear | nn.Embedding):
        super().__init__()
        weight = module.weight.detach().float()  # (N, K)
        scale = weight.abs().amax(1) / LEVELS  # (N,)
        steps = weight / scale.clamp(min=torch.finfo(scale.dtype).tiny)[:, None]
        # parameters, because two modules can share them and stay together wherever they are moved
        self.int8 = nn.Parameter(steps.round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = getattr(module, "bias", None)
        self.adds_bias = getattr(module, "adds_bias", True)  # or leaves it to the residual stream
        self.dtype = module.weight.dtype  # of the computation

    @property
    def weight(self) -> torch.Tensor:
        return (self.int8 * self.scale[:, None]).to(self.dtype)

    def _apply(self, function, recurse=True):
        """`model.to(dtype)`, but for the scale."""
        scale = self.scale.data
        super()._apply(function, recurse)
        self.dtype = function(torch.empty(0, dtype=self.dtype, device=scale.device)).dtype
        self.scale.data = scale.to(self.scale.device)
        return self


class QuantizedLinear(Quantized):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias if self.adds_bias else None)


class QuantizedEmbedding(Quantized):
    def forward(self, tokens):
        return (self.int8[tokens] * self.scale[tokens][..., None]).to(self.dtype)


def quantize(model: GPT) -> None:
    """Make bytes of the model's matrices, in place."""
    for module in list(model.blocks.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, QuantizedLinear(child))
    model.token_embedding_table = table = QuantizedEmbedding(model.token_embedding_table)
    model.lm_head = QuantizedLinear(model.lm_head)
    if model.config.tied_head:
        model.lm_head.int8, model.lm_head.scale = table.int8, table.scale


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Quantized) for module in model.modules())


def adopt(model: nn.Module, state: State) -> State:
    """Make `model` ready for the weights of `state`, and these for it, where they are bytes."""
    if not any(name.endswith(".int8") for name in state):
        return state
    if isinstance(model, GPT):
        quantize(model)
        return state
    if not isinstance(model, reference.GPT):
        raise UserError("int8 weights are those of a GPT, and this run trained a step of the road")
    return {
        name.replace(".int8", ".weight"): _dequantized(name, tensor, state)
        for name, tensor in state.items()
        if name.removesuffix(".scale") + ".int8" not in state
    }


def _dequantized(name: str, tensor: torch.Tensor, state: State) -> torch.Tensor:
    if not name.endswith(".int8"):
        return tensor
    scale = state.get(name.replace(".int8", ".scale"))
    if scale is None or scale.shape != tensor.shape[:1]:
        raise UserError(f"weights: {name} has no scale of its own; the checkpoint is damaged")
    return tensor * scale[:, None]
