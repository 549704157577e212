"""The timing of generation: the decoders and the rows."""

import time
from dataclasses import replace
from unittest import mock

import pytest
import torch

from bench import checkouts, results
from bench.recipes import decode
from bench.recipes.decode import Decoder, Peers
from gpt.config.model import ModelConfig
from gpt.generation.generate import READ_EVERY

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = ModelConfig(vocab_size=65, block_size=8, n_layer=1, n_head=2, n_embd=16)

LECTURE = """
import torch
import torch.nn as nn
block_size = 4 # what is the maximum context length for predictions?
text = open('input.txt').read()
vocab_size = len(sorted(list(set(text))))
class GPTLanguageModel(nn.Module):
    def generate(self, idx, max_new_tokens):
        assert not self.training and not torch.is_grad_enabled()
        assert (vocab_size, block_size, device) == (65, 4, "cpu")
        return torch.cat((idx, torch.zeros(len(idx), max_new_tokens)), dim=1)
model = GPTLanguageModel().cuda()
raise SystemExit("it trains")
"""

NANOGPT = """
import torch
from types import SimpleNamespace as GPTConfig
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
    def generate(self, idx, max_new_tokens):
        assert not self.training
        new = torch.full((len(idx), max_new_tokens), self.config.n_embd)
        return torch.cat((idx, new), dim=1)
"""


@pytest.fixture
def peers(tmp_path):
    (tmp_path / "gpt.py").write_text(LECTURE)
    (tmp_path / "model.py").write_text(NANOGPT)
    return Peers(tmp_path / "gpt.py", tmp_path)


# --- decoders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoder",
    [
        Decoder("lecture"),
        Decoder("nanogpt", "bfloat16"),
        Decoder("reference"),
        Decoder("torch", slide=4),
        Decoder("torch", "bfloat16", int8=True),
    ],
    ids=str,
)
def test_every_decoder_reports_each_token(decoder, peers):
    reported = []
    generate = decode.make_generate(SMALL, decoder, CPU, peers)
    generate(torch.zeros(2, 1, dtype=torch.int64), 11, reported.append)
    assert reported == [1] * 11


def test_peers_synchronise_on_a_gpu_as_often_as_ours(monkeypatch):
    reported, waits, tokens, model = [], [], mock.Mock(device=CUDA), mock.Mock()
    model.generate.return_value = tokens
    monkeypatch.setattr(decode.hardware, "synchronise", waits.append)
    decode.in_pieces(model)(tokens, 2 + READ_EVERY, reported.append)
    assert reported == [1, READ_EVERY, 1]
    assert waits == [CUDA] * 3


def test_a_file_that_is_not_the_peer_s_is_an_error(tmp_path):
    (tmp_path / "gpt.py").write_text("n_embd = 384\n")
    with pytest.raises(ValueError, match="no GPTLanguageModel"):
        checkouts.lecture(tmp_path / "gpt.py", 65, CPU)
    with pytest.raises(ValueError, match=r"no\.py"):
        checkouts.lecture(tmp_path / "no.py", 65, CPU)
    with pytest.raises(ValueError, match=r"it has no model\.py"):
        checkouts.nanogpt(tmp_path)
    with pytest.raises(ValueError, match="its file is missing; give --nanogpt"):
        decode.make_generate(SMALL, Decoder("nanogpt"), CPU, Peers())


# --- rows -----------------------------------------------------------------------------------------


def test_a_row_has_the_rate_and_the_limit(monkeypatch):
    monkeypatch.setattr(decode, "sizes", lambda model: SMALL)
    monkeypatch.setattr(decode, "NEW", {"lecture": 12})
    decoder = Decoder("torch", slide=4)
    row = decode.measure("lecture", 3, decoder, CPU, 30.0, Peers(), copy=1e9)
    assert list(row.values())[:5] == ["lecture", 3, "torch, float32, slide 4", 12, decode.RUNS]
    read = decode.bytes_per_token(SMALL, 3, decoder, 12)
    assert row["memory limit, tokens/s"] == pytest.approx(3 * 1e9 / read, rel=1e-2)


def test_the_rate_excludes_the_first_token_and_a_slow_decoder_is_stopped():
    def generate(tokens, new, on_tokens):
        time.sleep(0.2)
        on_tokens(1)
        for _ in range(new - 1):
            time.sleep(0.01)
            on_tokens(1)

    run = decode.timed_run(generate, None, 10_000, 0.3)
    assert run["first"] >= 0.2
    assert 2 <= run["made"] <= 11
    assert run["seconds"] >= 0.01 * (run["made"] - 1)
    assert decode.timed_run(generate, None, 5, 0.0)["made"] == 2  # one would have no rate


def test_the_limit_counts_weights_and_cache():
    config, decoder = decode.sizes("gpt2"), Decoder("triton", "bfloat16")
    read = decode.bytes_per_token(replace(config, block_size=1), 1, decoder, 1)
    assert 4.3e12 / read == pytest.approx(17_300, rel=0.01)  # GPT-2 on an H200

    def values(tokens, **options):  # of one layer, two rows, and a head without tokens
        changed = replace(config, n_layer=1, vocab_size=0, **options)
        return decode.bytes_per_token(changed, 2, Decoder("triton"), tokens) / 4 / config.n_embd

    C = config.n_embd
    assert values(3, n_kv_head=3) == (10 + 2 / 4) * C + 2 * 2 * 2 / 4  # mean context 2
    assert values(3, window=1) == 12 * C + 2 * 1 * 2
    config, decoder = replace(config, block_size=1), decoder._replace(int8=True)
    assert decode.bytes_per_token(config, 1, decoder, 1) == pytest.approx(read / 2, rel=1e-3)


@pytest.fixture
def fake(monkeypatch):
    """Decoders with given rates, some of which fail."""

    def measure(model, batch, decoder, device, seconds, peers, copy):
        if (name := decoder.implementation) in ("reference", {"gpt2": "nanogpt"}.get(model)):
            raise RuntimeError("out of memory")
        rate = {"lecture": 4.0, "nanogpt": 20.0}.get(name, 50.0)
        row = {"model": model, "batch": batch, "implementation": str(decoder), "tokens/s": rate}
        return row | {"runs": 1, "tokens per row": 3, "memory limit, tokens/s": 500}

    monkeypatch.setattr(decode, "measure", measure)
    monkeypatch.setattr(decode, "copy_rate", lambda timer, elements: 1e12)


def test_the_speedup_is_over_the_model_s_own_implementation(fake):
    rows, failures = decode.compare("lecture", 1, CPU, 1.0, Peers())
    found = [(row["implementation"].partition(",")[0], row["speedup"]) for row in rows]
    assert found == [("lecture", "1.0"), ("nanogpt", "5.0"), *[("torch", "12.5")] * 4]
    assert failures == ["lecture, batch 1, reference, float32: RuntimeError: out of memory"]
    rows, _ = decode.compare("gpt2", 1, CPU, 1.0, Peers())  # whose own implementation fails
    assert [row["speedup"] for row in rows] == ["", "", ""]


def test_the_command_writes_its_rows(fake, tmp_path, capsys):
    path = tmp_path / "decode.json"
    assert decode.main(["--model=lecture", "--batch=2", "--device=cpu", f"--json={path}"]) == 0
    printed, result = capsys.readouterr().out, results.read(path)
    assert result["table"] == "decode"
    assert all(decode.describe(row) in printed for row in result["rows"])
