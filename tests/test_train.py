"""train.py from its options to the run's folder: presets, kernels, what is left, going on."""

import functools
import json
import os
import re
import signal
import socket
from dataclasses import asdict

import pytest
import torch

from gpt.config.cli import train_config_from_json
from gpt.config.presets import PRESETS
from gpt.data import corpus
from gpt.training.step import Step
from tests.numerics import DEVICE
from tests.runs import metrics, record, run, tensor_files


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- what computes it -----------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["lecture", "quickstart"])
def test_reference_torch_and_triton_lose_alike(tmp_path, preset):
    small = ["--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=6", "--batch-size=1"]
    options = [*small, "--max-iters=8", "--eval-interval=8", "--eval-iters=1", "--dropout=0"]
    options += [f"--device={DEVICE}"]
    losses = {}
    for kernels in ("reference", "torch", "triton"):
        folder = tmp_path / kernels
        assert run(folder, *options, f"--kernels={kernels}", preset=preset) == 0
        losses[kernels] = [line["loss"] for line in metrics(folder) if "loss" in line]
        summary = json.loads((folder / "summary.json").read_text())
        assert kernels in summary["kernels"].values()
    assert len(losses["reference"]) == 8
    assert losses["torch"] == pytest.approx(losses["reference"], rel=1e-5)
    assert losses["triton"] == pytest.approx(losses["reference"], rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_s_first_steps(tmp_path, preset, capsys):
    # what a preset is, but for its sizes; the data of the larger ones is not on every machine
    passes = ["--gradient-accumulation-steps=2"] if preset.startswith("gpt2") else []
    on_a_text = ["--tokenizer=char", "--source-size=0"]
    assert run(tmp_path / "out", *passes, *on_a_text, preset=preset) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"preset {preset}: ")
    lines = metrics(tmp_path / "out")
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4]
    vocabulary = 12
    for line in lines:
        if "loss" in line:
            assert abs(line["loss"] - torch.tensor(vocabulary).log()) < 0.5  # as good as guessing
    trained, config = record(tmp_path / "out")["train"], asdict(PRESETS[preset])
    for name in ("optimizer", "learning_rate", "beta2", "weight_decay", "grad_clip", "decay_lr"):
        assert trained[name] == config[name]
    for name in ("activation", "norm", "position", "bias", "tied_head", "dropout"):
        assert trained["model"][name] == config["model"][name]


