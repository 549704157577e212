"""The command line: spellings of options, mistakes, and where a run's defaults come from."""

import json
from dataclasses import dataclass, replace

import pytest

from gpt import UserError
from gpt.config.base import Config, option
from gpt.config.cli import parse, parse_run
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig
from gpt.models.lecture import STAGES

CHANGES = ("--n-layer=7", "--preset=lecture", "--optimizer=adamw", "--seed=1", "--bias")


def options(*arguments):
    return parse_run(list(arguments), "lecture")


@dataclass(frozen=True)
class Speech(Config):
    words: tuple[str, ...] = option((), "what to say", positional=True)
    start: str = option("\n", "the first words")
    count: int = option(1, "how often, 100% of the time")


def speech(*arguments):
    return parse(Speech(), list(arguments), "Say something.")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--n-layer=5 --n_layer=3", {"n_layer": 3}),
        ("--no-bias --qkv_bias", {"bias": False, "qkv_bias": True}),
        ("--head_bias=True --no_head_bias", {"head_bias": False}),
        ("--qk_norm=true --activation gelu", {"qk_norm": True, "activation": "gelu"}),
        ("--dataset=shakespeare_char --compile", {"data": "shakespeare_char", "compile": True}),
        ("--learning_rate=6e-4 --min-lr 0", {"learning_rate": 6e-4, "min_lr": 0.0}),
        ("--max_steps=7 --max-steps 8 --lr=1", {"max_iters": 8, "learning_rate": 1.0}),
        ("--wandb_log=True", {"log": "wandb"}),
        ("--log=wandb --wandb_log=False", {"log": "none"}),
    ],
)
def test_spellings_of_nanogpt_are_accepted(arguments, expected):
    default, config = PRESETS["lecture"], options(*arguments.split())
    of_model = {name: value for name, value in expected.items() if hasattr(default.model, name)}
    of_run = {name: value for name, value in expected.items() if name not in of_model}
    assert config == replace(default, model=replace(default.model, **of_model), **of_run)


@pytest.mark.parametrize("start", ["12+34=", "--x", "True", "a_b", "-1", "FILE:a b.txt", "\n"])
def test_a_text_is_taken_literally(start):
    assert speech(f"--start={start}").start == start
    if not start.startswith("--"):  # that would be an option
        assert speech("--start", start).start == start


def test_help_lists_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        options("--help")
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    names = [*vars(ModelConfig()), *(name for name in vars(TrainConfig()) if name != "model")]
    assert [name for name in names if f"--{name.replace('_', '-')}" not in printed] == []
    for part in ("--batch-size N sequences in a forward pass (default: 64)", "--bias, --no-bias"):
        assert part in printed
    printed = printed.replace("- ", "-")  # argparse breaks lines after a hyphen
    for name in (*PRESETS, *STAGES):
        assert name in printed.replace("gpt2[-medium|-large|-xl]", "gpt2-medium gpt2-large gpt2-xl")
    assert "--position {learned,rope}" in printed
    assert "--max-steps" not in printed
    with pytest.raises(SystemExit):
        speech("--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "[options] [words]" in printed
    assert r"the first words (default: \n)" in printed
    assert "100% of the time (default: 1)" in printed


@pytest.mark.parametrize("preset", ["shakespeare-char", "gpt2", "speedrun", "lecture"])
def test_dropout_and_bias_of_nanogpt_s_presets_cover_what_nanogpt_s_do(preset):
    model = options("--preset", preset, "--dropout=0.3", "--bias=True").model
    of_nanogpt = preset != "lecture"  # which has no biases in q, k, v and no embedding dropout
    assert model.has_qkv_bias == of_nanogpt
    assert model.embedding_dropout_p == (0.3 if preset in ("shakespeare-char", "gpt2") else 0)
    assert options("--preset", preset, "--embedding-dropout=0.1").model.embedding_dropout_p == 0.1


def test_a_stage_of_the_lecture_starts_with_the_small_preset():
    assert options("--lecture", "bigram").preset == "lecture-small"
    assert options("--lecture", "bigram", "--preset", "lecture").preset == "lecture"


def test_init_from_replaces_the_model_of_the_preset():
    model = ModelConfig(n_layer=2, n_embd=32, n_head=2)
    arguments = ["--init-from=run", "--dropout=0.5"]
    config = parse_run(arguments, "gpt2", lambda name, _: {"model": model, "data": name})
    model = replace(model, dropout=0.5)
    assert config == replace(PRESETS["gpt2"], init_from="run", data="run", model=model)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config of a run that was moved to the folder `out`."""
    config = replace(PRESETS["quickstart"], data="python-docs", max_iters=9, out_dir="elsewhere")
    (tmp_path / "out").mkdir()
    config = replace(config, log="wandb")
    record = {"train": config.to_dict(), "data": {}}
    (tmp_path / "out" / "last.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    return config


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--n-lyaer", "3"], "--n-lyaer is not an option; did you mean --n-layer?"),
        (["--n-lay=3"], "--n-lay is not an option"),  # no abbreviations
        (["--zzz"], "--zzz is not an option; --help lists the options"),
        (["train_gpt2.py"], "is a config file, which is not read; use --preset with one of quicks"),
        (["my.txt"], "my.txt is not an option; did you mean --data my.txt?"),
        (["--wandb_run_name=x"], "--wandb-run-name is not an option; set the environment"),
        (["--wandb_log=maybe"], "--wandb-log is not an option; it is True or False"),
        (["--batch-size"], "--batch-size: expected one argument; --help lists the options"),
        (["--batch_size", "1.5"], "--batch-size: invalid int value: '1.5'"),
        (["--learning-rate", "fast"], "--learning-rate: invalid float value: 'fast'"),
        (["--compile=maybe"], "a switch is True or False, not 'maybe'"),
        (["--preset", "lectur"], "--preset lectur is unknown; did you mean lecture"),
        (
            ["--preset", "7"],
            "--preset 7 is unknown; choose one of quickstart, laptop, lecture-fast",
        ),
        (["--resume", "--out-dir", "nowhere"], "nowhere/last.json does not exist"),
        (["--resume", "--max-iters=12"], "decays to 0 at step 9, before --max-iters 12; add --lr-"),
        *((["--resume", change], "cannot change with --resume; it was") for change in CHANGES),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(config, arguments, sentence):
    with pytest.raises(UserError) as refusal:
        options(*arguments)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("how", [["--resume"], ["--resume=True"], ["--init-from", "resume"]])
def test_resume_takes_the_options_of_the_run(config, how):
    """But for --log, which would send the metrics of anyone's folder to W&B."""
    changes = {"keep": 2, "out_dir": "out", "resume": True, "init_from": "resume"}
    assert options(*how, "--keep", "2") == replace(config, **changes, log="none")
    assert options(*how, "--log=wandb", "--keep=2") == replace(config, **changes)


def test_resume_keeps_the_schedule_of_the_learning_rate(config):
    """The cosine to 0 at step 9 is not stretched to a larger --max-iters, nor cut by a smaller."""
    assert options("--resume", "--max-iters=12", "--min-lr=1e-3").lr_decay_iters == 9
    assert options("--resume", "--max-iters=7").lr_decay_iters == 9
    assert options("--resume", "--max-iters=12", "--lr-decay-iters=12").lr_decay_iters == 12
    assert options("--resume").lr_decay_iters == 0  # max_iters, still
