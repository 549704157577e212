"""What the configs share: options with help and limits, validation, and conversion to JSON."""

import dataclasses
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from .. import UserError

LARGEST = {int: 2**31, float: 10**15}  # products of two fit in int64 and in fp32

SomeConfig = TypeVar("SomeConfig", bound="Config")


def option(
    default: Any,
    help: str,
    *,
    at_least: float = 0,  # of a number; `Config` checks it
    below: float | None = None,  # None: LARGEST of its type
    section: str = "",  # title of the group in --help that starts with this option
    positional: bool = False,
) -> Any:
    """A dataclass field that `gpt.config.cli` turns into a command-line option."""
    metadata = {"help": help, "section": section, "positional": positional}
    return dataclasses.field(default=default, metadata={**metadata, "limits": (at_least, below)})


def flag(name: str) -> str:
    """The command-line option of a field, for error messages: n_layer -> --n-layer."""
    return "--" + name.replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Config:
    """A dataclass of options: validated when it is created, written to and read from JSON."""

    removed: ClassVar[dict[str, Any]] = {}  # options of older versions -> the only value they had

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            name = field.name if field.metadata.get("positional") else flag(field.name)
            if field.type is str and field.default and not value:
                raise UserError(f"{name} is empty; without it, {field.default!r} is used")
            if field.type is str and "\0" in value:
                raise UserError(f"{name} has a null character; remove it")
            if field.type in (int, float):
                at_least, below = field.metadata["limits"]
                below = LARGEST[field.type] if below is None else below
                if not at_least <= value < below:
                    limits = f"at least {at_least} and less than {below}"
                    raise UserError(f"{name} is {value}; it must be {limits}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[SomeConfig], record: object, source: object) -> SomeConfig:
        """The config of a record, with defaults for what it lacks; errors start with `source`."""
        if not isinstance(record, dict) or not record:
            raise UserError(f"{source} has no {cls.__name__}; it is damaged or of another version")
        removed = cls.removed
        record = {n: v for n, v in record.items() if n not in removed or v != removed[n]}
        types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(cls)}
        if unknown := record.keys() - types.keys():
            names = ", ".join(sorted(unknown))
            raise UserError(f"{source} is of another version, with unknown options: {names}")
        values = {
            name: _checked(types[name], name, value, source) for name, value in record.items()
        }
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None


def _checked(type_: Any, name: str, value: Any, source: object) -> Any:
    """A value from JSON as the type of its field."""
    if get_origin(type_) is Literal:
        if value not in get_args(type_):
            known = ", ".join(get_args(type_))
            raise UserError(f"{source}: {name} is {value!r}; it must be one of {known}")
        return value
    if issubclass(type_, Config):
        return type_.from_dict(value, source)
    if type_ is float and type(value) is int:
        return float(str(value))  # inf above 1e308, where float(value) is an error
    if type(value) is not type_:
        raise UserError(f"{source}: {name} is {value!r}; it must be of type {type_.__name__}")
    return value
