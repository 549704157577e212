"""The share of train.py's step that is not a bare loop's: both loops are the same training."""

import json
from dataclasses import replace

import pytest
import torch

from bench import results_file, timer
from bench.recipes import host_overhead
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    model = ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16)
    preset = replace(PRESETS["quickstart"], model=model, batch_size=3)
    monkeypatch.setitem(host_overhead.PRESETS, "quickstart", preset)


def test_a_row_is_of_both_loops_in_turns(small, tmp_path, monkeypatch):
    monkeypatch.setattr(timer, "LEAST_ROUNDS", 3)
    path = tmp_path / "machinery.json"
    asked = ["--preset=quickstart", "--device=cpu", "--seconds=0", f"--json={path}"]
    assert host_overhead.main(asked) == 0
    result = results_file.read(path)
    assert result["table"] == "machinery"
    (row,) = result["rows"]
    assert row["steps"] == 3
    assert row["train.py's step, ms"] > 0
    assert json.loads(path.read_text())["schema"] == results_file.SCHEMA


def test_both_loops_take_a_step_of_the_same_training(small, monkeypatch):
    config = replace(PRESETS["quickstart"], warmup_iters=0, decay_lr=False, grad_clip=0.5)
    config = replace(config, model=replace(config.model, vocab_size=host_overhead.VOCABULARY))
    precision = host_overhead.Precision(CPU, torch.float32)
    data = host_overhead.a_text(host_overhead.VOCABULARY, CPU)
    data.train.fill_(7)  # every batch is alike
    models, a_model = [], host_overhead.a_model

    def watched(*arguments):
        made = a_model(*arguments)
        models.append(made[0])
        return made

    monkeypatch.setattr(host_overhead, "a_model", watched)
    for loop in (host_overhead.bare_loop, host_overhead.our_loop):
        step = loop(config, precision, data)
        for _ in range(3):
            step()
    bare, ours = ([p.detach() for p in model.parameters()] for model in models)
    first = [p.detach() for p in a_model(config, precision)[0].parameters()]
    for start, weight, same in zip(first, bare, ours, strict=True):
        assert torch.allclose(weight, same, atol=1e-7)
        assert not torch.equal(weight, start)


def test_the_share_is_that_of_steps_that_followed_each_other(small, monkeypatch):
    seconds = {"bare": [1.0, 5.0, 2.0], "train.py": [1.1, 5.5, 4.0]}
    samples = {name: timer.Samples(each, 0.0) for name, each in seconds.items()}
    monkeypatch.setattr(host_overhead, "in_turns", lambda *_: samples)
    row = host_overhead.measure("quickstart", CPU, 0.0)
    assert row["share"] == "1.100"
    assert row["a bare loop's step, ms"] == 2000
    assert row["train.py's step, ms"] == 4000
