"""The command line: tyro's options under nanoGPT's names, over a preset's defaults.

Dashes and underscores are the same, `--compile`, `--compile=True` and `--no-compile` are switches,
and of an option that is given twice the last one counts. What is wrong is told in one sentence.
"""

import contextlib
import dataclasses
import difflib
import io
from pathlib import Path
from typing import Literal, get_args, get_origin

import tyro

from gpt import UserError
from gpt.config.model import ModelConfig
from gpt.config.presets import PRESETS
from gpt.config.train import TrainConfig
from gpt.runs.checkpoint import read_json

ALIASES = {"--dataset": "--data", "--max-steps": "--max-iters"}
SWITCHES = {"True": "--", "true": "--", "False": "--no-", "false": "--no-"}  # nanoGPT's spelling
SEEDS = 2**63  # PyTorch's generators take as many


def parse(kind: type, default, arguments: list[str], description: str):
    """The record of type `kind` that the arguments make of `default`."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                default=default,
                args=[_plain(argument, _switches(kind)) for argument in arguments],
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as end:
        if end.code == 0:  # --help
            raise
        raise UserError(_sentence(said.getvalue())) from None


def parse_run(arguments: list[str], default_preset: str, defaults_of=None) -> TrainConfig:
    """A run's options over its preset's, or over those of the run that `--resume` goes on with.

    `defaults_of` gives what changes of these when `--init-from` names weights: the model.
    """
    resumed, source = None, _value(arguments, "--init-from") or "scratch"
    if _value(arguments, "--resume") or source == "resume":
        folder = _value(arguments, "--out-dir") or TrainConfig.out_dir
        path = Path(folder) / "last.json"
        resumed = train_config_from_json(read_json(path).get("train"), path)
        going_on = {"resume": True, "init_from": "resume", "out_dir": folder}
        default = dataclasses.replace(resumed, **going_on)
    else:
        if _value(arguments, "--lecture"):
            default_preset = "lecture-small"
        preset = _value(arguments, "--preset") or default_preset
        if preset not in PRESETS:
            near = difflib.get_close_matches(preset, PRESETS)
            hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(PRESETS)}"
            raise UserError(f"--preset {preset} is unknown; {hint}")
        default = PRESETS[preset]
        if source != "scratch" and defaults_of is not None:
            default = dataclasses.replace(default, **defaults_of(source))
    config = check(parse(TrainConfig, default, arguments, "Train a GPT."))
    if resumed is not None:
        names = [field.name for field in dataclasses.fields(ModelConfig)]
        _refuse_change(config.model, resumed.model, names)
        names = ("preset", "data", "tokenizer", "lecture", "optimizer", "seed")
        _refuse_change(config, resumed, names)
    return config


def _switches(kind: type) -> set[str]:
    """The options of `kind` that are true or false."""
    options = set()
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            options |= _switches(field.type)
        elif field.type is bool:
            options.add(_option(field.name))
    return options


def _plain(argument: str, switches: set[str]) -> str:
    """nanoGPT's spellings as tyro's: --dataset=x, --compile=False, --n_layer=3."""
    if not argument.startswith("--"):
        return argument
    written, equals, value = argument.partition("=")
    option = written.replace("_", "-")
    option = ALIASES.get(option, option)
    if option in switches and value in SWITCHES:
        return option.replace("--", SWITCHES[value], 1)
    return option + equals + value


def _value(arguments: list[str], option: str) -> str:
    """The last value given to one option, before all are parsed; a switch's is its own name."""
    found = ""
    plain = [_plain(argument, {"--resume"}) for argument in arguments]
    for argument, after in zip(plain, [*arguments[1:], ""], strict=False):
        if argument.startswith(option + "="):
            found = argument.partition("=")[2]
        elif argument == option:
            found = option if option == "--resume" else after
    return found


def _sentence(box: str) -> str:
    """tyro's words about a wrong option, out of the box that it draws around them."""
    lines = [line.strip("│| ") for line in box.splitlines()]
    words = []
    for line in lines[1:]:  # the first is the box's title
        if line.startswith(("For full helptext", "Argument helptext", "In ")):
            break
        if line.strip("─-╰╯+"):  # no rule
            words.append(line)
    return " ".join(words).replace(" Perhaps", "; perhaps").rstrip(".") + "; --help lists all"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse_change(config, resumed, names) -> None:
    for name in names:
        if getattr(config, name) != getattr(resumed, name):
            raise UserError(
                f"{_option(name)} cannot change when a run is resumed; "
                f"it was {getattr(resumed, name)!r}"
            )


def check(config: TrainConfig) -> TrainConfig:
    """Refuse numbers that make no run."""
    for name, least in (
        ("batch_size", 1),
        ("max_iters", 0),
        ("eval_interval", 1),
        ("log_interval", 1),
        ("eval_iters", 0),
        ("tokens_per_step", 0),
        ("gradient_accumulation_steps", 0),
        ("warmup_iters", 0),
        ("lr_decay_iters", 0),
        ("sample", 0),
        ("keep", 0),
        ("seed", 0),
        ("learning_rate", 0),
        ("muon_learning_rate", 0),
        ("min_lr", 0),
        ("weight_decay", 0),
        ("grad_clip", 0),
    ):
        value = getattr(config, name)
        if not least <= value < float("inf"):
            raise UserError(f"{_option(name)} is {value}, and must be a number of at least {least}")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"--{name} must be at least 0 and less than 1")
    if config.seed >= SEEDS:
        raise UserError(f"--seed is {config.seed}, and must be less than 2^63")
    if config.decay_lr and config.learning_rate == 0:
        raise UserError("--learning-rate must be above 0 when --decay-lr scales it")
    if config.parallel == "fsdp":
        for option, given in (
            ("--optimizer muon", config.optimizer == "muon"),  # a share of a matrix is no matrix
            ("--compile", config.compiles_model),
            ("--lecture", bool(config.lecture)),
        ):
            if given:
                raise UserError(f"--parallel fsdp cannot be had with {option}; use --parallel ddp")
    if not config.out_dir:
        raise UserError("--out-dir is empty; name a folder for the run")
    return config


def train_config_from_json(record: dict, source) -> TrainConfig:
    """The TrainConfig that `dataclasses.asdict` made a record of."""
    return _from_json(TrainConfig, record, source)


def model_config_from_json(record: dict, source) -> ModelConfig:
    """The ModelConfig that `dataclasses.asdict` made a record of."""
    return _from_json(ModelConfig, record, source)


def _from_json(kind: type, record: dict, source):
    """What an older version did not know of has its default, which is how that version was."""
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    known = isinstance(record, dict) and record and record.keys() <= fields.keys()
    if not known:
        names = (isinstance(record, dict) and record.keys() - fields.keys()) or {"everything"}
        raise UserError(f"{source} is not of this version: see {', '.join(sorted(names))}")
    values = {}
    for name, value in record.items():
        type_ = fields[name]
        if type_ is ModelConfig:
            value = model_config_from_json(value, source)
        elif type_ is float and type(value) is int:
            value = float(value)
        elif get_origin(type_) is Literal:
            if value not in get_args(type_):
                raise UserError(f"{source}: {name} is {value!r}, which is unknown")
        elif type(value) is not type_:
            raise UserError(f"{source}: {name} is {value!r}, which is no {type_.__name__}")
        values[name] = value
    return kind(**values)
