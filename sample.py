"""Load a run and let it speak. `python sample.py --help` lists the options.

python sample.py --out-dir out --start "ROMEO:" --max-new-tokens 300
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import kernels
from gpt import Refused, hardware
from gpt.corpus import read_text
from gpt.generate import generate, stream_text
from gpt.options import parse
from gpt.run import load_model


@dataclass(frozen=True)
class SampleConfig:
    """What to say, and how. The names are nanoGPT's where nanoGPT has one."""

    out_dir: str = "out"  # the run
    checkpoint: Literal["best", "last"] = "best"  # of lowest validation loss, or the latest
    start: str = "\n"  # the prompt, or FILE:path for the text of a file
    num_samples: int = 1
    max_new_tokens: int = 500
    temperature: float = 0.8  # 1 is the model's own distribution, 0 the likeliest token always
    top_k: int = 200  # only among the likeliest k tokens; 0 is all
    top_p: float = 1.0  # only among the likeliest that together have this probability
    stop: str = ""  # end a sample before this text
    seed: int = 1337
    kernels: str = "auto"  # auto, triton, torch, reference, or triton,attention=torch
    device: str = "auto"


def main(arguments: list[str]) -> int:
    try:
        sample(check(parse(SampleConfig, SampleConfig(), arguments, "Sample from a trained GPT.")))
    except (Refused, kernels.Unavailable) as refusal:
        print(f"sample.py: {refusal}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


def check(config: SampleConfig) -> SampleConfig:
    """Refuse numbers that make no sample."""
    for name, least in (("num_samples", 1), ("max_new_tokens", 1), ("top_k", 0)):
        if getattr(config, name) < least:
            raise Refused(f"--{name.replace('_', '-')} must be at least {least}")
    if not 0.0 <= config.temperature < float("inf"):
        raise Refused("--temperature must be a number of at least 0")
    if not 0.0 < config.top_p <= 1.0:
        raise Refused("--top-p must be above 0 and at most 1")
    return config


def sample(config: SampleConfig) -> None:
    device = hardware.choose_device(config.device)
    try:
        ops = None if config.kernels == "reference" else kernels.load(config.kernels, device)
    except ValueError as error:
        raise Refused(f"--{error}") from None
    model, tokenizer, _ = load_model(Path(config.out_dir), config.checkpoint, ops, device)
    text = config.start
    if text.startswith("FILE:"):
        text = read_text(Path(text.removeprefix("FILE:")))
    tokens = tokenizer.encode(text)
    if len(tokens) == 0:
        raise Refused("the prompt is empty; give at least one character with --start")
    prompt = torch.from_numpy(tokens)[None].to(device)  # (1, T)
    generator = torch.Generator(device).manual_seed(config.seed)
    for number in range(config.num_samples):
        if number:
            print("---------------")
        made = generate(
            model,
            prompt,
            config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            generator=generator,
        )
        print(text, end="", flush=True)
        for piece in stream_text(made, tokenizer.stream(), config.stop):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
