"""Generation: the tokens of the lecture's own loop, whatever is remembered; draws; text."""

import functools
import itertools
import os
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels
from gpt.generation.generate import (
    READ_EVERY,
    TextStream,
    draw,
    generate,
    stream_text,
    window_start,
)
from gpt.models import lecture, packed, reference
from gpt.models.layouts import packed_from_lecture
from tests.gpt.configs import CONFIGS, draw_tokens, randomise
from tests.numerics import DEVICE, DRAWING_RULES, assert_drawn_from, restricted_softmax

VOCABULARY, BLOCK = 65, 16
interpreted_for_minutes = pytest.mark.skipif(
    DEVICE == "cpu" and "SLOW" not in os.environ,
    reason="needs a CUDA card, or SLOW=1 and some minutes in the interpreter",
)
LENGTHS = (1, 3, 20, 16, 7, 2, 15, 17)  # of prompts: within the block, full, longer


@torch.no_grad()
def build(name, table, **sizes):
    """A model whose likeliest tokens go on changing: no bias speaks louder than the context."""
    sizes = {"block_size": BLOCK, "vocab_size": VOCABULARY} | sizes
    config = replace(CONFIGS[name], **sizes)
    truth = randomise(reference.GPT(config))
    for key, weight in truth.named_parameters():
        if key.endswith("bias"):
            weight.mul_(0.1)
        elif "token_embedding" in key or "lm_head" in key:
            weight.mul_(3)
        elif "ln" in key:
            weight.fill_(1)
    if table == "reference":
        return truth.to(DEVICE)
    packed_model = packed.GPT(config, kernels.load(table, DEVICE))
    packed_model.load_state_dict(packed_from_lecture(truth.state_dict(), config))
    return packed_model.to(DEVICE)


@torch.no_grad()
def lecture_loop(truth, tokens, new, slide=1):
    """The lecture's generate with the likeliest token; the crop moves when it is longer than T."""
    start, made = 0, []
    for _ in range(new):
        while tokens.shape[1] - start > truth.config.block_size:
            start += slide
        logits, _ = truth(tokens[:, start:])
        first, second = logits[:, -1].topk(2).values.unbind(-1)
        assert (first - second).min() > 1e-4  # a tie would go either way
        made.append(logits[:, -1].argmax(-1))
        tokens = torch.cat((tokens, made[-1][:, None]), dim=1)
    return torch.stack(made)  # (new, B)


def greedy(speaker, prompts, new, **options):
    return torch.stack(list(generate(speaker, prompts, new, temperature=0.0, **options)))


def prompts_of(lengths, vocab_size=VOCABULARY):
    return [draw_tokens(1, n, seed=n, vocab_size=vocab_size)[0].to(DEVICE) for n in lengths]


MANY = 400  # 25 blocks


@functools.cache
def many_tokens(name, rows):
    """Prompts, and what the lecture makes of them."""
    prompts = draw_tokens(rows, 5, vocab_size=VOCABULARY).to(DEVICE)
    return prompts, lecture_loop(build(name, "reference"), prompts, MANY).cpu()


@pytest.mark.parametrize(
    ("name", "table", "rows"),
    [
        ("relu_squared", "reference", 1),
        ("relu_squared", "reference", 8),
        ("relu_squared", "torch", 1),
        ("relu_squared", "torch", 8),
        ("rope", "torch", 8),
        pytest.param("relu_squared", "triton", 1, marks=interpreted_for_minutes),
        pytest.param("relu_squared", "triton", 8, marks=interpreted_for_minutes),
        pytest.param("rope", "triton", 8, marks=interpreted_for_minutes),
    ],
)
def test_many_tokens_are_those_of_the_lecture(name, table, rows):
    prompts, expected = many_tokens(name, rows)
    assert torch.equal(greedy(build(name, table), prompts, MANY), expected)
    assert min(len(row.unique()) for row in expected.T) > 20  # they have something to say


@functools.cache
def alone(name, slide):
    """What the lecture makes of each prompt by itself."""
    truth = build(name, "reference")
    return [lecture_loop(truth, one[None], 3 * BLOCK, slide)[:, 0] for one in prompts_of(LENGTHS)]


@pytest.mark.parametrize("slide", [1, 5, BLOCK])
@pytest.mark.parametrize("name", ["qkv bias", "modern", "grouped", "grouped window"])
@pytest.mark.parametrize("table", ["reference", "torch"])
def test_prompts_of_different_lengths_speak_as_they_do_alone(name, table, slide):
    prompts = prompts_of(LENGTHS)
    made = greedy(build(name, table), prompts, 3 * BLOCK, slide=slide)
    for row, expected in enumerate(alone(name, slide)):
        assert torch.equal(made[:, row], expected.cpu()), f"prompt of {len(prompts[row])} tokens"


@pytest.mark.parametrize(
    ("name", "lengths", "n_layer", "slide"),
    [
        ("relu_squared", (2,), 2, 1),
        ("modern", (3,), 2, 3),
        ("qkv bias", LENGTHS, 1, 2),
        ("grouped window", (3,), 1, 2),
    ],
)
def test_the_kernels_say_the_same(name, lengths, n_layer, slide):
    """Few tokens of small models, since they are interpreted: still, across the window's edge."""
    sizes = {"block_size": 4, "vocab_size": 17, "n_embd": 16, "n_layer": n_layer}
    prompts, truth = prompts_of(lengths, vocab_size=17), build(name, "reference", **sizes)
    new = 8 if len(lengths) == 1 else 4
    made = greedy(build(name, "triton", **sizes), prompts, new, slide=slide)
    for row, prompt in enumerate(prompts):
        alone = lecture_loop(truth, prompt[None], new, slide)[:, 0]
        assert torch.equal(made[:, row], alone.cpu()), f"the prompt of {len(prompt)} tokens"


