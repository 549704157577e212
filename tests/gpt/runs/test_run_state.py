"""Saving in the background, going on from it in every bit, and a model that speaks from it."""

import json
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from gpt import UserError
from gpt.config.train import TrainConfig
from gpt.data.batches import Data
from gpt.data.tokenizers import CharTokenizer
from gpt.models.build import build
from gpt.runs import checkpoint
from gpt.runs.run_state import WHOLE, Saver, load_model, restore_run
from gpt.training.optimizers import make_optimizers
from gpt.training.step import Precision, Step
from kernels.torch_ops import OPS
from tests.gpt.configs import CONFIGS, LECTURE, draw_tokens

CPU = torch.device("cpu")
REACHED = {"step": 3, "skipped": 0, "seconds": 1.5, "losses": [0.1], "best_val_loss": 2.0}


class Run:
    """The parts of a run that a checkpoint holds."""

    def __init__(self, folder, ops=OPS, **changes):
        model = replace(CONFIGS["modern"], dropout=0.3)
        self.config = TrainConfig(model=model, batch_size=2, optimizer="muon", **changes)
        self.folder = Path(folder)
        self.model = build(model, ops)
        self.precision = Precision(CPU, torch.float32)
        self.optimizers = make_optimizers(self.model, self.config, torch.optim.AdamW)
        tokens = draw_tokens(1, 300)[0]
        self.data = Data("text", tokens, tokens, CharTokenizer("abcdefghijk"))
        self.step = Step(self.model, self.optimizers, self.data, self.config, self.precision)

    def saver(self):
        return Saver(
            self.folder, self.config, self.data, self.model, self.optimizers, self.precision
        )

    def save(self, step=3, improved=False):
        with self.saver() as saver:
            saver.save({**REACHED, "step": step}, improved)

    def restore(self):
        return restore_run(self.folder, self.model, self.optimizers, self.precision, self.data)


def names_in(folder):
    return sorted(path.stem for path in folder.glob("*.json"))


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ops", [OPS, None])
def test_a_run_goes_on_in_every_bit(tmp_path, ops):
    torch.manual_seed(5)
    run = Run(tmp_path, ops)
    for step in range(3):
        run.step(step)
    run.save()
    expected = [run.step(step) for step in range(3, 6)]

    torch.manual_seed(6)  # a new process: other weights, another random state
    other = Run(tmp_path, ops)
    record = other.restore()
    assert {name: record[name] for name in REACHED} == REACHED
    losses = [other.step(step) for step in range(3, 6)]
    assert torch.stack(losses).equal(torch.stack(expected))
    for weight, also in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert weight.equal(also)


def test_the_reference_goes_on_where_the_fused_model_stopped_and_back(tmp_path):
    run = Run(tmp_path)
    run.save()  # before the first step: the optimizers have no state yet, which has no heads
    for ops in (None, OPS):
        other = Run(tmp_path, ops)
        other.restore()
        tokens = draw_tokens(2, 8)
        for gpt in (run.model.eval(), other.model.eval()):
            gpt.loss = gpt(tokens, tokens)[1]
        assert torch.allclose(run.model.loss, other.model.loss, rtol=1e-6)
        other.save()


def test_an_fp16_scaler_comes_back(tmp_path):
    run = Run(tmp_path)
    run.precision = Precision(CPU, torch.float16)
    run.precision.scaler.load_state_dict({**run.precision.scaler.state_dict(), "scale": 512.0})
    run.save()
    other = Run(tmp_path)
    other.restore()  # in fp32 there is none
    other.precision = Precision(CPU, torch.float16)
    other.restore()
    assert other.precision.scaler.get_scale() == 512.0
    run.precision = Precision(CPU, torch.float32)
    run.save()
    other.restore()  # a run of fp32 goes on in fp16 with a scale as at its beginning


# --- in the background ----------------------------------------------------------------------------


