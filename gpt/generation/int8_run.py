"""Quantize the model of a run to int8, measure what that costs, and save the result as a run."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.data.corpus import open_data
from gpt.generation.int8 import is_quantized, quantize
from gpt.models.packed import GPT
from gpt.runs import checkpoint
from gpt.runs.portable_state import portable_state
from gpt.training.evaluation import evaluate, validation_batches
from gpt.training.precision import Precision


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
    config = TrainConfig.from_dict(record["train"], folder)
    precision = Precision(device, torch.float32)
    data = open_data(config.data, config.data_dir, config.tokenizer, log).to(device)
    batches = validation_batches(data, config.model.block_size)

    def perplexity() -> float:
        return torch.tensor(evaluate(model, batches, precision)).exp().item()

    before, size = perplexity(), megabytes(model)
    quantize(model)
    after = perplexity()
    log(
        f"int8: {megabytes(model):.1f} MB instead of {size:.1f}, perplexity {after:.4f} instead of "
        f"{before:.4f} ({100 * (after / before - 1):+.2f}%); saved to {folder}"
    )
    record = {key: value for key, value in record.items() if key not in ("version", "files")}
    record["int8"] = {"perplexity": after, "perplexity_before": before}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be created: {error.strerror}") from None
    checkpoint.save(folder, {"best": ("weights",)}, {"weights": portable_state(model)}, record)
