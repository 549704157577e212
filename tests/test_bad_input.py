"""What people and disks do wrong: each ends in one sentence and exit code 2, nothing half-written.

One table. A case is a program, its options, and words of the sentence; FOLDER stands for a folder
with a finished run in `run`, which the case may damage first.
"""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sample
import train
from gpt.runs import checkpoint
from tests.runs import CPU, SHORT, SIZES, run

RUN = "--out-dir=FOLDER/run"
NEW = "--out-dir=FOLDER/new"


def text(content):
    def prepare(folder):
        (folder / "text").write_bytes(content)

    return prepare


def tokens(train=b"\0\0" * 50, val=b"\0\0" * 50, **meta):
    def prepare(folder):
        (folder / "tokens").mkdir()
        for name, content in (("train.bin", train), ("val.bin", val), *meta.items()):
            path = folder / "tokens" / name.replace("_", ".")
            path.write_bytes(content)

    return prepare


def edit(name, **changes):
    """The record of a checkpoint, changed and signed again."""

    def prepare(folder):
        path = folder / "run" / name
        record = json.loads(path.read_text())
        for key, value in changes.items():
            inner, _, last = key.rpartition("__")
            (record[inner] if inner else record)[last] = value
        del record["sha256"]
        path.write_text(json.dumps({**record, "sha256": checkpoint._sha256_of_record(record)}))

    return prepare


def tensors(name, change):
    """The tensors of a checkpoint, changed and signed again."""

    def prepare(folder):
        record = json.loads((folder / "run" / f"{name}.json").read_text())
        path = folder / "run" / record["files"]["weights"]["name"]
        weights = load_file(path)
        change(weights)
        save_file(weights, path)
        files = record["files"]
        files["weights"]["sha256"] = checkpoint._sha256_of_file(path)
        edit(f"{name}.json", files=files)(folder)

    return prepare


def damage(pattern, change):
    """The bytes of a file, changed."""

    def prepare(folder):
        path = sorted((folder / "run").glob(pattern))[-1]
        path.write_bytes(change(path.read_bytes()))

    return prepare


def remove(pattern):
    def prepare(folder):
        for path in (folder / "run").glob(pattern):
            path.unlink()

    return prepare


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def other_text(folder):
    (folder / "other").write_text("klmnopqrstuv" * 40)
    edit("last.json", train__data=str(folder / "other"))(folder)


def spoil(weights):
    weights["ln_f.weight"][0] = float("nan")


class Planted:
    def __reduce__(self):
        return os._exit, (1,)


META = {"itos": {0: "a"}, "stoi": {"a": 0}}
TRAIN_TEXT = ["--data=FOLDER/text", NEW]
TRAIN_TOKENS = ["--data=FOLDER/tokens", NEW]
RESUME = ["--resume", "--max-iters=9", RUN]


