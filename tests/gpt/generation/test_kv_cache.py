"""Decoding with a cache has the logits of the whole context, for rows of any lengths."""

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
    + [(name, "triton") for name in ("lecture", "gpt2", "modern", "grouped", "grouped window")],
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
    cached.prefill([0, 1], tokens[:, :3].to(DEVICE), torch.tensor([3, 1], device=DEVICE))
    # the kernels are interpreted: two tokens, of which the second sees the first in the cache
    for new in range(1, LECTURE.block_size - 2 if table == "torch" else 3):
        rows = [tokens[0, : 3 + new], tokens[1, : 1 + new]]
        step = cached.decode_one_token(torch.stack([row[-1] for row in rows]).to(DEVICE))
        for logits, row in zip(step.cpu().double(), rows, strict=True):
            exact = model(row[None])[0][0, -1]
            assert (logits - exact).abs().max() <= TOLERANCE * exact.abs().max()
