"""The command line: argparse options generated from a config dataclass.

Options accept dashes and underscores, `--x y` and `--x=y`; switches accept `--x`, `--no-x` and
nanoGPT's `--x=True`. The last of two equal options wins. Every mistake is a one-sentence UserError.
"""

import argparse
import difflib
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from .. import UserError
from ..downloads import go_offline
from ..files import read_json
from .base import SomeConfig, flag
from .presets import PRESETS
from .train import TrainConfig

ALIASES = {"--dataset": "--data", "--max-steps": "--max-iters", "--lr": "--learning-rate"}
ALIASES |= {"--wandb-log=True": "--log=wandb", "--wandb-log=False": "--log=none"}
HINTS = {  # nanoGPT's options that have another form here
    "--wandb-log": "it is True or False; or give --log wandb",
    "--wandb-project": "set the environment variable WANDB_PROJECT",
    "--wandb-run-name": "set the environment variable WANDB_NAME",
}
PREFIXES = {"True": "--", "true": "--", "False": "--no-", "false": "--no-"}  # of switches
METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}
# for the life of a run, besides the model; --data may name another place of the same data
FIXED = ("preset", "tokenizer", "lecture", "optimizer", "seed")


def parse(default: SomeConfig, arguments: list[str], description: str) -> SomeConfig:
    """`default` with the options in `arguments`."""
    return _replaced(default, parse_given(default, arguments, description))


def parse_run(
    arguments: list[str],
    default_preset: str,
    defaults_of: Callable[[str, str], dict[str, Any]] | None = None,
    last_record: Callable[[Path], dict] = lambda folder: read_json(folder / "last.json"),
) -> TrainConfig:
    """The options of a run over its preset's, or over those of the run that --resume continues.

    `defaults_of` returns the fields of the preset that --init-from replaces: the model. It receives
    --data-dir too. `last_record` returns the record of a folder's last checkpoint.
    """
    given = parse_given(PRESETS[default_preset], arguments, "Train a GPT.")
    source = given.get("init_from", "scratch")
    if given.get("resume") or source == "resume":
        return _resumed(given, last_record)
    preset = given.get("preset", "lecture-small" if given.get("lecture") else default_preset)
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(PRESETS)}"
        raise UserError(f"--preset {preset} is unknown; {hint}")
    base = PRESETS[preset]
    if source != "scratch" and defaults_of is not None:
        base = replace(base, **defaults_of(source, given.get("data_dir", base.data_dir)))
    return _replaced(base, given)


def _resumed(given: dict[str, Any], last_record: Callable[[Path], dict]) -> TrainConfig:
    folder = given.get("out_dir", TrainConfig.out_dir)
    record, path = last_record(Path(folder)), Path(folder) / "last.json"
    saved = TrainConfig.from_dict(record.get("train"), path)
    saved = replace(saved, log="none")  # a folder from elsewhere must not send anything anywhere
    if "data" not in record and "data" not in given:
        raise UserError(f"{path} has no checksum of its data; name the data with --data")
    if given.get("max_iters", saved.max_iters) != saved.max_iters and not saved.lr_decay_iters:
        saved = replace(saved, lr_decay_iters=saved.max_iters)  # the schedule stays as it began
    config = _replaced(saved, {**given, "resume": True, "init_from": "resume", "out_dir": folder})
    end, last = config.lr_decay_iters, config.max_iters
    if config.decay_lr and config.min_lr == 0 and 0 < end < last:
        problem = f"the run's learning rate decays to 0 at step {end}, before --max-iters {last}"
        raise UserError(f"{problem}; add --lr-decay-iters {last}, or --min-lr")
    before, after = (vars(each) | vars(each.model) for each in (saved, config))
    for name in (*vars(saved.model), *FIXED):
        if before[name] != after[name]:
            raise UserError(f"{flag(name)} cannot change with --resume; it was {before[name]!r}")
    return config


def _replaced(config: Any, given: dict[str, Any]) -> Any:
    """`config` with the given values, those of nested configs too."""
    changes = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            changes[field.name] = _replaced(value, given)
        elif field.name in given:
            changes[field.name] = given[field.name]
    return replace(config, **changes)


def parse_given(default: Any, arguments: list[str], description: str) -> dict[str, Any]:
    """The options in `arguments` by field name; --help prints all of them and exits."""
    named = [field.name for field in fields(default) if field.metadata.get("positional")]
    usage = " ".join(["%(prog)s [options]", *(f"[{name}]" for name in named)])
    form = partial(argparse.HelpFormatter, max_help_position=32)
    parser = _Parser(usage=usage, description=description, formatter_class=form, allow_abbrev=False)
    types = _add_options(parser, parser, default)
    namespace, unknown = parser.parse_known_args([_spelled(each, types) for each in arguments])
    if unknown:
        raise UserError(_unknown(unknown[0].partition("=")[0], types))
    given = {name: value for name, value in vars(namespace).items() if value not in (None, [])}
    if given.get("offline"):
        go_offline()  # at once: --init-from downloads while options are read
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _unknown(name: str, types: dict[str, Any]) -> str:
    """The sentence about `name`, which is not among the options `types`."""
    if name.endswith(".py"):  # nanoGPT's config/train_gpt2.py
        names = ", ".join(PRESETS)
        return f"{name} is a config file, which is not read; use --preset with one of {names}"
    near = difflib.get_close_matches(name, types)
    hint = f"did you mean {near[0]}?" if near else "--help lists the options"
    if not name.startswith("-") and "--data" in types:
        hint = f"did you mean --data {name}?"
    return f"{name} is not an option; {HINTS.get(name, hint)}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        message = message.replace("ignored explicit argument", "a switch is True or False, not")
        raise UserError(f"{message}; --help lists the options")


def _spelled(argument: str, types: dict[str, Any]) -> str:
    """An argument with dashes in place of underscores, and --x or --no-x in place of --x=True."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    name = name.replace("_", "-")
    name, equals, value = ALIASES.get(name + equals + value, name + equals + value).partition("=")
    name = ALIASES.get(name, name)
    if types.get(name) is bool and value in PREFIXES:
        return PREFIXES[value] + name.removeprefix("--")
    return name + equals + value


def _add_options(parser: argparse.ArgumentParser, group: Any, config: Any) -> dict[str, Any]:
    """Add an option for each field of `config`, whose values --help shows; returns their types."""
    types: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            types |= _add_options(parser, parser.add_argument_group(field.name), value)
            continue
        if title := field.metadata.get("section"):
            group = parser.add_argument_group(title)
        default = "" if value == () else repr(value).strip("'")  # a line break as \n
        help = field.metadata.get("help", "") + (f" (default: {default})" if default else "")
        options: dict[str, Any] = {"help": help.replace("%", "%%")}  # what is not given is None
        if field.metadata.get("positional"):
            group.add_argument(field.name, nargs="?" if field.type is str else "*", **options)
            continue
        if field.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(field.type) is Literal:
            options["choices"] = get_args(field.type)
        else:
            options |= {"type": field.type, "metavar": METAVARS.get(field.type)}
        group.add_argument(flag(field.name), **options)
        types[flag(field.name)] = field.type
    return types
