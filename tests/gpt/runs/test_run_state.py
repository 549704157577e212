"""Saving in the background, resuming, and what is rejected."""

import contextlib
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.files import Folder
from gpt.generation.load import load_model
from gpt.models.build import build
from gpt.runs import checkpoint
from gpt.runs.run_folder import RunFolder
from gpt.runs.run_state import ALL_KINDS, RunState, Saver, restore_run
from gpt.training.precision import Precision
from gpt.training.step import EagerStep
from kernels.torch_ops import OPS
from tests.gpt.configs import CONFIGS, draw_tokens
from tests.gpt.training.steps import all_equal, small_step, weights_of
from tests.runs import full_disk, record, sign

CPU = torch.device("cpu")
STATE = RunState(3, 1.5, 0, 2.0)


class Run:
    """The parts of a run that a checkpoint holds."""

    def __init__(self, folder, ops=OPS, **changes):
        model = replace(CONFIGS["modern"], dropout=0.3)
        self.config = TrainConfig(model=model, batch_size=2, optimizer="muon", **changes)
        self.folder, self.model = Path(folder), build(model, ops)
        self.step = small_step(EagerStep, self.model, self.config)
        self.optimizers, self.data = self.step.gradients.optimizers, self.step.gradients.data
        self.precision = self.step.gradients.precision

    @contextlib.contextmanager
    def saver(self):
        description = {"train": asdict(self.config), "tokenizer": self.data.tokenizer.to_json()}
        description["data"] = self.data.fingerprint()
        parts = (self.model, self.optimizers, self.precision, description, self.config.keep)
        with RunFolder(self.folder) as folder, Saver(folder, *parts) as saver:
            yield saver

    def save(self, step=3, improved=False, **options):
        with self.saver() as saver:
            saver.save(replace(STATE, step=step), improved, **options)

    def restore(self):
        parts = (self.model, self.optimizers, self.precision, self.data)
        return restore_run(self.folder, *parts)[0]


def names_in(folder):
    return sorted(path.stem for path in folder.glob("*.json"))


# --- resuming (tests/test_train.py compares resumed and uninterrupted runs) -----------------------


def test_reference_and_packed_model_fp32_and_fp16_resume_each_other(tmp_path):
    run = Run(tmp_path)
    run.save()  # before the first step, when the optimizers have no state
    tokens = draw_tokens(2, 8)
    expected = run.model.eval()(tokens, tokens)[1]
    for ops, dtype in ((None, torch.float16), (OPS, torch.float32)):
        other = Run(tmp_path, ops)
        other.precision = Precision(CPU, dtype)  # fp32 has no loss scale
        assert other.restore() == STATE
        assert torch.allclose(other.model.eval()(tokens, tokens)[1], expected, rtol=1e-6)
        other.save()


# --- saving in the background ---------------------------------------------------------------------


def test_training_continues_during_a_slow_write(tmp_path, monkeypatch):
    run, disk = Run(tmp_path), threading.Event()
    serialised = checkpoint.serialised

    def slowly(*arguments):
        assert disk.wait(10)
        return serialised(*arguments)

    monkeypatch.setattr(checkpoint, "serialised", slowly)
    before = weights_of(run.step)
    with run.saver() as saver:
        saver.save(STATE, True)
        for step in range(3):
            run.step(step)  # nothing is written yet
        assert names_in(tmp_path) == []
        disk.set()
    assert names_in(tmp_path) == ["best", "last"]
    other = Run(tmp_path)
    other.restore()
    assert all_equal(weights_of(other.step), before)


def test_errors_of_the_write_are_raised_by_the_next_save_and_on_leaving(tmp_path):
    run = Run(tmp_path)
    with full_disk(100):
        with run.saver() as saver:
            saver.save(STATE, False)
            message = r"of step 3 could not be saved .*\(File too large\); no earlier one is left"
            with pytest.raises(UserError, match=message):
                saver.save(STATE, False)
        with pytest.raises(UserError, match="of step 3 could not be saved"):
            run.save()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    run = Run(tmp_path)
    run.save()
    with torch.no_grad():
        next(run.model.parameters())[0] = float("nan")
    with pytest.raises(UserError, match="the weights of step 4 are not finite"):
        run.save(step=4)
    assert record(tmp_path)["step"] == 3


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def save_and_wait(saver):
    saver.save(replace(STATE, step=4), True)
    saver.wait()


