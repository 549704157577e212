"""Evaluate a model on a text: loss, perplexity, bits per byte.

python -m bench.recipes.evaluate out --text book.txt
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import kernels
from gpt import UserError, hardware
from gpt.config.base import Config, option
from gpt.config.cli import parse
from gpt.data.corpus import read_text
from gpt.pretrained.init_from import load_pretrained
from gpt.training.evaluation import text_metrics
from gpt.training.precision import Precision
from sample import load_ops


@dataclass(frozen=True)
class Options(Config):
    model: str = option("out", "a run, or anything else that --init-from accepts", positional=True)
    text: str = option("", "a file in UTF-8")
    json: bool = option(False, "print one JSON object")
    kernels: str = option("auto", "auto, triton, torch, reference, or triton,attention=torch")
    device: str = option("auto", "cuda, cuda:1, cpu or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "float32", "dtype of matrix products"
    )


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with hardware.enough_memory("give a smaller --text or use another --device"):
            evaluate(parse(Options(), given, __doc__.partition("\n")[0]))
    except (UserError, kernels.Unavailable) as error:
        print(f"bench.recipes.evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def evaluate(options: Options) -> None:
    if not options.text:
        raise UserError("there is nothing to evaluate; give --text FILE")
    device = hardware.choose_device(options.device)
    precision = Precision(device, hardware.choose_dtype(options.dtype, device))
    text = read_text(Path(options.text))
    ops = load_ops(options.kernels, device)
    model, tokenizer, _ = load_pretrained(options.model, ops, device)
    found = text_metrics(model, tokenizer, text, model.config.block_size, precision)
    if options.json:
        finite = {name: value if math.isfinite(value) else None for name, value in found.items()}
        print(json.dumps({"model": options.model, **finite}))
    else:
        rates = "loss {loss:.4f} nats per token, perplexity {perplexity:.2f}, "
        rates += "{bits_per_byte:.4f} bits per byte ({tokens:,} tokens, {bytes:,} bytes)"
        print(f"{options.text}: {rates.format(**found)}")


if __name__ == "__main__":
    sys.exit(main())
