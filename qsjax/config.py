"""Config is data: frozen dataclasses from TOML or JSON, where an unknown key is an error.

A configuration class is a plain frozen dataclass with typed fields and a `__post_init__` that checks
relations between them. `from_mapping` builds one from untrusted data (a TOML preset, the JSON beside a
PyTorch checkpoint, a manifest), `to_mapping` goes back.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from qsjax.errors import InputError
from qsjax.untrusted import check_plain, read_text, shown

T = TypeVar("T")


@runtime_checkable
class Config(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def close_to(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that the word may be a misspelling of."""
    return next(iter(difflib.get_close_matches(word, list(candidates), n=1)), None)


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A hint that names the closest candidate and the full list, for the end of an error message."""
    names = sorted(candidates)
    close = close_to(word, names)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


def from_mapping(cls: type[T], values: Mapping[str, Any], *, source: str) -> T:
    """Build the frozen dataclass `cls` from a mapping.

    Args:
        cls: dataclass; fields may be bool, int, float, str, a `Literal` of words, tuples of these, nested dataclasses or `X | None`.
            An `InitVar` with a default is an old spelling: it is understood, but no message names it.
        values: keys are field names; fields with defaults may be absent.
        source: where the values come from, for messages ("configs/models/tiny.toml").

    Raises:
        InputError: unknown key (the nearest valid one is named), missing key, or a value of the wrong type.
    """
    _require_table(cls, values, source)
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is not a dataclass")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    old = old_spellings(cls)
    for key in values:
        if key not in fields and key not in old:
            raise InputError(f"{source}: unknown key {shown(key)}; {nearest(key, fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{source}: missing {', '.join(missing)} for {cls.__name__}")
    converted = {
        key: _convert(old.get(key, hints[key]), value, source=f"{source}: {key}")
        for key, value in values.items()
    }
    return cls(**converted)


def old_spellings(cls: type) -> dict[str, Any]:
    """Names that a configuration class had for its fields, and their types: its `InitVar`s, which its `__post_init__` translates."""
    hints = typing.get_type_hints(cls)
    return {
        name: hint.type for name, hint in hints.items() if isinstance(hint, dataclasses.InitVar)
    }


def check_choices(config: object) -> None:
    """Refuse a field that is none of the words of its `Literal` type; for a `__post_init__`.

    Raises:
        InputError: names the field, the value and the nearest word.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            raise InputError(f"no {name} {value!r}; {nearest(str(value), typing.get_args(hint))}")


def to_mapping(config: Config) -> dict[str, Any]:
    """The plain-data form of a config dataclass, ready for JSON or TOML; inverse of `from_mapping`."""
    return dataclasses.asdict(config)


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: the file is absent or is not TOML, or holds a number that is not finite or has more than 64 bits.
    """
    try:
        values = tomllib.loads(read_text(path))
        check_plain(values)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not usable TOML ({str(error)[:200]}); correct it") from error
    return values


def configs_directory() -> Path:
    """The presets: inside the installed package, or the checkout's `configs/` for an editable install."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def preset(kind: str, name: str) -> dict[str, Any]:
    """The contents of `configs/<kind>/<name>.toml`.

    Raises:
        InputError: no such preset; the message lists those that exist.
    """
    directory = configs_directory() / kind
    path = directory / f"{name}.toml"
    if not path.is_file():
        raise InputError(
            f"no preset {name!r} in {kind}; {nearest(name, [p.stem for p in directory.glob('*.toml')])}"
        )
    return load_toml(path)


def _require_table(cls: type, values: object, source: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(
            f"{source}: expected a table of {cls.__name__} fields, found {shown(values)}"
        )
    return values


def _convert(hint: object, value: object, *, source: str) -> object:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        (inner,) = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return _convert(inner, value, source=source)
    if origin is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{source}: expected a list, found {shown(value)}")
        variadic = len(args) == 2 and args[1] is Ellipsis
        if not variadic and len(value) != len(args):
            raise InputError(f"{source}: expected {len(args)} values, found {len(value)}")
        inner_hints = [args[0]] * len(value) if variadic else args
        return tuple(
            _convert(inner, item, source=source)
            for inner, item in zip(inner_hints, value, strict=True)
        )
    if origin is Literal:
        word = _convert(str, value, source=source)
        if word not in typing.get_args(hint):
            raise InputError(
                f"{source}: no {shown(word)}; {nearest(str(word), typing.get_args(hint))}"
            )
        return word
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_mapping(hint, _require_table(hint, value, source), source=source)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > 1000:
            raise InputError(f"{source}: is {shown(value)}, too large for a number; correct it")
        return float(value)
    if hint in (bool, int, float, str):
        if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
            raise InputError(f"{source}: expected {hint.__name__}, found {shown(value)}")
        return value
    raise TypeError(f"{source}: config fields of type {hint} are not supported")