TRAIN = [
    # options
    (["--n-lyaer=3"], "--n-layer", None),
    (["--learning_rat", "1"], "--learning-rate", None),
    (["something"], "something", None),
    (["--batch-size=x"], "--batch-size", None),
    (["--batch-size=1.5"], "--batch-size", None),
    (["--batch-size"], "--batch-size", None),
    (["--activation=swish"], "--activation", None),
    (["--dtype=float8"], "--dtype", None),
    (["--optimizer=sgd"], "--optimizer", None),
    (["--nan=ignore"], "--nan", None),
    (["--preset=lectur"], "--preset lectur is unknown; did you mean lecture", None),
    (["--preset=7"], "--preset 7 is unknown; choose", None),
    (["--lecture=bigramm"], "--lecture bigramm is unknown", None),
    (["--kernels=cuda"], "kernels: 'cuda' is unknown", None),
    (["--kernels=torch,attention"], "is not an override", None),
    (["--kernels=torch,attentoin=torch"], "is not an override", None),
    (["--device=tpu"], "--device tpu", None),
    (["--device=meta"], "--device meta", None),
    (["--device=cuda:99"], "--device cuda:99", None),
    # numbers
    (["--batch-size=0"], "--batch-size is 0", None),
    (["--batch-size=-4"], "--batch-size is -4", None),
    (["--max-iters=-1"], "--max-iters is -1", None),
    (["--eval-interval=0"], "--eval-interval is 0", None),
    (["--log-interval=0"], "--log-interval is 0", None),
    (["--learning-rate=nan"], "--learning-rate is nan", None),
    (["--learning-rate=-1"], "--learning-rate is -1", None),
    (["--grad-clip=inf"], "--grad-clip is inf", None),
    (["--beta2=1"], "--beta2 must be", None),
    (["--dropout=1"], "--dropout must be", None),
    (["--dropout=nan"], "--dropout must be", None),
    (["--seed=-1"], "--seed is -1", None),
    ([f"--seed={2**64}"], "less than 2^63", None),
    (["--keep=-1"], "--keep is -1", None),
    (["--n-head=3"], "--n-embd 16 cannot be divided into 3 heads", None),
    (["--n-head=0"], "--n-head must be at least 1", None),
    (["--n-kv-head=3"], "--n-kv-head 3 does not divide --n-head 2", None),
    (["--n-kv-head=-1"], "--n-kv-head -1 does not divide", None),
    (["--window=-1"], "--window must be at least 1, or 0", None),
    (["--n-layer=0"], "--n-layer must be at least 1", None),
    (["--n-layer=999999999"], "--n-layer must be at most", None),
    (["--n-embd=2000000000"], "this machine has", None),
    (["--kernels=reference", "--block-size=99999999"], "at least 100000000", None),
    (["--n-head=16", "--position=rope"], "the head size must be even", None),
    (["--vocab-size=5"], "--vocab-size 5 is less than the 12 tokens", None),
    (["--tokens-per-step=33"], "--tokens-per-step 33 is no multiple", None),
    (["--tokens-per-step=32", "--gradient-accumulation-steps=1"], "not both", None),
    (["--block-size=400"], "a block of 400 needs at least 401", None),
    (["--block-size=50"], "the validation split of", None),
    # texts
    (["--data=FOLDER/nothing", NEW], "no such file or folder", None),
    ([f"--data={'x' * 400}", NEW], "File name too long", None),
    (["--data=FOLDER", NEW], "train.bin is missing", None),
    (TRAIN_TEXT, "text has 0 characters", text(b"")),
    (TRAIN_TEXT, "text has 1 characters", text(b"a")),
    (TRAIN_TEXT, "the training split", text(b"ab")),
    (TRAIN_TEXT, "is not UTF-8 text (byte 2", text(b"ab\xff\xfe" * 99)),
    (TRAIN_TEXT, "is not UTF-8 text (byte 0", text(bytes(range(255, -1, -1)) * 9)),
    # token files
    (TRAIN_TOKENS, "no whole number of uint16 tokens", tokens(b"", meta_json=b'{"kind":"byte"}')),
    (TRAIN_TOKENS, "no whole number", tokens(b"\0" * 99, meta_json=b'{"kind":"byte"}')),
    (TRAIN_TOKENS, "has the token 256", tokens(b"\0\1" * 50, meta_json=b'{"kind":"byte"}')),
    (
        TRAIN_TOKENS,
        "token-file version 9",
        tokens(np.array([20240520, 9, 50], "<i4").tobytes() + b"\0" * 2000),
    ),
    (TRAIN_TOKENS, "meta.json cannot be read", tokens(meta_json=b"{")),
    (TRAIN_TOKENS, "the tokenizer None is unknown", tokens(meta_json=b"{}")),
    (TRAIN_TOKENS, "the tokenizer's characters", tokens(meta_json=b'{"kind":"char"}')),
    (TRAIN_TOKENS, "meta.pkl cannot be read", tokens(meta_pkl=b"\x80\x04garbage")),
    (TRAIN_TOKENS, "meta.pkl cannot be read", tokens(meta_pkl=pickle.dumps(Planted()))),
    (TRAIN_TOKENS, "has no character table", tokens(meta_pkl=pickle.dumps({"itos": 1}))),
    (TRAIN_TOKENS, "the training split", tokens(b"\0\0" * 4, meta_pkl=pickle.dumps(META))),
    # folders
    (["--out-dir="], "--out-dir", None),
    (["--out-dir=FOLDER/file"], "cannot be used", lambda folder: (folder / "file").write_text("")),
    (["--out-dir=/dev/null/x"], "cannot be used", None),
    # runs to go on with
    (["--resume", NEW], "new/last.json does not exist", None),
    ([*RESUME[:1], RUN, "--max-iters=2"], "the run has taken 4 steps", None),
    ([*RESUME, "--n-layer=3"], "--n-layer cannot change", None),
    ([*RESUME, "--seed=3"], "--seed cannot change", None),
    ([*RESUME, "--optimizer=muon"], "--optimizer cannot change", None),
    (RESUME, "last.json is not JSON", damage("last.json", lambda content: content[:100])),
    (RESUME, "last.json is not JSON", damage("last.json", lambda content: b"\xff" + content)),
    (RESUME, "last.json", damage("last.json", flip)),
    (RESUME, "last.json has version 2", edit("last.json", version=2)),
    (RESUME, "is damaged: its sha256", damage("*.weights.*", flip)),
    (RESUME, "is damaged: its sha256", damage("*.optimizer.*", lambda content: content[:-9])),
    (RESUME, "is damaged: its sha256", damage("*.random.*", lambda content: b"")),
    (RESUME, "is missing, though", remove("*.optimizer.*")),
    (RESUME, "last.json names no random", edit("last.json", files__random=None)),
    (
        RESUME,
        "no tensor file of its own folder",
        edit("last.json", files__weights={"name": "../x", "sha256": ""}),
    ),
    (RESUME, "is not of this version", edit("last.json", train=None)),
    (RESUME, "last.json: seed is '1'", edit("last.json", train__seed="1")),
    (RESUME, "--batch-size is 0", edit("last.json", train__batch_size=0)),
    (RESUME, "does not say how far the run is", edit("last.json", step="4")),
    (RESUME, "is not the text that the run", other_text),
    (RESUME, "ln_f.weight is not of finite", tensors("last", spoil)),
    (RESUME, "'ln_f.weight' is missing", tensors("last", lambda w: w.pop("ln_f.weight"))),
    (RESUME, "the model has no 'more'", tensors("last", lambda w: w.update(more=torch.ones(1)))),
]

