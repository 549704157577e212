"""The timing of generation: what a row says, who is asked and how, and what is kept of it."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import checkouts
from bench import results_file as figures
from bench.prove.stages import decode as stage
from bench.prove.stages import no_time
from bench.recipes import decode, decoders, int8
from bench.recipes.decoders import Peers, Way
from bench.report import __main__ as report
from bench.report import tables
from gpt.config.model import ModelConfig
from gpt.generation.generate import READ_EVERY

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = ModelConfig(vocab_size=65, block_size=8, n_layer=1, n_head=2, n_embd=16)

LECTURE = """
import torch
import torch.nn as nn
block_size = 4 # what is the maximum context length for predictions?
device = 'cuda' if torch.cuda.is_available() else 'cpu'
torch.manual_seed(1337)
with open('input.txt', 'r', encoding='utf-8') as f:
    text = f.read()
vocab_size = len(sorted(list(set(text))))
class GPTLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(vocab_size, block_size)
        self.dropout = nn.Dropout(0.5)
    def generate(self, idx, max_new_tokens):
        assert not self.training and not torch.is_grad_enabled()
        for _ in range(max_new_tokens):
            idx = torch.cat((idx, self.table(idx[:, -1:]).argmax(-1)), dim=1)
        return idx
model = GPTLanguageModel().cuda()
raise SystemExit("it trains")
"""

NANOGPT = """
from dataclasses import dataclass
import torch
@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
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


@pytest.fixture
def small(monkeypatch):
    for module in (decode, decoders):
        monkeypatch.setattr(module, "sizes", lambda model: SMALL)
    monkeypatch.setattr(decode, "NEW", {"lecture": 12, "gpt2": 5})
    monkeypatch.setattr(decode, "COPIED", 2**12)
    monkeypatch.setattr(decoders, "SLIDE", 4)


# --- speakers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        Way("lecture"),
        Way("nanogpt"),
        Way("nanogpt", "bfloat16"),
        Way("reference"),
        Way("torch", slide=4),
        Way("torch", "bfloat16", 4),
        Way("torch", "bfloat16", int8=True),
    ],
    ids=str,
)
def test_every_speaker_tells_of_each_token_that_it_makes(way, peers):
    told = []
    speak = decoders.speaker(SMALL, way, CPU, peers)
    speak(torch.zeros(2, 1, dtype=torch.int64), 11, told.append)
    assert told == [1] * 11


def test_on_a_card_the_peers_are_read_as_seldom_as_ours(monkeypatch):
    class Tokens:
        device = CUDA

    class Model:
        def generate(self, tokens, piece):
            return tokens

    told, waits = [], []
    monkeypatch.setattr(decoders.hardware, "synchronise", waits.append)
    decoders._in_pieces(Model())(Tokens(), 2 + READ_EVERY, told.append)
    assert told == [1, READ_EVERY, 1]
    assert waits == [CUDA] * 3


def test_of_the_lecture_only_definitions_are_run(peers):
    names = checkouts.lecture(peers.lecture, 65, CPU)
    assert (names.vocab_size, names.block_size, names.device) == (65, 4, "cpu")
    assert names.GPTLanguageModel().table.weight.shape == (65, 4)


def test_files_that_are_not_the_peers_are_refused(tmp_path):
    (tmp_path / "gpt.py").write_text("n_embd = 384\n")
    with pytest.raises(ValueError, match="no GPTLanguageModel"):
        checkouts.lecture(tmp_path / "gpt.py", 65, CPU)
    with pytest.raises(ValueError, match="is not there"):
        checkouts.lecture(tmp_path / "no.py", 65, CPU)
    with pytest.raises(ValueError, match=r"no checkout of nanoGPT: it has no model\.py"):
        checkouts.nanogpt(tmp_path)


@pytest.mark.parametrize("model", decode.NEW)
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_every_model_has_its_peers_and_ours_with_and_without_int8(model, device):
    found = decoders.ways(model, device)
    assert len(found) == len(set(map(str, found)))
    assert found[0].who == decode.HELD_AGAINST[model]
    ours = [way for way in found if way.who == ("triton" if device is CUDA else "torch")]
    assert {way.int8 for way in ours} == {True, False}
    assert ({way.slide for way in ours} == {1}) == (model == "gpt2")


