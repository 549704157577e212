"""Speculation changes only the time: greedy text and the distribution of samples stay equal."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

import kernels
from gpt.generation.generate import generate
from gpt.generation.kv_cache import CachedGPT
from gpt.generation.sampling import Sampling
from gpt.generation.speculation import AHEAD, Draft, Lookup, speculate
from gpt.models import packed
from tests.gpt.configs import CONFIGS, draw_tokens
from tests.gpt.generation.test_generate import BLOCK, VOCABULARY, build
from tests.operands import DEVICE
from tests.sampling import assert_drawn_from


def text_of(model, prompt, new, guess, *, temperature=0.0, slide=BLOCK // 2, seed=0, **options):
    sampling = Sampling(temperature, **options)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    made = speculate(model, prompt, new, guess, sampling, slide=slide, generator=generator)
    return torch.stack(list(made))[:, 0].tolist()


def nothing(text, most):
    return [], torch.empty(0)


class Oracle:
    """Every guess is right except every third token."""

    def __init__(self, text):
        self.text = text

    def __call__(self, text, most):
        guesses = self.text[len(text) : len(text) + most]
        guesses = [(g + (len(text) + i) % 3 // 2) % VOCABULARY for i, g in enumerate(guesses)]
        return guesses, torch.eye(VOCABULARY, device=DEVICE)[guesses]


# --- the judging model ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_extend_has_the_logits_of_single_decode_steps(name):
    model = build(name, "torch").double()
    tokens = draw_tokens(1, 9, vocab_size=VOCABULARY)[0].to(DEVICE)
    one, other = CachedGPT(model, 1), CachedGPT(model, 1)
    for cached in (one, other):
        cached.prefill([0], tokens[None, :2], 2)
    steps = torch.cat([one.decode_one_token(token[None]) for token in tokens[2:]])
    at_once = torch.cat([other.extend(tokens[2:6]), other.extend(tokens[6:])])
    assert (at_once - steps).abs().max() <= 1e-12 * steps.abs().max()
    assert other.position.tolist() == one.position.tolist() == [9]
    assert torch.allclose(one.cache, other.cache, rtol=0, atol=1e-11)


@pytest.mark.parametrize("slide", [1, 5, BLOCK])
@pytest.mark.parametrize("name", ["modern", "grouped window"])
def test_greedy_text_does_not_depend_on_the_guesses(name, slide):
    model, prompt = build(name, "torch"), draw_tokens(1, 7, vocab_size=VOCABULARY)[0].to(DEVICE)
    made = generate(model, prompt[None], 5 * BLOCK, Sampling(0.0), slide=slide)
    expected = torch.stack(list(made))[:, 0].tolist()
    greedy = Sampling(temperature=0.0)
    for guess in (
        nothing,
        Oracle(prompt.tolist() + expected),
        Draft(build("gelu", "torch", n_layer=1, block_size=6), greedy),
        Draft(model, greedy),
        Lookup(VOCABULARY, DEVICE, lengths=(2, 1)),
    ):
        assert text_of(model, prompt, 5 * BLOCK, guess, slide=slide) == expected


def test_right_guesses_save_passes():
    model, prompt = build("modern", "torch"), draw_tokens(1, 4, vocab_size=VOCABULARY)[0]
    guess = Mock(wraps=Draft(model, Sampling(temperature=0.0)))
    assert len(text_of(model, prompt.to(DEVICE), 12, guess, slide=BLOCK)) == 12
    rounds = [call.args[1] for call in guess.call_args_list]
    assert rounds == [AHEAD, AHEAD, 1]  # five tokens, five, and the last two


# --- the distribution -----------------------------------------------------------------------------


@torch.no_grad()
def markov(seed):
    """A model whose next token depends only on the last one."""
    config = replace(CONFIGS["lecture"], vocab_size=4, position="rope", n_layer=1)
    torch.manual_seed(seed)
    model = packed.GPT(config, kernels.load("torch")).to(DEVICE).eval()
    model.token_embedding_table.weight.normal_()
    model.lm_head.weight.normal_(std=0.1)
    for block in model.blocks:
        block.sa.proj.weight.zero_()
        block.ffwd.down.weight.zero_()
    return model


@pytest.mark.parametrize("kind", ["draft", "lookup"])
def test_speculated_text_has_the_distribution_of_the_model(kind):
    model, options = markov(0), {"temperature": 0.8, "top_k": 3}
    sampling = Sampling(**options)
    generator = torch.Generator(DEVICE).manual_seed(1)
    draft = Draft(markov(1), sampling, generator)
    guess = draft if kind == "draft" else Lookup(4, DEVICE, lengths=(2,))
    prompt = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    text = torch.tensor([0, *text_of(model, prompt, 2000, guess, slide=8, **options)])
    logits = model(torch.arange(4, device=DEVICE)[:, None])[0][:, 0]
    exact = sampling.probabilities(logits.detach())
    for token in range(4):
        assert_drawn_from(text[1:][text[:-1] == token], exact[token].cpu())


# --- guesses --------------------------------------------------------------------------------------


def test_a_lookup_guesses_what_followed_the_last_occurrence():
    lookup = Lookup(5, "cpu", lengths=(3, 1))
    assert lookup([1, 2, 3], 4)[0] == []
    assert lookup([1, 2, 3, 4, 1, 2, 3], 9)[0] == [4, 1, 2, 3]
    assert lookup([1, 2, 3, 4, 1, 2, 3, 0, 2], 2)[0] == [3, 0]  # the last 2 was followed by these
    guesses, q = lookup([1, 2, 3, 4, 1, 2, 3, 0, 2, 3], 1)
    assert guesses == [0]
    assert q.tolist() == [[1, 0, 0, 0, 0]]
