"""Evaluate a model on a text (loss, perplexity, bits per byte) or on HellaSwag.

python -m bench.recipes.evaluate out --text book.txt
python -m bench.recipes.evaluate gpt2 --hellaswag hellaswag_val.jsonl --limit 1000
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from bench.recipes.common import exit_code
from gpt import UserError, hardware
from gpt.data.corpus import read_text
from gpt.exercises import hellaswag
from gpt.generation.load import load_model
from gpt.models.build import build
from gpt.pretrained.init_from import open_source
from gpt.runs.portable_state import load_portable_state
from gpt.training.evaluation import text_metrics
from gpt.training.precision import Precision
from sample import load_ops


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("model", nargs="?", default="out", help="a run, or anything else that --init-from accepts")
    add("--text", type=Path, help="a file: print its loss, perplexity and bits per byte")
    add("--hellaswag", type=Path, help="a file of HellaSwag examples: print the accuracy")
    add("--limit", type=int, default=0, help="use only the first examples of HellaSwag; 0: all")
    add("--json", action="store_true", help="print one JSON object")
    add("--kernels", default="auto", help="auto, triton, torch, reference, triton,attention=torch")
    add("--device", default="auto")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="float32")
    options = parser.parse_args(arguments)
    if not options.text and not options.hellaswag:
        parser.error("there is nothing to evaluate; give --text FILE or --hellaswag FILE")
    if options.limit < 0:
        parser.error(f"--limit is {options.limit}; it must be at least 0")
    return exit_code("evaluate", lambda: evaluate(options))


def evaluate(options: argparse.Namespace) -> None:
    device = hardware.choose_device(options.device)
    precision = Precision(device, hardware.choose_dtype(options.dtype, device))
    text = read_text(options.text) if options.text else ""
    examples = hellaswag.examples(options.hellaswag, options.limit) if options.hellaswag else []
    model, tokenizer = open_model(options.model, load_ops(options.kernels, device), device)
    found, lines = {"model": options.model}, []
    if options.text:
        found |= text_metrics(model, tokenizer, text, model.config.block_size, precision)
        line = (
            "loss {loss:.4f} nats per token, perplexity {perplexity:.2f}, "
            "{bits_per_byte:.4f} bits per byte ({tokens:,} tokens, {bytes:,} bytes)"
        )
        lines.append(f"{options.text}: {line.format(**found)}")
    if examples:
        found |= hellaswag.accuracy(model, tokenizer, examples, precision)
        found["examples"] = len(examples)
        line = "acc {acc:.4f} (by sum), acc_norm {acc_norm:.4f} (by mean), {examples:,} examples"
        lines.append(f"{options.hellaswag}: {line.format(**found)}")
    print(json.dumps(found) if options.json else "\n".join(lines))


def open_model(name: str, ops, device: torch.device):
    """The model of a run or of pretrained weights, and its tokenizer."""
    if Path(name, "best.json").is_file():
        model, tokenizer, _ = load_model(Path(name), "best", ops, device)
    else:
        source = open_source(name)
        tokenizer = source.tokenizer
        if tokenizer is None:
            raise UserError(f"{name} has no tokenizer; give a run, or GPT-2's weights")
        model = build(source.config, ops)
        load_portable_state(model, source.weights())
        model = model.to(device).eval()
    if model.config.source_size:
        raise UserError(f"{name} is an encoder-decoder, which cannot score a text")
    return model, tokenizer


if __name__ == "__main__":
    sys.exit(main())