def test_who_cannot_be_asked_says_why():
    assert decoders.why_not(Way("lecture"), CPU, Peers()) == "no lecture was given"
    assert decoders.why_not(Way("lecture"), CPU, Peers(lecture=Path())) is None
    assert decoders.why_not(Way("torch"), CPU, Peers()) is None


# --- rows -----------------------------------------------------------------------------------------


def test_a_row_says_what_was_timed(small):
    row = decode.measure("lecture", 3, Way("torch", slide=4), CPU, 30.0, Peers(), copy=1e9)
    assert row["who"] == "torch, float32, slide 4"
    assert (row["model"], row["batch"], row["tokens per row"]) == ("lecture", 3, 12)
    assert row["runs"] == decode.RUNS
    context = sum(min(length, 8) for length in range(1, 13)) / 12
    read = 4 * (12 * 16**2 + 65 * 16 + 3 * context * 2 * 16)
    assert row["limit"] == pytest.approx(3 * 1e9 / read, rel=1e-2)


def test_the_rate_is_that_after_the_first_token():
    def speak(tokens, new, tick):
        time.sleep(0.6)
        tick(1)
        time.sleep(0.05)
        tick(new - 1)

    run = decode.timed(speak, None, 100, 9.0)
    assert run["made"] == 100
    assert run["first"] >= 0.6
    assert 0.05 <= run["seconds"] < 0.6


def test_who_takes_too_long_is_stopped_and_says_how_much_there_is():
    def speak(tokens, new, tick):
        for _ in range(new):
            time.sleep(0.01)
            tick(1)

    run = decode.timed(speak, None, 10_000, 0.1)
    assert 2 <= run["made"] <= 11
    assert decode.timed(speak, None, 5, 0.0)["made"] == 2  # one would have no rate


def test_the_limit_of_gpt2_on_an_h200_is_the_one_that_is_known():
    config, way = replace(decoders.sizes("gpt2"), block_size=1), Way("triton", "bfloat16")
    read = decode.bytes_per_token(config, 1, way, 1)
    assert 4.3e12 / read == pytest.approx(17_300, rel=0.01)
    quantized = decode.bytes_per_token(config, 1, way._replace(int8=True), 1)
    assert quantized == pytest.approx(read / 2, rel=1e-3)


def test_grouped_heads_and_a_window_are_read_less():
    config, way = replace(decoders.sizes("gpt2"), n_layer=1, vocab_size=0), Way("triton", "float32")
    C = config.n_embd

    def read(tokens, **options):
        return decode.bytes_per_token(replace(config, **options), 2, way, tokens) / 4 / C

    assert read(3) == 12 * C + 2 * 2 * 2  # of two rows two tokens in the mean, keys and values
    assert read(3, n_kv_head=3) == (10 + 2 / 4) * C + 2 * 2 * 2 / 4
    assert read(3, window=1) == 12 * C + 2 * 1 * 2


def _row(who, rate, model="lecture", batch=1):
    return {"model": model, "batch": batch, "who": who, "tokens/s": rate}


def test_rows_are_held_against_the_peer_of_their_model_and_batch():
    rows = [
        _row("nanogpt, float32", 20.0, "gpt2"),
        _row("torch, float32", 30.0, "gpt2"),
        _row("torch, float32", 64.0, batch=8),
        _row("torch, float32", 50.0),
        _row("lecture, float32", 4.0),
    ]
    found = decode.compared(rows)
    assert [(row["model"], row["batch"], row["times"]) for row in found] == [
        ("lecture", 1, "12.5"),
        ("lecture", 1, "1.0"),
        ("lecture", 8, ""),
        ("gpt2", 1, "1.0"),
        ("gpt2", 1, "1.5"),
    ]


def test_figures_of_one_commit_and_machine_add_up(tmp_path, monkeypatch):
    path = tmp_path / "decode.json"
    monkeypatch.setattr(figures, "commit", lambda: "abc")
    decode.save(path, [_row("lecture, float32", 4.0), _row("torch, float32", 40.0)])
    decode.save(path, [_row("torch, float32", 44.0)])
    result = figures.read(path)
    assert result["table"] == "decode"
    assert [(row["tokens/s"], row["times"]) for row in result["rows"]] == [
        (4.0, "1.0"),
        (44.0, "11.0"),
    ]
    monkeypatch.setattr(figures, "commit", lambda: "def")
    decode.save(path, [_row("torch, float32", 50.0)])
    assert len(figures.read(path)["rows"]) == 1


