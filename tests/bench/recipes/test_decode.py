"""The timing of generation: its rate and its limit."""

import time
from dataclasses import replace

import pytest

from bench.recipes import decode
from bench.recipes.decode import Decoder


def test_the_rate_excludes_the_first_token_and_a_slow_decoder_is_stopped():
    def generate(tokens, new):
        for number in range(new):
            time.sleep(0.01 if number else 0.2)
            yield 1

    run = decode.timed_run(generate, None, 10_000, 0.3)
    assert run["first"] >= 0.2
    assert 2 <= run["made"] <= 11
    assert run["seconds"] >= 0.01 * (run["made"] - 1)
    assert decode.timed_run(generate, None, 5, 0.0)["made"] == 2  # one would have no rate


def test_the_limit_counts_weights_and_cache():
    config, decoder = decode.sizes("gpt2"), Decoder("triton", "bfloat16")
    read = decode.bytes_per_token(replace(config, block_size=1), 1, decoder, 1)
    assert 4.3e12 / read == pytest.approx(17_300, rel=0.01)  # GPT-2 on an H200
    C, config = config.n_embd, replace(config, n_layer=1, vocab_size=0)

    def values(tokens, **options):  # of one layer, two rows, and a head without tokens
        read = decode.bytes_per_token(replace(config, **options), 2, Decoder("triton"), tokens)
        return read / 4 / C

    assert values(3, n_kv_head=3) == (10 + 2 / 4) * C + 2 * 2 * 2 / 4  # mean context 2
    assert values(3, window=1) == 12 * C + 2 * 1 * 2
