"""Guessing ahead changes nothing but the time: greedy text is the same, draws have their odds."""

from dataclasses import replace

import pytest
import torch

import kernels
from gpt.generation.generate import distribution, generate
from gpt.generation.kv_cache import CachedGPT
from gpt.generation.speculation import AHEAD, Draft, Follower, Lookup, judge, rule_of, speculate
from gpt.models import packed
from tests.gpt.configs import CONFIGS, draw_tokens
from tests.gpt.generation.test_generate import BLOCK, VOCABULARY, build
from tests.numerics import DEVICE, assert_drawn_from

SAMPLE = 8_000


def text_of(speaker, prompt, new, guess, *, temperature=0.0, slide=BLOCK // 2, seed=0, **options):
    rule = rule_of(speaker.config.vocab_size, temperature, **{"top_k": 0, "top_p": 1.0} | options)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    made = speculate(speaker, prompt, new, guess, rule, slide=slide, generator=generator)
    return torch.stack(list(made))[:, 0].tolist()


def nothing(text, most):
    return [], None


class Oracle:
    """Guesses right, but for every third token."""

    def __init__(self, text):
        self.text = text

    def __call__(self, text, most):
        guesses = self.text[len(text) : len(text) + most]
        guesses = [(g + (len(text) + i) % 3 // 2) % VOCABULARY for i, g in enumerate(guesses)]
        return guesses, torch.eye(VOCABULARY, device=DEVICE)[guesses]


# --- the model's part -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_several_tokens_at_once_are_as_many_steps(name):
    speaker = build(name, "torch").double()
    tokens = draw_tokens(1, 9, vocab_size=VOCABULARY)[0].to(DEVICE)
    one, other = CachedGPT(speaker, 1), CachedGPT(speaker, 1)
    for cached in (one, other):
        cached.fill([0], tokens[None, :2], 2)
    steps = torch.cat([one.step(token[None]) for token in tokens[2:]])
    at_once = torch.cat([other.extend(tokens[2:6]), other.extend(tokens[6:])])
    assert (at_once - steps).abs().max() <= 1e-12 * steps.abs().max()
    assert other.position.tolist() == one.position.tolist() == [9]
    assert torch.allclose(one.cache, other.cache, rtol=0, atol=1e-11)


@torch.no_grad()
def test_a_follower_goes_where_the_text_goes():
    """On, back, to another text, and over the window's edge: the logits are those of the crop."""
    speaker = build("qkv bias", "torch").double()
    follower = Follower(speaker, slide=5)
    text = draw_tokens(1, 60, vocab_size=VOCABULARY)[0].tolist()
    texts = [text[:1], text[:4], text[:3] + text[9:13], text[20:23], text[:40], text[:44]]
    for one, last in zip(texts, (1, 3, 2, 1, 2, 1), strict=True):
        start = follower.begin(len(one))
        crop = torch.tensor(one[start:], device=DEVICE)
        exact = speaker(crop[None])[0][0, -last:]
        found = follower.logits(one, last)
        assert (found - exact).abs().max() <= 1e-11 * exact.abs().max()
    assert follower.begin(44 + follower.room(44)) == follower.begin(44)
    assert follower.begin(45 + follower.room(44)) > follower.begin(44)
    assert Follower(speaker, slide=1).room(BLOCK + 3) == 0


@pytest.mark.parametrize("slide", [1, 5, BLOCK])
@pytest.mark.parametrize("name", ["relu_squared", "modern", "grouped window"])
def test_greedy_text_is_the_same_whatever_is_guessed(name, slide):
    speaker, prompt = build(name, "torch"), draw_tokens(1, 7, vocab_size=VOCABULARY)[0].to(DEVICE)
    made = generate(speaker, prompt[None], 5 * BLOCK, temperature=0.0, slide=slide)
    expected = torch.stack(list(made))[:, 0].tolist()
    rule = rule_of(VOCABULARY, 0.0, 0, 1.0)
    for guess in (
        nothing,
        Oracle(prompt.tolist() + expected),
        Draft(build("gelu", "torch", n_layer=1, block_size=6), rule),
        Draft(speaker, rule),
        Lookup(VOCABULARY, DEVICE, lengths=(2, 1)),
    ):
        assert text_of(speaker, prompt, 5 * BLOCK, guess, slide=slide) == expected


def test_right_guesses_spare_passes():
    speaker, prompt = build("modern", "torch"), draw_tokens(1, 4, vocab_size=VOCABULARY)[0]
    rounds = []

    def counted(text, most):
        rounds.append(most)
        return draft(text, most)

    draft = Draft(speaker, rule_of(VOCABULARY, 0.0, 0, 1.0))
    assert len(text_of(speaker, prompt.to(DEVICE), 12, counted, slide=BLOCK)) == 12
    assert rounds == [AHEAD, AHEAD, 1]  # five, five, and the last two


# --- the odds -------------------------------------------------------------------------------------

P = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.1, 0.1, 0.1, 0.7], [0.25, 0.25, 0.5, 0.0]])
Q = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.4, 0.3, 0.3, 0.0]])


