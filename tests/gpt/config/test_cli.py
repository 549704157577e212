"""The command line: nanoGPT's spellings, presets, what is refused; configs that survive json."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Literal

import pytest

from gpt import UserError
from gpt.config.cli import model_config_from_json, parse, parse_run, train_config_from_json
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig
from gpt.runs.checkpoint import write_json


def options(*arguments):
    return parse_run(list(arguments), "lecture")


@dataclass(frozen=True)
class Speech:
    start: str = "\n"
    count: int = 1
    warmth: float = 0.8
    loud: bool = False
    kind: Literal["plain", "fancy"] = "plain"


def speech(*arguments):
    return parse(Speech, Speech(), list(arguments), "Say something.")


# --- spellings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--n_layer=3"], {"n_layer": 3}),
        (["--n-layer", "3"], {"n_layer": 3}),
        (["--n-layer=5", "--n_layer=3"], {"n_layer": 3}),
        (["--bias=False"], {"bias": False}),
        (["--bias=True"], {"bias": True}),
        (["--no-bias"], {"bias": False}),
        (["--activation", "gelu"], {"activation": "gelu"}),
    ],
)
def test_the_model_s_options(arguments, expected):
    assert options(*arguments).model == replace(PRESETS["lecture"].model, **expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset=shakespeare_char"], {"data": "shakespeare_char"}),
        (["--compile=False"], {"compile": False}),
        (["--compile"], {"compile": True}),
        (["--gradient_accumulation_steps=4"], {"gradient_accumulation_steps": 4}),
        (["--learning_rate=6e-4", "--lr_decay_iters", "70"], {"learning_rate": 6e-4}),
        (["--max-steps", "7"], {"max_iters": 7}),
        (["--out-dir", "a=b"], {"out_dir": "a=b"}),
        (["--out-dir=--odd"], {"out_dir": "--odd"}),
        (["--min-lr", "0"], {"min_lr": 0.0}),
    ],
)
def test_nanogpt_s_spellings(arguments, expected):
    config = options(*arguments)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("start", ["12+34=", "--x", "True", "a_b", "", "-1", "FILE:a b.txt", "\n"])
def test_a_text_is_taken_as_it_is(start):
    assert speech(f"--start={start}").start == start
    if not start.startswith("--"):  # else it is an option
        assert speech("--start", start).start == start


def test_the_types_of_values():
    said = speech("--count", "3", "--warmth", "2", "--loud", "--kind=fancy")
    assert said == Speech(count=3, warmth=2.0, loud=True, kind="fancy")
    assert type(said.warmth) is float


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        options("--help")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in printed for name in asdict(ModelConfig()))
    assert "sequences in one forward pass" in printed


# --- presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_name_s(name):
    config = options("--preset", name)
    assert config == PRESETS[name]
    assert config.preset == name


def test_the_lecture_s_numbers():
    config = options()
    assert (config.batch_size, config.model.block_size, config.max_iters) == (64, 256, 5000)
    assert (config.learning_rate, config.eval_interval) == (3e-4, 500)
    assert (config.model.n_embd, config.model.n_head, config.model.n_layer) == (384, 6, 6)
    assert config.model.dropout == 0.2
    assert not config.decay_lr


def test_nanogpt_s_numbers():
    config = PRESETS["shakespeare-char"]
    assert (config.batch_size, config.model.block_size, config.max_iters) == (64, 256, 5000)
    assert (config.learning_rate, config.min_lr, config.warmup_iters) == (1e-3, 1e-4, 100)
    assert (config.beta2, config.weight_decay, config.grad_clip) == (0.99, 0.1, 1.0)
    assert config.eval_interval == 250
    assert not config.model.bias
    gpt2 = PRESETS["gpt2"]
    assert gpt2.batch_size * gpt2.model.block_size * gpt2.gradient_accumulation_steps == 491_520
    sizes = [
        (c.model.n_layer, c.model.n_head, c.model.n_embd)
        for c in (gpt2, *(PRESETS[f"gpt2-{size}"] for size in ("medium", "large", "xl")))
    ]
    assert sizes == [(12, 12, 768), (24, 16, 1024), (36, 20, 1280), (48, 25, 1600)]


def test_a_step_of_the_lecture_starts_small():
    assert options("--lecture", "bigram").preset == "lecture-small"
    assert options("--lecture", "bigram", "--preset", "lecture").preset == "lecture"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--n-lyaer", "3"], "Unrecognized options: --n-lyaer, 3; perhaps you meant: --n-layer"),
        (["--learning_rat=3"], "perhaps you meant: --learning-rate"),
        (["--zzz"], "Unrecognized options: --zzz; --help lists all"),
        (["--no-batch-size"], "Unrecognized options: --no-batch-size"),
        (["--model.n-layer", "3"], "Unrecognized options: --model.n-layer"),
        (["train"], "Unrecognized options: train"),
        (["-n", "3"], "Unrecognized options: -n, 3"),
        (["config/train_gpt2.py"], "Unrecognized options: config/train_gpt2.py"),
        (["--batch-size"], "Missing value for argument '--batch-size'"),
        (["--batch-size", "--compile"], "Missing value for argument '--batch-size'"),
        (["--batch-size", "x"], "Error parsing --batch-size: invalid literal for int()"),
        (["--batch-size", "1.5"], "Error parsing --batch-size: invalid literal for int()"),
        (["--batch-size="], "Error parsing --batch-size: invalid literal for int()"),
        (["--learning-rate", "fast"], "Error parsing --learning-rate: could not convert string"),
        (["--compile=maybe"], "Unrecognized options: maybe"),
        (["--activation", "swish"], "invalid choice 'swish' for argument '--activation'"),
        (["--preset", "lectur"], "--preset lectur is unknown; did you mean lecture"),
        (["--preset", "7"], "--preset 7 is unknown; choose quickstart, lecture"),
        (["--batch-size", "0"], "--batch-size is 0, and must be a number of at least 1"),
        (["--max-iters", "-1"], "--max-iters is -1, and must be a number of at least 0"),
        (["--learning-rate", "nan"], "--learning-rate is nan"),
        (["--learning-rate", "inf"], "--learning-rate is inf"),
        (["--grad-clip=-1"], "--grad-clip is -1.0"),
        (["--beta1", "1"], "--beta1 must be at least 0 and less than 1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", str(2**63)], "must be less than 2^63"),
        (["--learning-rate", "0", "--decay-lr"], "--learning-rate must be above 0"),
        (["--parallel=fsdp", "--optimizer=muon"], "fsdp cannot be had with --optimizer muon; use"),
        (["--parallel=fsdp", "--compile"], "fsdp cannot be had with --compile; use"),
        (["--parallel=fsdp", "--lecture=bigram"], "fsdp cannot be had with --lecture; use"),
        (["--out-dir", ""], "--out-dir is empty"),
        (["--resume", "--out-dir", "nowhere"], "nowhere/last.json does not exist"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, sentence):
    with pytest.raises(UserError) as refusal:
        options(*arguments)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


# --- a run to go on with --------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    config = replace(PRESETS["quickstart"], data="python-docs", max_iters=9, out_dir="elsewhere")
    write_json(tmp_path / "last.json", {"train": asdict(config)})
    return tmp_path, config


@pytest.mark.parametrize("how", [["--resume"], ["--resume=True"], ["--init-from", "resume"]])
def test_resuming_takes_the_run_s_own_options(run, how):
    folder, config = run
    resumed = options(*how, "--out-dir", str(folder), "--max-iters", "12")
    expected = replace(config, max_iters=12, out_dir=str(folder), resume=True, init_from="resume")
    assert resumed == expected


def test_the_folder_of_a_run_may_have_moved(run, monkeypatch):
    folder, _ = run
    (folder / "out").mkdir()
    (folder / "last.json").rename(folder / "out" / "last.json")
    monkeypatch.chdir(folder)
    assert options("--resume").out_dir == "out"


@pytest.mark.parametrize(
    "change",
    ["--n-layer=7", "--preset=lecture", "--data=x", "--optimizer=adamw", "--seed=1", "--bias"],
)
def test_what_cannot_change_when_a_run_is_resumed(run, change):
    folder, _ = run
    with pytest.raises(UserError, match="cannot change when a run is resumed; it was"):
        options("--resume", "--out-dir", str(folder), change)


# --- configs in json ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name):
    record = json.loads(json.dumps(asdict(PRESETS[name])))
    assert train_config_from_json(record, "x") == PRESETS[name]
    assert model_config_from_json(record["model"], "x") == PRESETS[name].model


@pytest.mark.parametrize(
    "change",
    [
        {"n_layer": "6"},
        {"n_layer": 6.0},
        {"n_layer": True},
        {"n_layer": None},
        {"bias": 1},
        {"dropout": "0"},
        {"dropout": True},
        {"activation": "swish"},
        {"activation": ["relu"]},
        {"more": 1},
    ],
)
def test_a_damaged_config_is_refused(change):
    record = asdict(ModelConfig()) | change
    with pytest.raises(UserError, match=r"^last\.json"):
        model_config_from_json(record, "last.json")
    with pytest.raises(UserError, match=r"^last\.json"):
        train_config_from_json(asdict(TrainConfig()) | {"model": record}, "last.json")


@pytest.mark.parametrize("record", [None, [], "", 0, {}])
def test_a_record_that_is_no_config_is_refused(record):
    with pytest.raises(UserError, match="x is not of this version: see everything"):
        model_config_from_json(record, "x")


def test_what_an_older_version_did_not_know_has_its_default():
    old = asdict(replace(PRESETS["gpt2"], seed=7))
    del old["model"]["n_kv_head"], old["model"]["window"], old["nan"]
    assert train_config_from_json(old, "x") == replace(PRESETS["gpt2"], seed=7)


def test_what_only_a_newer_version_knows_is_refused():
    new = asdict(PRESETS["gpt2"]) | {"speed": 2}
    with pytest.raises(UserError, match=r"^x is not of this version: see speed$"):
        train_config_from_json(new, "x")
