"""Sample text from a trained run. `python sample.py --help` lists the options.

python sample.py --out-dir out --start "ROMEO:" --max-new-tokens 300

Samples are printed on stdout one after the other, while they are generated; their speed is printed
on stderr.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import kernels
from gpt import UserError, hardware
from gpt.config.base import Config, option
from gpt.config.cli import parse
from gpt.data.arithmetic import Addition, is_task
from gpt.data.corpus import read_text
from gpt.data.tokenizers import Tokenizer
from gpt.generation.generate import generate
from gpt.generation.int8 import quantize
from gpt.generation.load import load_model
from gpt.generation.sampling import Sampling
from gpt.generation.text_stream import TextStream, in_order
from gpt.models.build import Model
from gpt.pretrained.init_from import load_pretrained
from gpt.process import discard_stdout, protect_streams

SEPARATOR = "---------------"


@dataclass(frozen=True)
class SampleConfig(Config):
    """What to generate. The names are nanoGPT's where nanoGPT has one."""

    out_dir: str = option("out", "folder of the run", section="model")
    init_from: str = option(
        "resume", "resume: the run in out_dir; otherwise what train.py's --init-from takes"
    )
    offline: bool = option(False, "download nothing: use what is here or cached, or stop")
    checkpoint: Literal["best", "last"] = option(
        "best", "best: of the lowest validation loss; last: the latest"
    )
    start: str = option("\n", "the prompt, or FILE:path for the text of a file", section="samples")
    num_samples: int = option(
        1, "number of samples, generated as one batch", at_least=1, below=2**16
    )
    max_new_tokens: int = option(500, "length of a sample in tokens", at_least=1, below=2**24)
    temperature: float = option(0.8, "1: the model's distribution; 0: always the most likely token")
    top_k: int = option(200, "sample only from the k most likely tokens; 0: from all")
    top_p: float = option(
        1.0, "sample only from the most likely tokens that together have this probability"
    )
    stop: str = option("", "end a sample before this text")
    slide: int = option(
        0,
        "number of tokens that leave the context at once when it is full: 1 as in the lecture, "
        "which is slow; 0: a quarter of the block",
    )
    seed: int = option(1337, "seed of the samples", below=2**63)
    kernels: str = option(
        "auto", "auto, triton, torch, reference, or triton,attention=torch", section="computation"
    )
    device: str = option("auto", "where the model runs: auto, cuda, cuda:1, cpu or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "dtype of the weights and of the KV cache"
    )
    quantize: Literal["none", "int8"] = option("none", "int8: store each weight in one byte")

    def __post_init__(self) -> None:
        super().__post_init__()
        Sampling(self.temperature, self.top_k, self.top_p)  # which checks them


def main(arguments: list[str]) -> int:
    try:
        with hardware.enough_memory("use fewer --num-samples or --max-new-tokens, or a GPU"):
            sample(parse(SampleConfig(), arguments, "Sample from a trained GPT."))
    except (UserError, kernels.Unavailable) as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # of stdout; those of files are UserErrors
        discard_stdout()
        if isinstance(error, BrokenPipeError):  # the reader has what it wanted
            return 0
        print(f"sample.py: the sample cannot be printed: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def sample(config: SampleConfig) -> None:
    # the model
    device = hardware.choose_device(config.device)
    hardware.keep_freed_memory(device)
    ops = load_ops(config.kernels, device)
    if config.init_from == "resume":
        model, tokenizer, record = load_model(Path(config.out_dir), config.checkpoint, ops, device)
    else:
        model, tokenizer, record = load_pretrained(config.init_from, ops, device)
    if config.quantize == "int8":
        quantize(model)
    dtype = config.dtype
    if dtype == "auto" and device.type != "cuda" and config.quantize == "none":
        dtype = "float32"  # elsewhere 16 bits are faster: on a GPU, and with int8 weights
    model.to(hardware.choose_dtype(dtype, device))
    if config.slide > (block_size := model.config.block_size):
        raise UserError(f"--slide is {config.slide}; give at most the block size, {block_size}")
    if record and is_task(data := str(record["train"].get("data"))):
        task = Addition(data)
        if tokenizer.to_json() != task.tokenizer.to_json():
            raise UserError(f"the run's tokenizer is not that of {data}; the run is damaged")
        print(answer(config, model, task, device))
        return

    # the prompt
    start = config.start
    if start.startswith("FILE:"):
        start = read_text(Path(start.removeprefix("FILE:")))
    prompt = encode_prompt(start, tokenizer).to(device)  # (T,)
    if len(prompt) == 0:
        raise UserError("the prompt is empty; give at least one character with --start")

    # the samples
    sampling = Sampling(config.temperature, config.top_k, config.top_p, tokenizer.vocab_size)
    generator = torch.Generator(device).manual_seed(config.seed)
    new, slide = config.max_new_tokens, config.slide
    prompts = prompt.expand(config.num_samples, -1)  # (B, T)
    tokens = generate(model, prompts, new, sampling, slide=slide, generator=generator)
    streams = [TextStream(tokenizer.stream(), config.stop) for _ in range(config.num_samples)]
    print_samples(tokens, streams, start)


def encode_prompt(start: str, tokenizer: Tokenizer) -> torch.Tensor:
    """The tokens (T,) of a prompt, with the end-of-text token for <|endoftext|>."""
    end = tokenizer.end_of_text
    texts = [start] if end is None else start.split("<|endoftext|>")
    first, *others = (torch.from_numpy(tokenizer.encode(text)) for text in texts)
    return torch.cat([first, *(part for text in others for part in (torch.tensor([end]), text))])


def print_samples(tokens: Iterator[torch.Tensor], streams: list[TextStream], start: str) -> None:
    """Print the samples on stdout while they are generated, and their speed on stderr."""
    began, first = time.perf_counter(), 0.0
    last = None  # the sample that is being printed
    for number, piece in in_order(tokens, streams):
        first = first or time.perf_counter() - began
        if number != last:
            print(f"\n{SEPARATOR}\n{start}" if number else start, end="")
        print(piece, end="", flush=True)
        last = number
    print()
    seconds, made = time.perf_counter() - began, sum(stream.tokens for stream in streams)
    log(
        f"{made:,} tokens in {seconds:.2f} s, {made / seconds:,.0f} tokens/s; "
        f"the first after {1e3 * first:.0f} ms"
    )


def load_ops(choice: str, device: torch.device) -> kernels.Ops | None:
    """The operations that `--kernels` names, or None for the reference."""
    try:
        return None if choice == "reference" else kernels.load(choice, device)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def answer(config: SampleConfig, model: Model, task: Addition, device: torch.device) -> str:
    """The problem given with --start, and the model's greedy answer."""
    problem = task.prompt(config.start)
    prompt = torch.from_numpy(task.tokenizer.encode(problem)).to(device)  # (T,)
    stream = TextStream(task.tokenizer.stream(), stop="\n")
    greedy = Sampling(temperature=0.0, vocab_size=task.tokenizer.vocab_size)
    tokens = generate(model, prompt[None], model.config.block_size + 1 - len(prompt), greedy)
    written = "".join(text for _, text in in_order(tokens, [stream]))
    return problem + task.answer(written)


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    protect_streams(keep_stdout=True)
    sys.exit(main(sys.argv[1:]))
