"""The timing of generation: the decoders and the rows."""

import json
import time
from dataclasses import replace

import pytest
import torch

from bench import results
from bench.recipes import decode
from bench.recipes.decode import Decoder
from gpt.config.model import ModelConfig
from tests.bench.peers import LECTURE, NANOGPT

CPU = torch.device("cpu")
SMALL = ModelConfig(vocab_size=65, block_size=8, n_layer=1, n_head=2, n_embd=16)


@pytest.mark.parametrize(("given", "missing"), [("lecture", "nanogpt"), ("nanogpt", "lecture")])
def test_a_row_for_each_decoder_is_written(given, missing, monkeypatch, tmp_path, capsys):
    peers = {"lecture": tmp_path / "gpt.py", "nanogpt": tmp_path}
    (tmp_path / "gpt.py").write_text(LECTURE)
    (tmp_path / "model.py").write_text(NANOGPT)
    monkeypatch.setattr(decode, "sizes", lambda model: SMALL)
    for name, value in {"NEW": {"lecture": 12}, "SLIDE": 4, "COPIED": 2**10}.items():
        monkeypatch.setattr(decode, name, value)
    monkeypatch.setattr(decode, "copy_rate", lambda timer, elements: 1e9)
    path, options = tmp_path / "decode.json", ["--model=lecture", "--batch=3", "--device=cpu"]
    assert decode.main([*options, f"--{given}={peers[given]}", f"--json={path}"]) == 0
    printed, result = capsys.readouterr().out, results.read(path)
    assert f"{missing}, float32: ValueError: its file is missing; give --{missing}" in printed
    assert result["table"] == "decode"
    expected = [one for one in decode.decoders("lecture", CPU) if one.implementation != missing]
    for row, decoder in zip(result["rows"], expected, strict=True):
        assert json.dumps(row) in printed
        found = (row["implementation"], row["tokens per row"], row["runs"])
        assert found == (str(decoder), 12, decode.RUNS)
        read = decode.bytes_per_token(SMALL, 3, decoder, 12)
        assert row["memory limit, tokens/s"] == pytest.approx(3 * 1e9 / read, rel=1e-2)
    speedup = "1.0" if given == "lecture" else ""  # over the model's own implementation
    assert result["rows"][0]["speedup"] == speedup


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