@pytest.mark.parametrize("step", ["bigram", "average-softmax", "one-head", "layer-norm"])
def test_the_lecture_s_road_trains(tmp_path, step):
    assert run(tmp_path / "out", f"--lecture={step}", preset="lecture-small") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["kernels"] == {"model": f"lecture step {step}"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(tmp_path, dtype):
    assert run(tmp_path / "out", f"--dtype={dtype}", "--max-iters=6") == 0
    losses = [line["loss"] for line in metrics(tmp_path / "out") if "loss" in line]
    assert run(tmp_path / "exact", "--max-iters=6") == 0
    exact = [line["loss"] for line in metrics(tmp_path / "exact") if "loss" in line]
    assert losses == pytest.approx(exact, rel=0.02)
    assert losses != exact


def test_a_step_of_several_passes_is_one_of_a_large_batch(tmp_path):
    alike = ["--dropout=0", "--embedding-dropout=0"]
    assert run(tmp_path / "one", *alike, "--batch-size=8") == 0
    assert run(tmp_path / "two", *alike, "--batch-size=2", "--tokens-per-step=64") == 0
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


def test_a_compiled_model_is_compiled_for_two_shapes_and_none_is_symbolic(tmp_path, monkeypatch):
    """A batch of training, and one of evaluation; symbolic shapes would be slower."""
    shapes = []

    def noting(graph, inputs):
        shapes.append([one.shape for one in inputs if one.dtype == torch.int64])
        assert not any(isinstance(size, torch.SymInt) for one in inputs for size in one.shape)
        return graph

    monkeypatch.setattr(
        "gpt.training.evaluation.EVALUATION_TOKENS", 16
    )  # so that the last batch is smaller
    torch._dynamo.reset()
    compiler = functools.partial(torch.compile, backend=noting)
    monkeypatch.setattr(torch, "compile", compiler)
    assert run(tmp_path / "out", "--step=compile", "--batch-size=3", "--max-iters=2") == 0
    assert len({str(each) for each in shapes}) == 2


# --- the run's folder -----------------------------------------------------------------------------


def test_what_a_run_leaves(tmp_path, capsys):
    folder = tmp_path / "out"
    assert run(folder, "--sample=20") == 0
    names = {re.sub(r"^\d{7}\.[0-9a-f]{16}\.", "", path.name) for path in folder.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "summary.json", "loss.png", "lock"),
        *("last.json", "best.json"),
        *("weights.safetensors", "optimizer.safetensors", "random.safetensors"),
    }
    assert len(list(folder.iterdir())) <= 11  # the best may be an earlier one

    config = train_config_from_json(json.loads((folder / "config.json").read_text()), "")
    assert config.preset == "shakespeare-char"
    assert config.model.vocab_size == 12
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4]
    assert [line.keys() - {"step"} for line in lines if "val_loss" in line] == [
        {"val_loss", "sample"},
        {"train_loss", "val_loss", "sample"},
        {"train_loss", "val_loss", "sample"},
    ]
    assert lines[3]["train_loss"] == pytest.approx((lines[1]["loss"] + lines[2]["loss"]) / 2)
    summary = json.loads((folder / "summary.json").read_text())
    evaluated = [line["val_loss"] for line in lines if "val_loss" in line]
    assert summary["best_val_loss"] == min(evaluated)
    assert summary["final_val_loss"] == evaluated[-1]
    assert summary["steps"] == 4
    assert summary["skipped_steps"] == 0
    assert summary["training_seconds"] > 0
    assert summary["tokens_per_second"] > 0
    assert summary["peak_memory_bytes"] > 1e6
    assert summary["versions"]["torch"] == torch.__version__
    assert set(summary["kernels"].values()) == {"torch"}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    assert re.search(r"^step 2: train loss \d\.\d{4}, val loss \d\.\d{4}$", printed, re.M)
    assert re.search(r"^iter 3: loss \d\.\d{4}, time \d+\.\d\dms, [\d,]+ tok/s$", printed, re.M)
    speech = printed.split(f"the run is in {folder}\n")[1]
    assert len(speech) == 21
    assert set(speech) <= set("abcdefghij \n")


def test_samples_leave_training_as_it_is(tmp_path):
    """Dropout draws from the global generator; the samples of evaluations do not."""
    assert run(tmp_path / "silent", "--sample=0", "--eval-interval=1") == 0
    assert run(tmp_path / "speaking", "--sample=12", "--eval-interval=1") == 0
    spoken = metrics(tmp_path / "speaking")
    said = [line.pop("sample") for line in spoken if "val_loss" in line]
    assert [len(text) for text in said] == [12] * 5
    assert spoken == metrics(tmp_path / "silent")
    for name in ("weights", "random"):
        files = [tensor_files(tmp_path / folder) for folder in ("silent", "speaking")]
        assert files[0][name] == files[1][name]


def test_an_earlier_run_is_kept(tmp_path, capsys):
    for seed in (1, 2):
        assert run(tmp_path / "out", f"--seed={seed}", "--max-iters=1") == 0
    assert f"held an earlier run, which is kept as {tmp_path / 'out.1'}" in capsys.readouterr().out
    assert record(tmp_path / "out.1")["train"]["seed"] == 1
    assert record(tmp_path / "out")["train"]["seed"] == 2


def test_a_text_without_line_breaks_speaks_too(tmp_path):
    (tmp_path / "line").write_text("abcabcbca" * 40)
    assert run(tmp_path / "out", f"--data={tmp_path / 'line'}", "--sample=5") == 0


