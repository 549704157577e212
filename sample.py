"""Load a run and let it speak. `python sample.py --help` lists the options.

python sample.py --out-dir out --start "ROMEO:" --max-new-tokens 300

Samples go to stdout, one after the other, each as it is made; how fast they came, to stderr.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import kernels
from gpt import UserError, hardware
from gpt.config.cli import parse
from gpt.data.corpus import read_text
from gpt.data.tasks.arithmetic import Task, is_task, open_task
from gpt.generation.generate import TextStream, generate
from gpt.generation.int8 import is_quantized, quantize
from gpt.generation.int8_run import save_quantized
from gpt.generation.speculation import Draft, Lookup, rule_of, speculate
from gpt.models.packed import GPT
from gpt.runs.run_state import load_model

SEPARATOR = "---------------"


@dataclass(frozen=True)
class SampleConfig:
    """What to say, and how. The names are nanoGPT's where nanoGPT has one."""

    out_dir: str = "out"  # the run
    checkpoint: Literal["best", "last"] = "best"  # of lowest validation loss, or the latest
    start: str = "\n"  # the prompt, or FILE:path for the text of a file
    num_samples: int = 1  # all of them are made at once
    max_new_tokens: int = 500
    temperature: float = 0.8  # 1 is the model's own distribution, 0 the likeliest token always
    top_k: int = 200  # only among the likeliest k tokens; 0 is all
    top_p: float = 1.0  # only among the likeliest that together have this probability
    stop: str = ""  # end a sample before this text
    slide: int = (
        1  # past the block size, move the context by so many tokens at once; 1: the lecture
    )
    seed: int = 1337
    show_work: bool = False  # of a calculator: what it has written, scratchpad and all
    json: bool = False  # print one JSON object instead of the text
    kernels: str = "auto"  # auto, triton, torch, reference, or triton,attention=torch
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of weights and cache
    quantize: Literal["none", "int8"] = "none"  # int8: a byte for each weight
    draft: str = ""  # guess ahead by the model of this smaller run, or by "lookup" in the text
    save_dir: str = ""  # save the int8 model here, a run to sample from, and say what it costs