SAMPLE = [
    (["--strat=x"], "--strat", None),
    (["--temperature=hot"], "--temperature", None),
    (["--temperature=-1"], "--temperature must be", None),
    (["--temperature=nan"], "--temperature must be", None),
    (["--top-p=0"], "--top-p must be", None),
    (["--top-p=1.5"], "--top-p must be", None),
    (["--top-k=-1"], "--top-k must be", None),
    (["--num-samples=0"], "--num-samples must be", None),
    (["--max-new-tokens=0"], "--max-new-tokens must be", None),
    (["--checkpoint=first"], "--checkpoint", None),
    (["--kernels=cuda"], "kernels: 'cuda' is unknown", None),
    (["--device=tpu"], "--device tpu", None),
    (["--start="], "the prompt is empty", None),
    (["--start=aé"], "the character 'é' is not in this model's vocabulary", None),
    (["--start=aXb"], "the character 'X'", None),
    (["--start=a\udcff"], "the character '\\udcff'", None),
    (["--start=FILE:FOLDER/nothing"], "cannot be read: No such file", None),
    (["--start=FILE:FOLDER"], "cannot be read: Is a directory", None),
    (["--start=FILE:FOLDER/empty"], "the prompt is empty", lambda f: (f / "empty").write_text("")),
    (["--start=FILE:FOLDER/text"], "is not UTF-8", text(b"\xff")),
    ([NEW], "best.json does not exist", None),
    (["--out-dir="], "best.json does not exist", None),
    ([RUN], "best.json is not JSON", damage("best.json", lambda content: b"")),
    ([RUN], "best.json is not JSON", damage("best.json", lambda content: b"[" * 99_999)),
    ([RUN], "best.json is not a JSON object", damage("best.json", lambda content: b"[]")),
    ([RUN], "best.json is damaged", damage("best.json", lambda content: b'{"version": 1}')),
    ([RUN], "is missing, though", remove("*.weights.*")),
    ([RUN], "is damaged: its sha256", damage("*.weights.*", lambda content: content + b"x")),
    ([RUN], "names no weights", edit("best.json", files={})),
    ([RUN], "does not say how the model was trained", edit("best.json", train=[])),
    ([RUN], "is not of this version", edit("best.json", train={"lecture": "", "model": {}})),
    ([RUN], "the tokenizer 'word' is unknown", edit("best.json", tokenizer={"kind": "word"})),
    ([RUN], "fewer tokens than its tokenizer", edit("best.json", tokenizer={"kind": "byte"})),
    ([RUN], "is not of finite fp32 numbers", tensors("best", spoil)),
    ([RUN], "is not of finite fp32", tensors("best", lambda w: w.update(x=torch.ones(1).half()))),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad-input")
    assert run(folder / "run") == 0
    return folder


def cases():
    found = []
    for program, table in ((train, TRAIN), (sample, SAMPLE)):
        for options, sentence, prepare in table:
            name = f"{program.__name__} {' '.join(options)[:40]}: {sentence[:30]}"
            found.append(pytest.param(program, options, sentence, prepare, id=name))
    return found


def snapshot(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("program", "options", "sentence", "prepare"), cases())
def test_one_sentence_and_exit_code_2(
    trained, tmp_path, monkeypatch, capsys, program, options, sentence, prepare
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    shutil.copytree(trained, folder)
    if prepare:
        prepare(folder)
    options = [option.replace("FOLDER", str(folder)) for option in options]
    if program is train and "--resume" not in options:
        base = ["--preset=shakespeare-char", f"--data={folder / 'text'}", *SIZES, *CPU, *SHORT]
        options = [*base, f"--out-dir={folder / 'new'}", *options]
    elif program is sample:
        options = ["--device=cpu", f"--out-dir={folder / 'run'}", *options]
    before = snapshot(folder)
    assert program.main(options) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"{program.__name__}.py: ")
    assert sentence in said[0]
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before  # nothing was changed
    assert all(name.endswith("/lock") for name in after.keys() - before.keys())


def test_the_table_is_as_long_as_it_says():
    assert len(TRAIN) + len(SAMPLE) >= 120