@pytest.mark.parametrize("what", ["folder moved", "folder removed", "lock removed"])
def test_a_run_leaves_the_next_run_in_its_place_alone(tmp_path, what):
    out, moved = tmp_path / "out", tmp_path / "moved"
    out.mkdir()
    message = r"of step 4 could not be saved .*No such file.*; no earlier one is left there"
    with Run(out).saver() as saver:
        saver.save(STATE, True)
        saver.wait()
        if what == "lock removed":
            message = "the lock in it was removed or replaced during training"
            (out / "lock").unlink()
        else:
            out.rename(moved)
            out.mkdir()
        if what == "folder removed":
            shutil.rmtree(moved)
        Run(out).save(step=9, improved=True)
        before = snapshot(out)
        if what == "folder moved":
            message = r"was moved during training; step 4 is saved in .*/moved: continue with"
        with pytest.raises(UserError, match=message):
            save_and_wait(saver)
    assert snapshot(out) == before
    if what == "folder moved":
        assert checkpoint.load(moved, "last", ALL_KINDS)[0]["step"] == 4


def test_the_newest_whole_checkpoint_takes_the_place_of_a_damaged_last(tmp_path, capsys):
    run = Run(tmp_path, keep=2)
    for step in (9_999_998, 10_000_000, 9_999_999):  # --keep goes by the step
        run.save(step)
    assert names_in(tmp_path) == ["last", "step-10000000", "step-9999998", "step-9999999"]
    run.save(10_000_002)
    assert names_in(tmp_path) == ["last", "step-10000000", "step-10000002", "step-9999999"]
    (tmp_path / "step-10000002.json").unlink()
    run.save(10_000_001, between=True)  # evaluations
    (tmp_path / "last.json").write_bytes((tmp_path / "last.json").read_bytes()[:-9])
    assert run.restore().step == 10_000_000
    assert "last.json is not JSON" in (note := capsys.readouterr().out)
    assert "using step-10000000.json instead, the newest whole checkpoint\n" in note
    for path in tmp_path.glob("*.random.*"):
        path.unlink()
    with pytest.raises(UserError, match=r"last\.json is not JSON"):
        run.restore()


# --- which checkpoints are kept -------------------------------------------------------------------


def test_best_is_the_last_improvement_and_holds_only_weights(tmp_path, monkeypatch):
    save = Mock(wraps=checkpoint.save)
    monkeypatch.setattr(checkpoint, "save", save)
    run = Run(tmp_path)
    for step, improved in enumerate((True, True, False, False)):
        run.save(step, improved)
    # best first: a run killed in between would improve on its best again and not notice
    best, last = ("best", ("weights",)), ("last", ALL_KINDS)
    order = [[*call.args[1].items()] for call in save.call_args_list]
    assert order == [[best, last]] * 2 + [[last]] * 2
    assert checkpoint.load(tmp_path, "best")[0]["step"] == 1
    assert checkpoint.load(tmp_path, "last", ALL_KINDS)[0]["step"] == 3


def test_keep_limits_the_number_of_older_checkpoints(tmp_path):
    run = Run(tmp_path, keep=2)
    for step in range(0, 50, 10):
        run.save(step, improved=step == 0)
        steps = [f"step-{each:07d}" for each in range(0, step + 1, 10)][-3:]
        assert names_in(tmp_path) == ["best", "last", *steps]
    for step in (20, 30, 40):
        assert checkpoint.load(tmp_path, f"step-{step:07d}", ALL_KINDS)[0]["step"] == step
    (tmp_path / "step-0000020.json").replace(tmp_path / "last.json")  # go back
    run = Run(tmp_path, keep=2)
    assert run.restore().step == 20
    run.save(25)
    assert names_in(tmp_path) == ["best", "last", "step-0000025", "step-0000030", "step-0000040"]
    run.save(30)  # again, the oldest file of them
    assert "step-0000030" in names_in(tmp_path)
    Run(tmp_path).save(26)  # without --keep the existing ones stay
    assert len(names_in(tmp_path)) == 5


