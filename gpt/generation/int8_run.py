"""A run of int8 weights, made of another run: what it costs is measured and printed."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn

from gpt import UserError
from gpt.config.cli import train_config_from_json
from gpt.data.corpus import open_data
from gpt.generation.int8 import quantize
from gpt.models.build import portable_state
from gpt.models.packed import GPT
from gpt.runs import checkpoint
from gpt.training.evaluation import evaluate
from gpt.training.step import Precision


def megabytes(model: nn.Module) -> float:
    """What the model's weights take, each counted once."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e6


def save_quantized(
    folder: Path, model: GPT, record: dict, device: torch.device, say: Callable[[str], None]
) -> None:
    """Quantize the model of `record`, and save it to `folder` as a run that only speaks.

    Says what that costs: the perplexity on the validation split before and after.
    """
    if (folder / "best.json").exists():
        raise UserError(f"{folder} holds a run already; name a new folder with --save-dir")
    config = train_config_from_json(record["train"], folder)
    precision = Precision(device, torch.float32)
    data = open_data(config.data, config.data_dir, config.tokenizer, say).to(device)

    def perplexity():
        return torch.tensor(evaluate(model, data, config, precision)).exp().item()

    before, size = perplexity(), megabytes(model)
    quantize(model)
    after = perplexity()
    say(
        f"int8: {megabytes(model):.1f} MB instead of {size:.1f}, perplexity {after:.4f} instead of "
        f"{before:.4f} ({100 * (after / before - 1):+.2f}%); it is in {folder}"
    )
    record = {key: value for key, value in record.items() if key not in ("version", "files")}
    record["int8"] = {"perplexity": after, "perplexity_before": before}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}") from None
    checkpoint.save(folder, {"best": ("weights",)}, {"weights": portable_state(model)}, record)
