"""int8 weights: symmetric, with one scale for each output channel.

    scale[n] = max over k of |w[n, k]| / 127        int8[n, k] = round(w[n, k] / scale[n])

scale * int8 stands for w, with an error of at most scale / 2. Every matrix is quantized: those of
the blocks, the head, and the token table, whose channels are tokens. Norms, biases, positions and
activations keep their dtype, so what is saved is memory and the time to read it.
"""

import torch
import torch.nn as nn

from .. import UserError
from ..models.packed import GPT
from ..models.residual import IntoStream, Linear

LEVELS = 127  # on either side of zero


class Quantized(nn.Module):
    """A linear layer or an embedding with an int8 weight (N, K) and an fp32 scale (N,).

    Whole contexts are computed with `weight`, which is dequantized each time it is read; a decode
    step reads the bytes themselves (`decode_linear`).
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
        self.dtype = module.weight.dtype  # of the computation

    @property
    def weight(self) -> torch.Tensor:
        return (self.int8 * self.scale[:, None]).to(self.dtype)

    @property
    def stored(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.int8, self.scale

    def _apply(self, function, recurse=True):
        """`model.to(dtype)`, except that the scale stays in fp32."""
        scale = self.scale.data
        super()._apply(function, recurse)
        self.dtype = function(torch.empty(0, dtype=self.dtype, device=scale.device)).dtype
        self.scale.data = scale.to(self.scale.device)
        return self


class QuantizedLinear(Quantized):
    forward = Linear.forward


class QuantizedIntoStream(Quantized):
    forward = IntoStream.forward


class QuantizedEmbedding(Quantized):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return (self.int8[tokens] * self.scale[tokens][..., None]).to(self.dtype)


def quantize(model: nn.Module) -> None:
    """Replace the matrices of a packed GPT by int8 ones, in place; UserError for other models."""
    if not isinstance(model, GPT):
        raise UserError("--quantize needs the packed model; remove --kernels reference")
    for module in list(model.blocks.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                kind = QuantizedIntoStream if isinstance(child, IntoStream) else QuantizedLinear
                setattr(module, name, kind(child))
    table, head = QuantizedEmbedding(model.token_embedding_table), QuantizedLinear(model.lm_head)
    if model.config.tied_head:
        head.int8, head.scale = table.int8, table.scale
    model.token_embedding_table, model.lm_head = table, head  # type: ignore[assignment]
