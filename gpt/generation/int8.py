"""int8 weights: symmetric, with one scale for each output channel.

    scale[n] = max over k of |w[n, k]| / 127        int8[n, k] = round(w[n, k] / scale[n])

scale * int8 stands for w, with an error of at most scale / 2. Every matrix is quantized: those of
the blocks, the head, and the token table, whose channels are tokens. Norms, biases, positions and
activations keep their dtype, so what is saved is memory and the time to read it.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn

from .. import UserError
from ..config.train import TrainConfig
from ..data.corpus import open_data
from ..models import reference
from ..models.packed import GPT
from ..models.residual import IntoStream, Linear
from ..runs import checkpoint
from ..runs.portable_state import portable_state
from ..training.evaluation import evaluate, validation_batches
from ..training.precision import Precision

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


def quantize(model: GPT) -> None:
    """Replace the model's matrices by int8 ones, in place."""
    for module in list(model.blocks.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                kind = QuantizedIntoStream if isinstance(child, IntoStream) else QuantizedLinear
                setattr(module, name, kind(child))
    table, head = QuantizedEmbedding(model.token_embedding_table), QuantizedLinear(model.lm_head)
    if model.config.tied_head:
        head.int8, head.scale = table.int8, table.scale
    model.token_embedding_table, model.lm_head = table, head  # type: ignore[assignment]


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Quantized) for module in model.modules())


def match_quantization(model: nn.Module, state: checkpoint.Tensors) -> checkpoint.Tensors:
    """Make `model` and int8 weights fit each other, and return the weights to load.

    A packed GPT is quantized; for the reference the weights are dequantized. A state without int8
    weights is returned unchanged.
    """
    if not any(name.endswith(".int8") for name in state):
        return state
    if isinstance(model, GPT):
        quantize(model)
        return state
    if not isinstance(model, reference.GPT):
        raise UserError("the weights are int8, which a stage of the lecture does not support")
    loaded = {}
    for name, tensor in state.items():
        if name.endswith(".int8"):
            scale = state.get(name.replace(".int8", ".scale"))
            if scale is None or scale.shape != tensor.shape[:1]:
                raise UserError(f"weights: {name} has no matching scale; the checkpoint is damaged")
            loaded[name.replace(".int8", ".weight")] = tensor * scale[:, None]
        elif name.removesuffix(".scale") + ".int8" not in state:
            loaded[name] = tensor
    return loaded


def megabytes(model: nn.Module) -> float:
    """The memory of the model's weights, each counted once, in MB."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e6


def quantize_run(
    model: nn.Module, record: dict, device: torch.device, save_dir: str, log: Callable[[str], None]
) -> None:
    """Quantize the model of a run in place. With `save_dir`, save it there as a run.

    Saving logs the model's size and its perplexity before and after. record: the JSON record of the
    model's checkpoint.
    """
    if not isinstance(model, GPT):
        raise UserError("--quantize needs the packed model; remove --kernels reference")
    if is_quantized(model):
        raise UserError("the model is int8 already; remove --quantize")
    if not save_dir:
        quantize(model)
        return
    folder = Path(save_dir)
    if (folder / "best.json").exists():
        raise UserError(f"{folder} holds a run already; name a new folder with --save-dir")
    try:  # now, so that the result can be saved
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be created: {error.strerror}") from None
    config = TrainConfig.from_dict(record["train"], folder)
    precision = Precision(device, torch.float32)
    data = open_data(config.data, config.data_dir, config.tokenizer, log).to(device)

    def perplexity() -> float:
        batches = validation_batches(data, config.model.block_size)
        return torch.tensor(evaluate(model, batches, precision)).exp().item()

    before, size = perplexity(), megabytes(model)
    quantize(model)
    after = perplexity()
    record = {key: value for key, value in record.items() if key not in ("version", "files")}
    record["int8"] = {"perplexity": after, "perplexity_before": before}
    checkpoint.save(folder, {"best": ("weights",)}, {"weights": portable_state(model)}, record)
    log(
        f"int8: {megabytes(model):.1f} MB instead of {size:.1f}, perplexity {after:.4f} instead of "
        f"{before:.4f} ({100 * (after / before - 1):+.2f}%); saved to {folder}"
    )