def main(arguments: list[str]) -> int:
    try:
        sample(check(parse(SampleConfig, SampleConfig(), arguments, "Sample from a trained GPT.")))
    except (UserError, kernels.Unavailable) as refusal:
        print(f"sample.py: {refusal}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


def check(config: SampleConfig) -> SampleConfig:
    """Refuse numbers that make no sample."""
    for name, least in (("num_samples", 1), ("max_new_tokens", 1), ("top_k", 0), ("slide", 1)):
        if getattr(config, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}")
    if not 0.0 <= config.temperature < float("inf"):
        raise UserError("--temperature must be a number of at least 0")
    if not 0.0 < config.top_p <= 1.0:
        raise UserError("--top-p must be above 0 and at most 1")
    if config.save_dir and config.quantize == "none":
        raise UserError("--save-dir is for an int8 model; give --quantize int8 too")
    if config.draft and config.num_samples > 1:
        raise UserError("--draft is for one sample; leave --num-samples at 1")
    return config


def sample(config: SampleConfig) -> None:
    # the model
    device = hardware.choose_device(config.device)
    ops = load_ops(config.kernels, device)
    model, tokenizer, record = load_model(Path(config.out_dir), config.checkpoint, ops, device)
    if config.quantize == "int8":
        make_int8(config, model, record, device)
    model.to(choose_dtype(config.dtype, device, is_quantized(model)))
    block_size = model.config.block_size
    if config.slide > block_size:
        raise UserError(f"--slide is at most the run's block size, {block_size}")

    if is_task(data := str(record["train"].get("data"))):
        print(answer(config, model, open_task(data), device))
        return

    # the prompt
    start = config.start
    if start.startswith("FILE:"):
        start = read_text(Path(start.removeprefix("FILE:")))
    tokens = tokenizer.encode(start)
    if len(tokens) == 0:
        raise UserError("the prompt is empty; give at least one character with --start")
    prompts = torch.from_numpy(tokens).to(device).expand(config.num_samples, -1)  # (B, T)

    # the samples
    began, first = time.perf_counter(), 0.0
    generator = torch.Generator(device).manual_seed(config.seed)
    if config.draft:
        tokens = guess_ahead(config, model, tokenizer, prompts[0], generator)
    else:
        tokens = generate(
            model,
            prompts,
            config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            slide=config.slide,
            vocab_size=tokenizer.vocab_size,
            generator=generator,
        )
    streams = [TextStream(tokenizer.stream(), config.stop) for _ in range(config.num_samples)]
    texts = [""] * config.num_samples
    last = None  # of the samples, the one that is being printed
    for number, piece in in_order(tokens, streams):
        first = first or time.perf_counter() - began
        texts[number] += piece
        if not config.json:
            if number != last:
                print(f"\n{SEPARATOR}\n{start}" if number else start, end="")
            print(piece, end="", flush=True)
            last = number

    # what came of it
    seconds, made = time.perf_counter() - began, sum(stream.tokens for stream in streams)
    speed = {
        "tokens": made,
        "seconds": seconds,
        "tokens_per_second": made / seconds,
        "first_token_seconds": first,
    }
    if config.json:
        samples = [
            {"text": text, "tokens": stream.tokens, "stopped": stream.stopped}
            for text, stream in zip(texts, streams, strict=True)
        ]
        print(json.dumps({"start": start, "samples": samples, **speed}))
    else:
        print()
    say(
        f"{made:,} tokens in {seconds:.2f} s, {made / seconds:,.0f} tokens/s; "
        f"the first after {1e3 * first:.0f} ms"
    )


def load_ops(choice: str, device: torch.device):
    """The table that `--kernels` names, or None for the reference."""
    try:
        return None if choice == "reference" else kernels.load(choice, device)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def answer(config: SampleConfig, model, task: Task, device: torch.device) -> str:
    """The problem that is typed as --start, and the model's answer: always the likeliest token."""
    problem = task.prompt(config.start)
    prompt = torch.from_numpy(task.tokenizer.encode(problem)).to(device)  # (T,)
    stream = TextStream(task.tokenizer.stream(), stop="\n")
    rule = {"temperature": 0.0, "vocab_size": task.tokenizer.vocab_size}
    written = ""
    for token in generate(model, [prompt], model.config.block_size + 1 - len(prompt), **rule):
        written += stream(int(token[0]))
        if stream.stopped:
            break
    return problem.replace("\n", "") + (written if config.show_work else task.answer(written))


def make_int8(config: SampleConfig, model, record: dict, device: torch.device) -> None:
    """Quantize the model, and save it where that is asked for."""
    if not isinstance(model, GPT):
        raise UserError("--quantize is for the fast model; choose --kernels torch or triton")
    if is_quantized(model):
        raise UserError(f"the run in {config.out_dir} is int8 already; leave --quantize out")
    if config.save_dir:
        save_quantized(Path(config.save_dir), model, record, device, say)
    else:
        quantize(model)


def guess_ahead(config: SampleConfig, model, tokenizer, prompt, generator) -> Iterator:
    """The tokens of one sample, which a smaller model or the text itself helps to find."""
    if not isinstance(model, GPT):
        raise UserError("--draft is for the fast model; choose --kernels torch or triton")
    rule = rule_of(tokenizer.vocab_size, config.temperature, config.top_k, config.top_p)
    if config.draft == "lookup":
        guess = Lookup(tokenizer.vocab_size, prompt.device)
    else:
        folder = Path(config.draft)
        smaller, its, _ = load_model(folder, config.checkpoint, model.ops, prompt.device)
        if not isinstance(smaller, GPT) or its.to_json() != tokenizer.to_json():
            raise UserError(f"the run in {folder} is not a GPT with the tokens of {config.out_dir}")
        guess = Draft(smaller.to(model.ln_f.weight.dtype), rule, generator)
    options = {"slide": config.slide, "generator": generator}
    return speculate(model, prompt, config.max_new_tokens, guess, rule, **options)


def choose_dtype(name: str, device: torch.device, int8: bool) -> torch.dtype:
    """Of `--dtype`; auto is 16 bits where they are faster: on a CUDA card, and beside int8."""
    if name == "auto" and device.type != "cuda" and not int8:
        return torch.float32
    return hardware.choose_dtype(name, device)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def in_order(
    tokens: Iterator[torch.Tensor], streams: list[TextStream]
) -> Iterator[tuple[int, str]]:
    """(sample, text) as soon as it can be printed: when all samples before it are over."""
    waiting = [""] * len(streams)
    current = 0
    for step in tokens:  # (B,)
        for number, token in enumerate(step.tolist()):
            if not streams[number].stopped:
                waiting[number] += streams[number](token)
        while current < len(streams):
            yield current, waiting[current]
            waiting[current] = ""
            if not streams[current].stopped:
                break
            current += 1
        else:
            return  # all are stopped
    for number in range(current, len(streams)):
        yield number, waiting[number] + streams[number].rest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
