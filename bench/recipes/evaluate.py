"""What a model knows of a text, or of HellaSwag. `--help` lists the options.

python -m bench.recipes.evaluate out --text book.txt
python -m bench.recipes.evaluate gpt2 --hellaswag hellaswag_val.jsonl --limit 1000
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

import kernels
from gpt import UserError, hardware
from gpt.config.cli import parse
from gpt.data.corpus import read_text
from gpt.exercises import hellaswag
from gpt.models.build import build, load_portable_state
from gpt.pretrained.init_from import open_source
from gpt.runs.run_state import load_model
from gpt.training.evaluation import text_scores
from gpt.training.step import Precision
from sample import load_ops


@dataclass(frozen=True)
class EvaluateConfig:
    """Which model, and what it is asked."""

    model: tyro.conf.Positional[str] = "out"  # a run, or what else --init-from of train.py takes
    text: str = ""  # a file: its loss, perplexity, and bits per byte
    hellaswag: str = ""  # a file of HellaSwag's lines: the share of right endings
    limit: int = 0  # of HellaSwag the first so many; 0: all
    json: bool = False  # print one JSON object instead
    kernels: str = "auto"  # auto, triton, torch, reference, or triton,attention=torch
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"  # of matrix products


def main(arguments: list[str]) -> int:
    try:
        evaluate(parse(EvaluateConfig, EvaluateConfig(), arguments, "Evaluate a GPT."))
    except (UserError, kernels.Unavailable) as refusal:
        print(f"bench.recipes.evaluate: {refusal}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


def evaluate(config: EvaluateConfig) -> None:
    if not config.text and not config.hellaswag:
        raise UserError("say what to evaluate with: --text FILE, --hellaswag FILE, or both")
    if config.limit < 0:
        raise UserError("--limit must be at least 0")
    device = hardware.choose_device(config.device)
    precision = Precision(device, hardware.choose_dtype(config.dtype, device))
    text = read_text(Path(config.text)) if config.text else ""
    asked = hellaswag.examples(Path(config.hellaswag), config.limit) if config.hellaswag else []
    model, tokenizer = open_model(config, device)

    found = {}
    if config.text:
        found |= text_scores(model, tokenizer, text, precision)
    if asked:
        found |= hellaswag.accuracy(model, tokenizer, asked, precision) | {"examples": len(asked)}

    if config.json:
        print(json.dumps({"model": config.model, **found}))
        return
    if config.text:
        print(
            "{text}: loss {loss:.4f} nats per token, perplexity {perplexity:.2f}, "
            "{bits_per_byte:.4f} bits per byte ({tokens:,} tokens, {bytes:,} bytes)".format(
                text=config.text, **found
            )
        )
    if asked:
        print(
            "{hellaswag}: acc {acc:.4f} by the sum, acc_norm {acc_norm:.4f} by the mean "
            "({examples:,} examples)".format(hellaswag=config.hellaswag, **found)
        )


def open_model(config: EvaluateConfig, device: torch.device):
    """The model that `config` names and its tokenizer, a run's or a pretrained one's."""
    ops = load_ops(config.kernels, device)
    if Path(config.model, "best.json").is_file():
        model, tokenizer, _ = load_model(Path(config.model), "best", ops, device)
    else:
        source = open_source(config.model)
        tokenizer = source.tokenizer
        if tokenizer is None:
            raise UserError(
                f"{config.model} has weights alone; a tokenizer is needed to read a text"
            )
        model = build(source.config, ops)
        load_portable_state(model, source.weights())
        model = model.to(device).eval()
    if model.config.source_size:
        raise UserError(f"the model of {config.model} reads pairs, and no text")
    return model, tokenizer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
