"""train.py from its options to the run's folder: presets, kernels, files, resuming."""

import functools
import json
import os
import pkgutil
import re
import signal
from dataclasses import asdict
from unittest.mock import Mock

import pytest
import torch

from gpt.config.presets import PRESETS
from gpt.process import protect_streams
from gpt.runs import checkpoint
from tests.operands import DEVICE
from tests.runs import in_child, losses, metrics, record, run, sign, tensor_files

STEPS = [0, 1, 2, 2, 3, 4, 4]  # of the metrics: evaluations at 0, 2 and 4, losses at 1 to 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(("preset", "steps"), [("lecture", 20), ("quickstart", 6)])
def test_reference_torch_and_triton_have_equal_losses(tmp_path, preset, steps):
    small = "--n-layer=1 --n-head=2 --n-embd=8 --block-size=6 --batch-size=1 --eval-interval=20 "
    small += f"--max-iters={steps} --eval-iters=1 --dropout=0 --learning-rate=1e-2"
    expected = None
    for kernels in ("reference", "torch", "triton"):
        folder = tmp_path / kernels
        options = [*small.split(), f"--device={DEVICE}", f"--kernels={kernels}"]
        assert run(folder, *options, preset=preset) == 0
        assert kernels in summary(folder)["kernels"].values()
        expected = expected or losses(folder)
        assert len(expected) == steps
        assert losses(folder) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_trains_with_its_options(tmp_path, preset, capsys):
    # small sizes and a text, because the data of the larger presets is not on every machine
    options = ["--tokenizer=char"]
    options += ["--gradient-accumulation-steps=2"] if preset.startswith("gpt2") else []
    assert run(tmp_path / "out", *options, preset=preset) == 0
    assert capsys.readouterr().out.startswith(f"preset {preset}")
    assert [line["step"] for line in metrics(tmp_path / "out")] == STEPS
    guessing = torch.tensor(12.0).log().item()  # 12 characters, equally likely
    assert losses(tmp_path / "out") == pytest.approx([guessing] * 4, abs=0.5)
    trained, config = record(tmp_path / "out")["train"], asdict(PRESETS[preset])
    for name in ("optimizer", "learning_rate", "beta2", "weight_decay", "grad_clip", "decay_lr"):
        assert trained[name] == config[name]
    for name in ("activation", "norm", "position", "bias", "tied_head", "dropout"):
        assert trained["model"][name] == config["model"][name]


def test_out_of_memory_is_one_sentence(tmp_path, monkeypatch, capsys):
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr("gpt.training.gradients.Gradients.loss", Mock(side_effect=error))
    assert run(tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: out of memory; use half the --batch-size and twice the ")
    assert record(tmp_path / "out")["step"] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_losses_are_close_to_fp32(tmp_path, dtype):
    assert run(tmp_path / "narrow", f"--dtype={dtype}", "--max-iters=6") == 0
    assert run(tmp_path / "fp32", "--max-iters=6") == 0
    assert losses(tmp_path / "narrow") == pytest.approx(losses(tmp_path / "fp32"), rel=0.02)
    assert losses(tmp_path / "narrow") != losses(tmp_path / "fp32")


# Dynamo hides it while it reads .grad, but the thread that saves may reset the filters meanwhile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_step_compile_compiles_two_static_shapes(tmp_path, monkeypatch):
    """One for training and one for evaluation; symbolic shapes would be slower."""
    shapes = []

    def backend(graph, inputs):
        shapes.append(str([one.shape for one in inputs if one.dtype == torch.int64]))
        assert not any(isinstance(size, torch.SymInt) for one in inputs for size in one.shape)
        return graph

    # a small limit, so that the last evaluation batch would be smaller than the others
    monkeypatch.setattr("gpt.training.evaluation.EVALUATION_TOKENS", 16)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    assert run(tmp_path / "out", "--step=compile", "--batch-size=3", "--max-iters=2") == 0
    assert len(shapes) == 2


def test_files_metrics_and_output_of_a_run(tmp_path, capsys):
    folder = tmp_path / "out"
    assert run(folder, "--sample=20") == 0
    names = {re.sub(r"^\d{7}\.[0-9a-f]{16}\.", "", path.name) for path in folder.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "summary.json", "loss.png", "lock"),
        *("last.json", "best.json"),
        *("weights.safetensors", "optimizer.safetensors", "random.safetensors"),
    }

    config = json.loads((folder / "config.json").read_text())
    assert (config["preset"], config["model"]["vocab_size"]) == ("shakespeare-char", 12)
    lines = metrics(folder)
    assert [line["step"] for line in lines] == STEPS
    evaluations = [line for line in lines if "val_loss" in line]
    assert all(line.keys() == {"step", "train_loss", "val_loss"} for line in evaluations)
    result = summary(folder)
    assert result["best_val_loss"] == min(line["val_loss"] for line in evaluations)
    assert result["final_val_loss"] == evaluations[-1]["val_loss"]
    assert (result["steps"], result["skipped_steps"]) == (4, 0)
    for name in ("training_seconds", "tokens_per_second", "peak_memory_bytes"):
        assert result[name] > 0
    assert result["versions"]["torch"] == torch.__version__
    assert set(result["kernels"].values()) == {"torch"}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    assert re.search(r"^step 2: train loss \d\.\d{4}, val loss \d\.\d{4}$", printed, re.M)
    assert re.search(r"^iter 3: loss \d\.\d{4}, time \d+\.\d\dms, [\d,]+ tok/s$", printed, re.M)
    text = printed.split(f"{folder}\n")[-1]
    assert len(text) == 21
    assert set(text) <= set("abcdefghij \n")
    # dropout uses the global generator; samples during training must not
    assert run(tmp_path / "without", "--sample=0") == 0
    assert losses(tmp_path / "without") == losses(folder)
    assert tensor_files(tmp_path / "without") == tensor_files(folder)


