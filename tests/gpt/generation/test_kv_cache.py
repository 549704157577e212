"""Token by token over a cache is the whole context at once: rows of any lengths, begun anew."""

from dataclasses import replace

import pytest
import torch

import kernels
from gpt.generation.kv_cache import CachedGPT
from gpt.models import packed, reference
from gpt.models.layouts import packed_from_lecture
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, randomise
from tests.numerics import DEVICE

DTYPE, TOLERANCE = (torch.float64, 1e-12) if DEVICE == "cpu" else (torch.float32, 1e-5)
SOME = ("lecture", "gpt2", "modern")  # of the configs, for what does not depend on the switches


def truth_and_cached(name, table, rows):
    """The reference in fp64, and a cache over the packed_model model with its weights."""
    config = CONFIGS[name]
    truth = randomise(reference.GPT(config)).double()
    packed_model = packed.GPT(config, kernels.load(table, DEVICE)).eval()
    packed_model.load_state_dict(packed_from_lecture(truth.state_dict(), config))
    return truth, CachedGPT(packed_model.to(DEVICE, DTYPE), rows)


def fill(cached, rows, tokens, lengths):
    cached.fill(rows, tokens.to(DEVICE), torch.tensor(lengths, device=DEVICE))


def assert_follows(cached, truth, rows):
    """One step of each row gives the logits of its whole text in `rows`, the last token new."""
    step = cached.step(torch.stack([row[-1] for row in rows]).to(DEVICE)).cpu().double()
    for logits, row in zip(step, rows, strict=True):
        exact = truth(row[None])[0][0, -1]
        assert (logits - exact).abs().max() <= TOLERANCE * exact.abs().max()


@pytest.mark.parametrize(
    ("name", "table"),
    [(name, "torch") for name in CONFIGS]
    + [(name, "triton") for name in (*SOME, "grouped", "grouped window")],
)
@torch.no_grad()
def test_steps_have_the_logits_of_the_whole_context(name, table):
    truth, cached = truth_and_cached(name, table, 2)
    tokens = draw_tokens(2, LECTURE.block_size)
    fill(cached, [0, 1], tokens[:, :3], [3, 1])
    # the kernels are interpreted: two steps, of which the second sees what the first has kept
    for new in range(1, LECTURE.block_size - 2 if table == "torch" else 3):
        assert_follows(cached, truth, [tokens[0, : 3 + new], tokens[1, : 1 + new]])


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_a_row_begins_anew_beside_one_that_goes_on(name):
    truth, cached = truth_and_cached(name, "torch", 3)
    tokens = draw_tokens(3, LECTURE.block_size)
    fill(cached, [2, 0], tokens[[2, 0], :5], [5, 2])  # row 1 begins with nothing
    assert_follows(cached, truth, [tokens[0, :3], tokens[1, :1], tokens[2, :6]])
    other = draw_tokens(2, 7, seed=1)
    fill(cached, [0, 2], other, [7, 0])
    begun = [other[0], tokens[1, :1], tokens[2, :0]]
    assert_follows(cached, truth, [torch.cat((row, tokens[1, 7:])) for row in begun])


@torch.no_grad()
def test_the_last_place_of_the_block_is_used():
    truth, cached = truth_and_cached("lecture", "torch", 1)
    tokens = draw_tokens(1, LECTURE.block_size)
    fill(cached, [0], tokens[:, :-1], [LECTURE.block_size - 1])
    assert_follows(cached, truth, [tokens[0]])


def test_the_cache_has_the_heads_of_keys():
    config = replace(LECTURE, n_head=4, n_kv_head=2)
    cached = CachedGPT(packed.GPT(config, kernels.load("torch")), 3)
    assert cached.cache.shape == (2, 2, 3, 2, LECTURE.block_size, 8)  # half of 4 heads


@torch.no_grad()
def test_what_lies_beyond_the_position_is_not_seen():
    """There an earlier text was kept, or the filling-up of a shorter context."""
    truth, cached = truth_and_cached("modern", "torch", 2)
    cached.cache.fill_(1e30)
    tokens = draw_tokens(2, 6)
    fill(cached, [0, 1], tokens[:, :5], [5, 2])
    assert_follows(cached, truth, [tokens[0], tokens[1, :3]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_cache_has_the_dtype_of_the_model(dtype):
    config = replace(LECTURE, n_layer=1)
    packed_model = packed.GPT(config, kernels.load("torch")).to(dtype)
    cached = CachedGPT(packed_model, 1)
    assert cached.cache.dtype == dtype
    assert cached.step(torch.zeros(1, dtype=torch.int64)).dtype == dtype
