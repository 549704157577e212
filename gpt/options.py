"""The command line: tyro's options under nanoGPT's names, with a preset as their defaults."""

import dataclasses
import sys

import tyro

from gpt import Refused
from gpt.presets import PRESETS, ModelConfig, TrainConfig

ALIASES = {"--dataset": "--data", "--max-steps": "--max-iters"}


def parse(kind: type, default, arguments: list[str], description: str):
    """The record of type `kind` that the arguments make of `default`.

    Dashes and underscores are the same, and so are `--compile=False` and `--no-compile`. A name or
    value that is wrong ends the program with exit code 2 and the nearest names.
    """
    return tyro.cli(
        kind,
        default=default,
        args=[_plain(argument) for argument in arguments],
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def parse_run(arguments: list[str], default_preset: str, resumed: TrainConfig | None):
    """The TrainConfig of a command line; `resumed` is that of the run to go on with."""
    preset = option_value(arguments, "--preset")
    if resumed is not None:
        default = dataclasses.replace(resumed, resume=True)
    else:
        preset = preset or default_preset
        if preset not in PRESETS:
            raise Refused(f"--preset {preset} is unknown; choose of {', '.join(PRESETS)}")
        default = PRESETS[preset]
    config = check(parse(TrainConfig, default, arguments, "Train a GPT."))
    if resumed is not None:
        _refuse_change(
            config.model, resumed.model, [f.name for f in dataclasses.fields(ModelConfig)]
        )
        _refuse_change(config, resumed, ("data", "tokenizer", "lecture", "optimizer", "seed"))
    return config


def _refuse_change(config, resumed, names) -> None:
    for name in names:
        if getattr(config, name) != getattr(resumed, name):
            raise Refused(
                f"--{name.replace('_', '-')} cannot change when a run is resumed; "
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
        ("learning_rate", 0),
        ("muon_learning_rate", 0),
        ("min_lr", 0),
        ("weight_decay", 0),
        ("grad_clip", 0),
    ):
        value = getattr(config, name)
        if not least <= value < float("inf"):
            option = name.replace("_", "-")
            raise Refused(f"--{option} is {value}, and must be a number of at least {least}")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise Refused(f"--{name} must be at least 0 and less than 1")
    if config.decay_lr and config.learning_rate == 0:
        raise Refused("--learning-rate must be above 0 when --decay-lr scales it")
    if not config.out_dir:
        raise Refused("--out-dir is empty; name a folder for the run")
    return config


def option_value(arguments: list[str], option: str) -> str | None:
    """The value given to one option, before all of them are parsed."""
    plain = [_plain(argument) for argument in arguments]
    for index, argument in enumerate(plain):
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
        if argument == option and index + 1 < len(plain):
            return plain[index + 1]
    return None


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
        elif isinstance(type_, type) and type(value) is not type_:
            raise Refused(f"{source}: {name} is {value!r}, which is no {type_.__name__}")
        values[name] = value
    return kind(**values)


def _plain(argument: str) -> str:
    """nanoGPT's spellings as tyro's: --dataset, --compile=False, --n_layer."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = name.replace("_", "-")
    name = ALIASES.get(name, name)
    if value in ("True", "False"):
        return name if value == "True" else name.replace("--", "--no-", 1)
    return name + equals + value


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout holds results alone."""
    print(text, file=sys.stderr, flush=True)