@pytest.mark.parametrize("certain", [False, True], ids=["drawn", "certain"])
def test_every_token_of_a_round_has_the_models_odds(certain):
    """P here depends on the place alone, so each place's tokens are drawn from its row."""
    generator = torch.Generator().manual_seed(0)
    places = [[], [], []]
    q = torch.eye(4)[[2, 0]] if certain else Q
    for _ in range(SAMPLE):
        guesses = torch.multinomial(q, 1, generator=generator)[:, 0].tolist()
        for place, token in zip(places, judge(guesses, q, P, generator), strict=False):
            place.append(token)
    for place, p in zip(places, P, strict=True):
        assert_drawn_from(torch.tensor(place), p)
    assert len(places[0]) == SAMPLE
    assert SAMPLE > len(places[1]) > len(places[2]) > 0


def test_a_guess_from_the_models_own_odds_is_always_kept():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(3, 50, generator=generator).softmax(-1)
    for _ in range(200):
        guesses = torch.multinomial(p[:2], 1, generator=generator)[:, 0].tolist()
        assert judge(guesses, p[:2], p, generator)[:2] == guesses


@torch.no_grad()
def markov(seed):
    """A model whose next token depends on the last one alone."""
    config = replace(CONFIGS["lecture"], vocab_size=4, position="rope", n_layer=1)
    torch.manual_seed(seed)
    speaker = packed.GPT(config, kernels.load("torch")).to(DEVICE).eval()
    speaker.token_embedding_table.weight.normal_()
    speaker.lm_head.weight.normal_(std=0.1)
    for block in speaker.blocks:
        block.sa.proj.weight.zero_()
        block.ffwd.down.weight.zero_()
    return speaker


@pytest.mark.parametrize("kind", ["draft", "lookup"])
def test_a_text_has_the_odds_of_the_model_alone(kind):
    speaker, options = markov(0), {"temperature": 0.8, "top_k": 3}
    rule = rule_of(4, top_p=1.0, **options)
    generator = torch.Generator(DEVICE).manual_seed(1)
    draft = Draft(markov(1), rule, generator)
    guess = draft if kind == "draft" else Lookup(4, DEVICE, lengths=(2,))
    prompt = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    text = torch.tensor([0, *text_of(speaker, prompt, 2000, guess, slide=8, **options)])
    exact = distribution(
        speaker(torch.arange(4, device=DEVICE)[:, None])[0][:, 0].detach(), top_p=1.0, **options
    )
    for token in range(4):
        assert_drawn_from(text[1:][text[:-1] == token], exact[token].cpu())


# --- guesses --------------------------------------------------------------------------------------


def test_a_lookup_goes_on_as_the_text_last_did():
    lookup = Lookup(5, "cpu", lengths=(3, 1))
    assert lookup([1, 2, 3], 4)[0] == []
    assert lookup([1, 2, 3, 4, 1, 2, 3], 9)[0] == [4, 1, 2, 3]
    assert lookup([1, 2, 3, 4, 1, 2, 3, 0, 2], 2)[0] == [3, 0]  # the last 2 was followed by these
    guesses, q = lookup([1, 2, 3, 4, 1, 2, 3, 0, 2, 3], 1)
    assert guesses == [0]
    assert q.tolist() == [[1, 0, 0, 0, 0]]