def test_eval_only_and_resuming_a_finished_run_change_no_file(tmp_path, capsys):
    def files():
        return {path: (path.read_bytes(), path.stat().st_mtime) for path in folder.iterdir()}

    folder = tmp_path / "out"
    assert run(folder) == 0
    before = files()
    assert run(folder, "--resume", "--eval-only") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("step 4: train loss ")
    assert printed[-1] in printed[:-1]  # the run's last evaluation
    assert run(folder, "--resume", "--sample=5") == 0
    assert files() == before
    ended = f"the run in {folder} has taken all 4 steps; a larger --max-iters"
    assert ended in capsys.readouterr().out
    (folder / "summary.json").unlink()  # killed before it was written
    assert run(folder, "--resume") == 0
    assert "tok/s" not in capsys.readouterr().out
    assert summary(folder)["final_val_loss"] == record(folder)["val_loss"]


STEP = "torch.Tensor.backward"
EVALUATION = "gpt.training.evaluation.BatchLoss.eager"


@pytest.mark.parametrize(
    ("options", "function", "call", "reached"),  # which call of a function receives a signal
    [
        *((options, STEP, 5, 5) for options in ("", "--lecture=residual", "--dtype=float16")),
        ("--dtype=bfloat16 --optimizer=muon --grad-clip=0", STEP, 5, 5),
        # between the passes of a step, which is then taken again
        ("--kernels=reference --gradient-accumulation-steps=3", STEP, 13, 4),
        ("", EVALUATION, 4, 3),  # between the batches of the second evaluation
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path, monkeypatch, capsys, options, function, call, reached
):
    options = [*options.split(), "--dropout=0.2", "--eval-interval=3", "--lr-decay-iters=8"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, *options, "--max-iters=8") == 0
    original, calls = pkgutil.resolve_name(function), []

    def signalled(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(function, signalled)
        assert run(parts, *options, "--max-iters=8") == 0
    assert not (parts / "summary.json").exists()
    assert f"stopped by SIGUSR1 after step {reached}" in capsys.readouterr().out
    assert record(parts)["step"] == reached
    assert len(calls) == call  # it stopped at once
    for length in (6, 8):  # of a run that was stopped, and of one that has ended
        assert run(parts, "--resume", f"--max-iters={length}") == 0
    assert tensor_files(parts) == tensor_files(whole)
    assert tensor_files(parts, "best") == tensor_files(whole, "best")
    assert metrics(parts) == metrics(whole)
    for name in ("scaler", "skipped", "best_val_loss", "val_loss"):
        assert record(parts)[name] == record(whole)[name]
    assert (parts / "summary.json").exists()


def test_a_run_is_saved_by_time_too(tmp_path, monkeypatch):
    save = Mock(wraps=checkpoint.save)
    monkeypatch.setattr(checkpoint, "save", save)
    options = ("--eval-interval=4", "--keep=9")
    assert run(tmp_path / "often", *options, "--save-minutes=1e-9") == 0
    written = [(call.args[3]["step"], *call.args[1]) for call in save.call_args_list]
    ends = [(0, "best", "step-0000000", "last"), (4, "best", "step-0000004", "last")]
    assert written == [ends[0], (1, "last"), (2, "last"), (3, "last"), ends[1]]
    assert run(tmp_path / "out", *options) == 0
    assert tensor_files(tmp_path / "often") == tensor_files(tmp_path / "out")
    assert metrics(tmp_path / "often") == metrics(tmp_path / "out")


def test_resuming_needs_the_same_data_and_prints_what_has_changed(tmp_path, capsys):
    folder, text = tmp_path / "out", tmp_path / "text"
    assert run(folder) == 0
    saved = record(folder)
    whole = text.read_text()
    capsys.readouterr()
    for changed in (whole[:-1], whole[:7] + whole[8] + whole[7] + whole[9:]):
        text.write_text(changed)
        assert run(folder, "--resume", "--max-iters=5") == 2
        message = f"train.py: the data {text} has changed since the run in {folder} was saved"
        assert capsys.readouterr().err.startswith(message)
    (tmp_path / "moved").write_text(whole)
    options = ("--resume", f"--data={tmp_path / 'moved'}", "--batch-size=3", "--max-iters=5")
    sign(folder / "last.json", {name: saved[name] for name in saved if name != "data"})
    assert run(folder, "--resume") == 2  # of an older version, or from a stranger
    assert "has no checksum of its data; name the data with --data" in capsys.readouterr().err
    sign(folder / "last.json", saved)
    assert run(folder, *options) == 0
    printed = capsys.readouterr().out
    assert f"changed options: --data {tmp_path / 'moved'} (was {text}), " in printed
    assert "--batch-size 3 (was 4)" in printed
    assert "the steps to come take other rows of the data" in printed


def test_a_run_goes_on_without_its_terminal(tmp_path):
    """stderr is closed, stdout is full, the terminal hangs up, and messages are not in a file."""

    def program():
        protect_streams()
        return run(tmp_path / "out", "--sample=20")

    with open("/dev/full", "wb") as full:
        assert in_child(program, full.fileno(), full.fileno(), None) == 0
    assert summary(tmp_path / "out")["steps"] == 4
    assert (tmp_path / "out" / "lock").read_bytes() == b""
    assert len(metrics(tmp_path / "out")) == 7
