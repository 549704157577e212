"""The generation loop yields the tokens of the lecture's own loop, with a cache and without."""

import functools
import warnings
from dataclasses import replace

import pytest
import torch

from gpt.data.tokenizers import CharTokenizer
from gpt.generation.generate import READ_EVERY, generate
from gpt.generation.preview import print_sample
from gpt.generation.sampling import Sampling
from gpt.models import reference
from tests.gpt.configs import CONFIGS, draw_tokens, packed_from, randomise
from tests.operands import DEVICE

VOCABULARY, BLOCK = 65, 8
TABLES = ["reference", "torch", *(["triton"] if torch.cuda.is_available() else [])]


@torch.no_grad()
def build(name, table, **sizes):
    """A model whose most likely token keeps changing, because no bias outweighs the context."""
    sizes = {"block_size": BLOCK, "vocab_size": VOCABULARY} | sizes
    model = randomise(reference.GPT(replace(CONFIGS[name], **sizes)))
    for key, weight in model.named_parameters():
        if key.endswith("bias"):
            weight.mul_(0.1)
        elif "token_embedding" in key or "lm_head" in key:
            weight.mul_(3)
        elif "ln" in key:
            weight.fill_(1)
    return model.to(DEVICE) if table == "reference" else packed_from(model, table)


@torch.no_grad()
def lecture_loop(model, tokens, new, slide=1):
    """The lecture's loop, greedy; the context moves by `slide` when it is longer than the block."""
    start, made = 0, []
    for _ in range(new):
        while tokens.shape[1] - start > model.config.block_size:
            start += slide
        logits, _ = model(tokens[:, start:])
        first, second = logits[:, -1].topk(2).values.unbind(-1)
        assert (first - second).min() > 1e-4  # no tie
        made.append(logits[:, -1].argmax(-1))
        tokens = torch.cat((tokens, made[-1][:, None]), dim=1)
    return torch.stack(made)  # (new, B)


def greedy(model, prompts, new, **options):
    return torch.stack(list(generate(model, prompts, new, Sampling(temperature=0.0), **options)))


@functools.cache
def expected(name, slide, length):
    """Two prompts, and how the lecture's loop continues them."""
    prompts = draw_tokens(2, length, seed=length, vocab_size=VOCABULARY).to(DEVICE)
    made = lecture_loop(build(name, "reference"), prompts, 3 * BLOCK, slide or BLOCK // 4)
    return prompts, made.cpu()


@pytest.mark.parametrize("slide", [0, 1, 5, BLOCK])
@pytest.mark.parametrize("name", ["qkv bias", "modern", "grouped window"])
@pytest.mark.parametrize("table", TABLES)
def test_prompts_continue_as_in_the_lecture(name, table, slide):
    model = build(name, table)
    for length in (1, BLOCK, BLOCK + 4):
        prompts, tokens = expected(name, slide, length)
        assert torch.equal(greedy(model, prompts, 3 * BLOCK, slide=slide), tokens)


def test_samples_of_a_run_have_no_padding_of_the_vocabulary(capsys):
    model, tokenizer = build("lecture", "torch"), CharTokenizer("abc")
    print_sample(model, tokenizer, 50, 0, torch.device(DEVICE))
    assert set(capsys.readouterr().out) <= set("abc\n")


def test_empty_prompts_and_wrong_slides_are_rejected():
    model = build("lecture", "torch")
    with pytest.raises(ValueError, match="the prompts are empty"):
        next(generate(model, draw_tokens(2, 0), 1))
    for slide in (-1, BLOCK + 1):
        with pytest.raises(ValueError, match="slide is"):
            next(generate(model, draw_tokens(1, 1), 1, slide=slide))
    assert list(generate(model, draw_tokens(1, 1), 0)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("table", ["torch", "triton"])
def test_tokens_are_read_from_the_gpu_every_eighth_time(table):
    made = generate(build("lecture", table, block_size=64), draw_tokens(2, 14).to(DEVICE), 40)
    next(made)  # captures the graph and fills the cache
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(2 * READ_EVERY):
                next(made)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "called a synchronizing" in str(one.message)]
    assert len(waits) == 2