def test_without_a_network_training_goes_on_with_python_s_documentation(
    tmp_path, monkeypatch, capsys
):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(corpus, "SHAKESPEARE_URL", f"http://127.0.0.1:{port}/")
    monkeypatch.setenv("no_proxy", "*")
    options = ["--data=auto", f"--data-dir={tmp_path}", "--max-iters=1", "--eval-iters=1"]
    assert run(tmp_path / "out", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("going on with python-docs" in line for line in lines) == 1
    assert record(tmp_path / "out")["train"]["data"] == "python-docs"


def test_nanogpt_s_options_are_understood(tmp_path):
    (tmp_path / "line").write_text("abcabcbca" * 40)
    options = [
        *("--compile=False", "--n_layer=1", "--eval_iters=2", "--weight_decay=1e-1"),
        *(
            "--gradient_accumulation_steps=2",
            f"--dataset={tmp_path / 'line'}",
            "--init_from=scratch",
        ),
        *("--decay_lr=True", "--warmup_iters=1", "--lr_decay_iters=4", "--min_lr=1e-5"),
    ]
    assert run(tmp_path / "out", *options) == 0
    assert record(tmp_path / "out")["train"]["model"]["n_layer"] == 1


def test_eval_only_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "out"
    assert run(folder) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(folder, "--resume", "--eval-only") == 0
    val_loss = record(folder)["val_loss"]
    assert capsys.readouterr().out.splitlines()[-1] == f"step 4: val loss {val_loss:.4f}"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# --- going on -------------------------------------------------------------------------------------


def stop_at(step, monkeypatch, number=signal.SIGTERM):
    """Send this process a signal in the middle of that step."""
    take_step = Step.__call__

    def stopped(self, now):
        if now == step:
            os.kill(os.getpid(), number)
        return take_step(self, now)

    monkeypatch.setattr(Step, "__call__", stopped)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--kernels=reference"],
        ["--optimizer=muon", "--grad-clip=0"],
        ["--gradient-accumulation-steps=3"],
        ["--dtype=float16"],
        ["--dtype=bfloat16", "--optimizer=muon"],
        ["--lecture=residual"],
    ],
)
@pytest.mark.parametrize("stop", ["at an evaluation", "in between"])
def test_a_run_goes_on_in_every_bit(tmp_path, monkeypatch, capsys, options, stop):
    options = [*options, "--dropout=0.2", "--eval-interval=3", "--lr-decay-iters=8"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, *options, "--max-iters=8") == 0
    if stop == "at an evaluation":
        assert run(parts, *options, "--max-iters=3") == 0
        reached = 3
    else:
        with monkeypatch.context() as patch:
            stop_at(4, patch)
            assert run(parts, *options, "--max-iters=8") == 0
        reached = 5
        assert not (parts / "summary.json").exists()
        assert f"stopped by SIGTERM after step {reached}" in capsys.readouterr().out
    assert record(parts)["step"] == reached
    assert run(parts, "--resume", "--max-iters=8") == 0
    assert f"going on from step {reached} of the run in {parts}" in capsys.readouterr().out
    assert tensor_files(parts) == tensor_files(whole)
    assert tensor_files(parts, "best") == tensor_files(whole, "best")
    mine, expected = metrics(parts), metrics(whole)
    if stop == "in between":
        assert mine == expected
    else:
        assert [line for line in mine if "loss" in line] == [
            line for line in expected if "loss" in line
        ]
    for name in ("scaler", "losses", "skipped", "best_val_loss", "val_loss"):
        assert record(parts)[name] == record(whole)[name]
    assert (parts / "summary.json").exists()


def test_a_finished_run_may_be_longer(tmp_path):
    assert run(tmp_path / "out") == 0
    assert run(tmp_path / "out", "--resume") == 0  # nothing is left to do
    assert run(tmp_path / "out", "--resume", "--max-iters=6") == 0
    assert record(tmp_path / "out")["step"] == 6
    assert [line["step"] for line in metrics(tmp_path / "out")] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
