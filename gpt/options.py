"""The command line: a record's fields as options under nanoGPT's names, over a preset's defaults.

Dashes and underscores are the same, `--compile`, `--compile=True` and `--no-compile` are switches,
and of an option that is given twice the last one counts. What is wrong is refused by name, with
the nearest ones; `--help` is tyro's.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Literal, get_args, get_origin

import tyro

from gpt import Refused
from gpt.checkpoint import read_json
from gpt.presets import PRESETS, ModelConfig, TrainConfig

ALIASES = {"--dataset": "--data", "--max-steps": "--max-iters"}
SWITCH = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
SEEDS = 2**63  # PyTorch's generators take as many


def parse(kind: type, default, arguments: list[str], description: str):
    """The record of type `kind` that the arguments make of `default`."""
    _help_if_asked(kind, default, arguments, description)
    return _replace(default, read_arguments(kind, arguments))


def parse_run(arguments: list[str], default_preset: str) -> TrainConfig:
    """A run's options over its preset's, or over those of the run that `--resume` goes on with."""
    given = read_arguments(TrainConfig, arguments)
    resumed = None
    if given.get("--resume") or given.get("--init-from") == "resume":
        given |= {"--resume": True, "--init-from": "resume"}
        folder = given.setdefault("--out-dir", TrainConfig.out_dir)
        path = Path(folder) / "last.json"
        default = resumed = train_config_from_json(read_json(path).get("train"), path)
    else:
        preset = given.get(
            "--preset", "lecture-small" if given.get("--lecture") else default_preset
        )
        if preset not in PRESETS:
            raise Refused(f"--preset {preset} is unknown{_nearest(preset, PRESETS)}")
        default = PRESETS[preset]
    _help_if_asked(TrainConfig, default, arguments, "Train a GPT.")
    config = check(_replace(default, given))
    if resumed is not None:
        names = [field.name for field in dataclasses.fields(ModelConfig)]
        _refuse_change(config.model, resumed.model, names)
        names = ("preset", "data", "tokenizer", "lecture", "optimizer", "seed")
        _refuse_change(config, resumed, names)
    return config


def _help_if_asked(kind: type, default, arguments: list[str], description: str) -> None:
    """Print the options with their defaults and end the program."""
    if "--help" in arguments or "-h" in arguments:
        short = (tyro.conf.OmitArgPrefixes,)
        tyro.cli(kind, default=default, args=["--help"], description=description, config=short)


def read_arguments(kind: type, arguments: list[str]) -> dict:
    """{"--n-layer": 3, "--compile": True, ...}: what the arguments give to the fields of `kind`."""
    types = _option_types(kind)
    negative = {option.replace("--", "--no-", 1): option for option in types}
    given, rest = {}, [argument for argument in arguments if argument not in ("--help", "-h")]
    while rest:
        written, equals, value = rest.pop(0).partition("=")
        option = written.replace("_", "-")
        option = ALIASES.get(option, option)
        if types.get(negative.get(option)) is bool and not equals:
            given[negative[option]] = False
            continue
        if option not in types:
            raise Refused(f"{written} is no option{_nearest(option, [*types, *ALIASES])}")
        if not equals:
            if types[option] is bool:
                value = "True"
            elif not rest or rest[0].startswith("--"):
                raise Refused(f"{option} needs a value; write {option}=VALUE")
            else:
                value = rest.pop(0)
        given[option] = _read_value(option, types[option], value)
    return given


def _option_types(kind: type) -> dict[str, type]:
    """Option -> type, those of a record within the record included."""
    types = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            types |= _option_types(field.type)
        else:
            types[_option(field.name)] = field.type
    return types


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _read_value(option: str, type_, text: str):
    if get_origin(type_) is Literal:
        if text not in get_args(type_):
            raise Refused(f"{option} {text} is unknown; choose {', '.join(get_args(type_))}")
        return text
    if type_ is bool:
        if text not in SWITCH:
            raise Refused(f"{option} is a switch: write {option}, {option}=True or {option}=False")
        return SWITCH[text]
    try:
        return type_(text)
    except ValueError:
        kind = "whole number" if type_ is int else "number"
        raise Refused(f"{option} is {text!r}, which is no {kind}") from None


def _nearest(name: str, names) -> str:
    found = difflib.get_close_matches(name, names, n=3)
    if found:
        return f"; did you mean {' or '.join(found)}?"
    return "; --help lists them" if name.startswith("-") else f"; choose {', '.join(names)}"


def _replace(default, given: dict):
    """`default` with the given options in the place of its fields."""
    changes = {}
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _replace(value, given)
        elif _option(field.name) in given:
            changes[field.name] = given[_option(field.name)]
    return dataclasses.replace(default, **changes)


def _refuse_change(config, resumed, names) -> None:
    for name in names:
        if getattr(config, name) != getattr(resumed, name):
            raise Refused(
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
            raise Refused(f"{_option(name)} is {value}, and must be a number of at least {least}")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise Refused(f"--{name} must be at least 0 and less than 1")
    if config.seed >= SEEDS:
        raise Refused(f"--seed is {config.seed}, and must be less than 2^63")
    if config.decay_lr and config.learning_rate == 0:
        raise Refused("--learning-rate must be above 0 when --decay-lr scales it")
    if not config.out_dir:
        raise Refused("--out-dir is empty; name a folder for the run")
    return config


def train_config_from_json(record: dict, source) -> TrainConfig:
    """The TrainConfig that `dataclasses.asdict` made a record of."""
    return _from_json(TrainConfig, record, source)


def model_config_from_json(record: dict, source) -> ModelConfig:
    """The ModelConfig that `dataclasses.asdict` made a record of."""
    return _from_json(ModelConfig, record, source)


def _from_json(kind: type, record: dict, source):
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if not isinstance(record, dict) or record.keys() != fields.keys():
        names = record.keys() ^ fields.keys() if isinstance(record, dict) else {"everything"}
        raise Refused(f"{source} is not of this version: see {', '.join(sorted(names))}")
    values = {}
    for name, type_ in fields.items():
        value = record[name]
        if type_ is ModelConfig:
            value = model_config_from_json(value, source)
        elif type_ is float and type(value) is int:
            value = float(value)
        elif get_origin(type_) is Literal:
            if value not in get_args(type_):
                raise Refused(f"{source}: {name} is {value!r}, which is unknown")
        elif type(value) is not type_:
            raise Refused(f"{source}: {name} is {value!r}, which is no {type_.__name__}")
        values[name] = value
    return kind(**values)
