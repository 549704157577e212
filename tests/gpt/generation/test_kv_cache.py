"""Decoding with a cache has the logits of the whole context."""

import pytest
import torch

from gpt.generation.kv_cache import CachedGPT
from gpt.models import reference
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens, packed_from, randomise
from tests.operands import DEVICE

DTYPE, TOLERANCE = (torch.float64, 1e-12) if DEVICE == "cpu" else (torch.float32, 1e-5)


@pytest.mark.parametrize(
    ("name", "table"),
    [(name, "torch") for name in CONFIGS if name != "documents"]  # decoding is of one document
    + [(name, "triton") for name in ("gpt2", "modern", "grouped window")],
)
@torch.no_grad()
def test_decoding_has_the_logits_of_the_whole_context(name, table):
    model = randomise(reference.GPT(CONFIGS[name])).double()
    cached = CachedGPT(packed_from(model, table, DTYPE).eval(), 2)
    config, tokens = model.config, draw_tokens(2, LECTURE.block_size)
    entry = (config.head_counts[1], config.block_size, config.n_embd // config.n_head)
    assert cached.cache.shape == (config.n_layer, 2, 2, *entry)  # keys and values, two rows
    assert cached.cache.dtype == DTYPE
    cached.cache.fill_(1e30)  # what an earlier text leaves beyond the position is not seen
    cached.prefill(tokens[:, :3].to(DEVICE))
    # the kernels are interpreted: two tokens, of which the second sees the first in the cache
    for end in range(4, 1 + LECTURE.block_size if table == "torch" else 6):
        logits = cached.decode_one_token(tokens[:, end - 1].to(DEVICE)).cpu().double()
        exact = model(tokens[:, :end])[0][:, -1]
        assert (logits - exact).abs().max() <= TOLERANCE * exact.abs().max()