@pytest.mark.parametrize("step", ["bigram", "average-matrix", "one-head", "layer-norm"])
def test_the_models_of_the_road_speak(step):
    config = replace(CONFIGS["lecture"], vocab_size=VOCABULARY)
    speaker = lecture.STEPS[step](config)
    torch.manual_seed(0)
    speaker.initialise()
    prompts = draw_tokens(2, 3, vocab_size=VOCABULARY)
    assert torch.equal(greedy(speaker, prompts, 20), lecture_loop(speaker, prompts, 20))


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_the_context_ends_in_the_text_and_moves_by_slides(length, block_size, data):
    slide = data.draw(st.integers(1, block_size))
    start = window_start(length, block_size, slide)
    assert 1 <= length - start <= block_size
    assert start % slide == 0
    assert start == 0 or length - start > block_size - slide  # no further than it must
    if slide == 1:
        assert start == max(0, length - block_size)  # the lecture's crop


@pytest.mark.parametrize("table", ["reference", "torch"])
def test_only_tokens_of_the_vocabulary_are_drawn(table):
    speaker = build("lecture", table)
    prompts = draw_tokens(4, 2).to(DEVICE)
    made = generate(speaker, prompts, 50, temperature=5.0, vocab_size=3)
    assert torch.stack(list(made)).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("table", ["reference", "torch"])
def test_a_generator_decides_every_draw(table):
    speaker, prompt = build("lecture", table), draw_tokens(2, 2).to(DEVICE)

    def made(seed):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        return torch.stack(
            list(generate(speaker, prompt, 20, temperature=3.0, generator=generator))
        )

    first = made(1)
    torch.rand(1)  # another user of the default generator
    assert torch.equal(made(1), first)
    assert not torch.equal(made(2), first)
    assert not torch.equal(first[:, 0], first[:, 1])  # rows draw apart


def test_tokens_come_one_by_one():
    made = generate(build("lecture", "torch"), draw_tokens(1, 2).to(DEVICE), 10**9 // 10**5)
    assert len(list(itertools.islice(made, 3))) == 3


def test_what_cannot_be_continued_is_refused():
    speaker = build("lecture", "torch")
    with pytest.raises(ValueError, match="a prompt is empty"):
        next(generate(speaker, [torch.tensor([1]), torch.tensor([], dtype=torch.int64)], 1))
    for slide in (0, BLOCK + 1):
        with pytest.raises(ValueError, match="slide is"):
            next(generate(speaker, draw_tokens(1, 1), 1, slide=slide))
    assert list(generate(speaker, draw_tokens(1, 1), 0)) == []


# --- on a card: one graph for a token -------------------------------------------------------------

needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


@needs_card
@pytest.mark.parametrize("table", ["torch", "triton"])
@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_a_graph_says_what_its_operations_say(table, temperature, monkeypatch):
    speaker, prompts = build("modern", table), prompts_of((3, 14))

    def made():
        generator = torch.Generator(DEVICE).manual_seed(1)
        options = {"temperature": temperature, "top_k": 9, "generator": generator, "slide": 5}
        return torch.stack(list(generate(speaker, prompts, 2 * BLOCK, **options)))

    by_graph = made()
    monkeypatch.setattr("gpt.generation.generate.captured", called_once)
    assert torch.equal(by_graph, made())


def called_once(advance):
    """What `captured` does, without the graph."""
    advance()
    return advance


@needs_card
@pytest.mark.parametrize("table", ["torch", "triton"])
def test_a_card_is_waited_for_once_in_eight_tokens(table):
    made = generate(build("lecture", table, block_size=64), prompts_of((3, 14)), 40)
    next(made)  # for which it was captured and filled
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


# --- draws of the uncached path; those of the tables are in tests/kernels/decoding/test_sample_token.py ------------

LOGITS = torch.tensor([1.0, 3.0, -1.0, 2.0, 2.0, -float("inf"), 0.0, 0.5])


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), DRAWING_RULES)
def test_draws_have_the_distribution(temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(0)
    drawn = draw(LOGITS.repeat(20_000, 1), temperature, top_k, top_p, generator)
    assert_drawn_from(drawn, restricted_softmax(LOGITS, temperature, top_k, top_p))


def test_temperature_zero_is_the_likeliest():
    assert draw(LOGITS[None], 0.0, 0, 1.0).tolist() == [1]


# --- text -----------------------------------------------------------------------------------------


def spoken(text, stop):
    """What is said of `text`, one character a token, and whether the stop was found."""
    stream = TextStream(lambda token: text[token], stop)
    said = ""
    for token in range(len(text)):
        said += stream(token)
        if stream.stopped:
            return said, True
    return said + stream.rest(), False


@given(st.text("ab\n", max_size=12), st.text("ab\n", max_size=4))
def test_text_ends_before_the_first_stop(text, stop):
    before, found, _ = text.partition(stop) if stop else (text, "", "")
    assert spoken(text, stop) == (before, bool(found))


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_begin_the_stop(text, stop):
    stream = TextStream(lambda token: text[token], stop)
    said = ""
    for token in range(len(text)):
        said += stream(token)
        if stream.stopped:
            break
        held = text[len(said) : token + 1]
        assert stop.startswith(held)


def test_text_of_the_first_row_is_streamed():
    tokens = (torch.tensor([token, 9]) for token in (2, 0, 1))
    assert "".join(stream_text(tokens, lambda token: "abc"[token])) == "cab"