# --- what is rejected -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        *({"step": "3"}, {"step": -1}, {"skipped": None}, {"seconds": "long"}),
        *({"best_val_loss": []}, {"val_loss": "low"}, {"scores": 7}, {"scaler": 7}),
        *({"scaler": {"scale": "large"}}, {"tokenizer": None}, {"tokenizer": {"kind": "byte"}}),
    ],
)
def test_a_damaged_record_is_rejected(tmp_path, changes):
    run = Run(tmp_path)
    run.precision = Precision(CPU, torch.float16)
    run.save()
    sign(tmp_path / "last.json", record(tmp_path) | changes)
    with pytest.raises(UserError):
        run.restore()


@pytest.mark.parametrize(
    ("kind", "name", "tensor"),
    [
        ("weights", "ln_f.weight", None),
        ("weights", "more", torch.ones(1)),
        ("weights", "ln_f.weight", torch.ones(5)),
        ("weights", "ln_f.weight", torch.ones(32, dtype=torch.float64)),
        ("weights", "ln_f.weight", torch.full((32,), float("nan"))),
        ("optimizer", "0/ln_f.weight/exp_avg", None),
        ("optimizer", "0/ln_f.weight/exp_avg", torch.ones(5)),
        ("optimizer", "0/ln_f.weight/more", torch.ones(32)),
        ("optimizer", "2/ln_f.weight/exp_avg", torch.ones(32)),  # of another optimizer
        ("optimizer", "0/ln_f.weight/step", torch.ones(32)),
        ("random", "cpu.0", torch.ones(5)),
        ("random", "cpu.0", torch.ones(5, dtype=torch.uint8)),
    ],
)
def test_tensors_of_another_run_are_rejected(tmp_path, kind, name, tensor):
    message = "with the run's --kernels and --optimizer" if name.startswith("2") else "."
    run = Run(tmp_path)
    run.step(0)
    run.save()
    saved, tensors = checkpoint.load(tmp_path, "last", ALL_KINDS)
    tensors[kind][name] = tensor
    if tensor is None:
        del tensors[kind][name]
    del saved["version"], saved["files"]
    with Folder(tmp_path) as folder:
        checkpoint.save(folder, {"last": ALL_KINDS}, tensors, saved)
    with pytest.raises(UserError, match=message):
        run.restore()


# --- loading a model ------------------------------------------------------------------------------


def with_model(**changes):
    return {"train": asdict(TrainConfig()) | {"model": asdict(CONFIGS["modern"]) | changes}}


@pytest.mark.parametrize(
    "changes",
    [
        *({"train": None}, {"train": {}}, {"train": {"lecture": "", "model": None}}),
        {"train": {"lecture": "../bigram", "model": asdict(CONFIGS["modern"])}},
        {"train": {"lecture": "bigram", "model": asdict(CONFIGS["modern"])}},
        *(with_model(n_layer=3), with_model(n_head=5), with_model(vocab_size=12)),
        *(with_model(vocab_size=10), with_model(activation="swish"), with_model(n_layer=0)),
        # nothing of these sizes may be allocated
        *(with_model(n_layer=10**9), with_model(n_embd=2 * 10**9)),
        *(with_model(block_size=10**12), with_model(vocab_size=10**15)),
        {"tokenizer": {"kind": "gpt2"}},
    ],
)
@pytest.mark.parametrize("ops", [OPS, None])
def test_a_model_that_does_not_fit_its_weights_is_rejected(tmp_path, changes, ops):
    Run(tmp_path).save(improved=True)
    sign(tmp_path / "best.json", record(tmp_path, "best") | changes)
    with pytest.raises(UserError) as error:
        load_model(tmp_path, "best", ops, CPU)
    assert "\n" not in str(error.value)