def test_the_program_writes_what_it_has_measured(small, tmp_path, capsys):
    path = tmp_path / "decode.json"
    arguments = ["--model=lecture", "--batch=2", "--device=cpu", "--seconds=0.01"]
    assert decode.main([*arguments, f"--json={path}", "--who=torch", "--who=lecture"]) == 0
    printed = capsys.readouterr().out
    assert "lecture, batch 2, lecture, float32: no lecture was given" in printed
    rows = figures.read(path)["rows"]
    assert {row["who"].split(",")[0] for row in rows} == {"torch"}
    assert all(f"{row['who']}: {row['tokens/s']:,} tokens/s" in printed for row in rows)


# --- the stage of `make prove` --------------------------------------------------------------------


def test_a_part_of_the_stage_tells_of_every_way(monkeypatch):
    def measure(model, batch, way, device, seconds, peers, copy):
        if way.dtype == "float32":
            raise RuntimeError("out of memory")
        rate = 200.0 if way.int8 else 100.0
        figures = {"runs": 1, "tokens per row": 3, "limit": 500}
        return _row(str(way), rate, model, batch) | figures

    monkeypatch.setattr(stage, "measure", measure)
    monkeypatch.setattr(stage, "copy_rate", lambda device: 1e12)
    monkeypatch.setattr(stage, "why_not", lambda way, *_: "no" if way.who == "nanogpt" else None)
    outcome = stage.work("gpt2, batch 8", 60.0)
    assert outcome["state"] == "passed"
    assert "int8" in outcome["says"]
    assert {row["batch"] for row in outcome["figures"]} == {8}
    assert any("nanogpt, bfloat16: no" in line for line in outcome["lines"])
    told = stage.work("lecture, batch 1", 60.0)["lines"]
    assert any("reference, float32: RuntimeError: out of memory" in line for line in told)
    monkeypatch.setattr(stage, "why_not", lambda *_: "no")
    assert stage.work("gpt2, batch 1", 60.0)["state"] == "failed"


def test_a_card_has_its_table():
    card = {"name": "Card", "driver": "1", "torch": "2", "triton": "3"}
    ceilings = {"copy_bytes_per_second": 4e12, "matmul_flops_per_second": 8e14}
    result = {"card": card, "ceilings": ceilings, "date": "2026-11-21", "rows": [], "stages": {}}
    assert "generating on a card: not measured" in tables.decode([result], None)
    assert tables.decode([], None) == "- generating on a card: not measured"
    part = {"state": "passed", "says": "", "figures": [_row("triton, bfloat16", 4321.0)]}
    parts = {"lecture, batch 1": part, "gpt2, batch 1": no_time()}
    stages = {"decode": {"parts": parts, "commit": "abc", "date": "2026-11-21"}}
    assert "| lecture | 1 | triton, bfloat16 | 4321.0 |" in tables.decode(
        [result | {"stages": stages}], None
    )


# --- what int8 costs ------------------------------------------------------------------------------


def test_what_int8_costs_is_read_from_the_runs(tmp_path):
    for name, size, record in (
        ("run", 4_000_000, {}),
        ("int8", 1_010_000, {"int8": {"perplexity": 5.01, "perplexity_before": 5.0}}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes(bytes(size))
        record |= {"files": {"weights": {"name": "w.safetensors"}}}
        (tmp_path / name / "best.json").write_text(json.dumps(record))
    assert int8.compare(tmp_path / "run", tmp_path / "int8") == {
        "MB": 4.0,
        "MB in int8": 1.01,
        "perplexity": 5.0,
        "perplexity in int8": 5.01,
        "worse by": "0.20%",
    }


def test_both_tables_have_their_place_in_the_report(tmp_path):
    (tmp_path / "bench" / "results").mkdir(parents=True)
    page = tmp_path / "README.md"
    names = ("decode", "decode-card", "int8")
    page.write_text("".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in names))
    assert report.main([], tmp_path) == 0
    assert page.read_text().count("not measured") == len(names)