def test_training_goes_on_while_the_disk_is_slow(tmp_path, monkeypatch):
    run, disk = Run(tmp_path), threading.Event()
    save_file = checkpoint.save_file

    def slowly(*arguments):
        assert disk.wait(10)
        save_file(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", slowly)
    before = [weight.detach().clone() for weight in run.model.parameters()]
    with run.saver() as saver:
        saver.save(REACHED, True)
        for step in range(3):
            run.step(step)  # while nothing is written yet
        assert names_in(tmp_path) == []
        disk.set()
    assert names_in(tmp_path) == ["best", "last"]
    other = Run(tmp_path)
    other.restore()
    for weight, expected in zip(other.model.parameters(), before, strict=True):
        assert weight.equal(expected)  # those of the moment of saving


def test_what_hinders_the_writing_is_heard(tmp_path):
    run = Run(tmp_path / "nowhere")
    with run.saver() as saver:
        saver.save(REACHED, False)
        with pytest.raises(UserError, match="of step 3 could not be saved"):
            saver.save(REACHED, False)
    saver = run.saver()
    saver.save(REACHED, False)
    with pytest.raises(UserError, match="of step 3 could not be saved"):
        saver.__exit__()


def test_weights_gone_bad_are_not_saved(tmp_path):
    run = Run(tmp_path)
    run.save()
    with torch.no_grad():
        next(run.model.parameters())[0] = float("nan")
    with pytest.raises(UserError, match="the weights of step 4 are not finite"):
        run.save(step=4)
    assert checkpoint.load(tmp_path, "last")[0]["step"] == 3


def test_the_process_does_not_end_before_the_writing(tmp_path):
    program = f"""
import sys, time
from gpt import checkpoint
from tests.gpt.runs.test_run_state import REACHED, Run
whole = checkpoint.save_file
checkpoint.save_file = lambda *arguments: (time.sleep(0.3), whole(*arguments))
Run({str(tmp_path)!r}).saver().save(REACHED, True)
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 7
    assert names_in(tmp_path) == ["best", "last"]
    Run(tmp_path).restore()


# --- which checkpoints there are ------------------------------------------------------------------


def test_best_and_last_are_kept_apart(tmp_path):
    run = Run(tmp_path)
    for step, improved in enumerate((True, True, False, False)):
        run.save(step, improved)
    assert names_in(tmp_path) == ["best", "last"]
    assert checkpoint.load(tmp_path, "best")[0]["step"] == 1
    assert checkpoint.load(tmp_path, "last", WHOLE)[0]["step"] == 3
    with pytest.raises(UserError, match="names no optimizer"):
        checkpoint.load(tmp_path, "best", WHOLE)


def test_best_comes_before_last(tmp_path, monkeypatch):
    # or a run killed in between would go on from a model that it will not find to be its best
    order = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, names, *more: order.append([*names]))
    Run(tmp_path, keep=1).save(improved=True)
    assert order == [["best", "step-0000003", "last"]]


def test_older_ones_are_kept_as_asked(tmp_path):
    run = Run(tmp_path, keep=2)
    for step in range(0, 50, 10):
        run.step(step)
        run.save(step, improved=step == 0)
        steps = [f"step-{each:07d}" for each in range(0, step + 1, 10)][-3:]
        assert names_in(tmp_path) == ["best", "last", *steps]
    for step in (20, 30, 40):
        assert checkpoint.load(tmp_path, f"step-{step:07d}", WHOLE)[0]["step"] == step
    (tmp_path / "step-0000020.json").replace(tmp_path / "last.json")  # go back
    run = Run(tmp_path, keep=2)
    assert run.restore()["step"] == 20
    run.save(25)
    assert names_in(tmp_path) == ["best", "last", "step-0000025", "step-0000030", "step-0000040"]
    run.save(30)  # again, the oldest file of them
    assert "step-0000030" in names_in(tmp_path)
    Run(tmp_path).save(26)  # without --keep those that are there stay
    assert len(names_in(tmp_path)) == 5


# --- what is refused ------------------------------------------------------------------------------


def damage(folder, name="last", **changes):
    """A checkpoint changed by someone who knows of its sha256."""
    path = folder / f"{name}.json"
    record = json.loads(path.read_text()) | changes
    del record["sha256"]
    path.write_text(json.dumps({**record, "sha256": checkpoint._sha256_of_record(record)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "3"},
        {"step": None},
        {"step": -1},
        {"step": 3.5},
        {"skipped": None},
        {"seconds": "long"},
        {"best_val_loss": []},
        {"val_loss": "low"},
        {"losses": 7},
        {"losses": ["x"]},
        {"scaler": 7},
        {"scaler": {"scale": "large"}},
        {"tokenizer": None},
        {"tokenizer": {"kind": "byte"}},
    ],
)
def test_a_damaged_record_is_refused(tmp_path, changes):
    run = Run(tmp_path)
    run.precision = Precision(CPU, torch.float16)
    run.save()
    damage(tmp_path, **changes)
    with pytest.raises(UserError):
        run.restore()


def replace_tensors(run, kind, change):
    record, tensors = checkpoint.load(run.folder, "last", WHOLE)
    change(tensors[kind])
    for name in ("version", "files"):
        del record[name]
    checkpoint.save(run.folder, {"last": WHOLE}, tensors, record)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("weights", lambda w: w.pop("ln_f.weight")),
        ("weights", lambda w: w.update(more=torch.ones(1))),
        ("weights", lambda w: w.update({"ln_f.weight": torch.ones(5)})),
        ("weights", lambda w: w.update({"ln_f.weight": torch.ones(32, dtype=torch.float64)})),
        ("weights", lambda w: w.update({"ln_f.weight": torch.full((32,), float("nan"))})),
        ("optimizer", lambda o: o.pop("0/ln_f.weight/exp_avg")),
        ("optimizer", lambda o: o.update({"0/ln_f.weight/exp_avg": torch.ones(5)})),
        ("optimizer", lambda o: o.update({"0/ln_f.weight/more": torch.ones(32)})),
        ("optimizer", lambda o: o.update({"2/ln_f.weight/exp_avg": torch.ones(32)})),
        ("optimizer", lambda o: o.update({"0/ln_f.weight/step": torch.ones(32)})),
        ("random", lambda r: r.update({"cpu.0": torch.ones(5)})),
        ("random", lambda r: r.update({"cpu.0": torch.ones(5, dtype=torch.uint8)})),
    ],
)
def test_tensors_of_another_model_are_refused(tmp_path, kind, change):
    run = Run(tmp_path)
    run.step(0)
    run.save()
    replace_tensors(run, kind, change)
    with pytest.raises(UserError):
        run.restore()


def test_another_optimizer_s_state_is_refused(tmp_path):
    run = Run(tmp_path)
    run.step(0)
    run.save()
    run.optimizers = make_optimizers(run.model, TrainConfig(model=LECTURE), torch.optim.AdamW)
    with pytest.raises(UserError, match="resume with the --kernels and --optimizer of the run"):
        run.restore()


# --- a model to speak with ------------------------------------------------------------------------


@pytest.mark.parametrize("ops", [OPS, None])
def test_a_model_and_its_tokenizer_come_back(tmp_path, ops):
    run = Run(tmp_path)
    run.save(improved=True)
    model, tokenizer, record = load_model(tmp_path, "best", ops, CPU)
    assert tokenizer.characters == "abcdefghijk"
    assert record["step"] == 3
    assert not model.training
    tokens = draw_tokens(2, 8)
    assert torch.allclose(model(tokens)[0], run.model.eval()(tokens)[0], atol=1e-6)


def model_record(**changes):
    model = asdict(CONFIGS["modern"]) | changes
    return {**asdict(TrainConfig()), "model": model}


@pytest.mark.parametrize(
    "changes",
    [
        {"train": None},
        {"train": {}},
        {"train": {"lecture": "", "model": None}},
        {"train": {"lecture": "../bigram", "model": asdict(CONFIGS["modern"])}},
        {"train": {"lecture": "bigram", "model": asdict(CONFIGS["modern"])}},
        {"train": model_record(n_layer=3)},
        {"train": model_record(n_head=5)},
        {"train": model_record(n_embd=64)},
        {"train": model_record(vocab_size=12)},
        {"train": model_record(vocab_size=10)},
        {"train": model_record(activation="swish")},
        {"train": model_record(n_layer=0)},
        {"train": model_record(n_layer=10**9)},
        {"train": model_record(n_embd=2 * 10**9)},
        {"train": model_record(block_size=10**12)},
        {"train": model_record(vocab_size=10**15)},
        {"tokenizer": {"kind": "char", "characters": "ba"}},
        {"tokenizer": {"kind": "gpt2"}},
    ],
)
@pytest.mark.parametrize("ops", [OPS, None])
def test_a_model_that_is_not_its_weights_is_refused(tmp_path, changes, ops):
    Run(tmp_path).save(improved=True)
    damage(tmp_path, "best", **changes)
    with pytest.raises(UserError) as refusal:
        load_model(tmp_path, "best", ops, CPU)
    assert "\n" not in str(refusal.value)
