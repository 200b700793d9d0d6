"""Command-line options from the fields of a dataclass: name, type, choices, and the help text from its docstring."""

import argparse
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Collection
from typing import Any, Literal

from qsjax.cli.options import Options
from qsjax.config import old_spellings
from qsjax.settings.recipe import SECTIONS
from qsjax.untrusted import shown

_LONGEST = 4096
"""Characters of a list that are read."""
_OLD = {"sparsity": "sparse"}
"""Section -> the prefix that its options had in older versions; still accepted, but hidden in the help. So are options that have
the old name of a field."""


def add_fields(
    options: Options,
    config: type[Any],
    section: str = "",
    *,
    only: Collection[str] | None = None,
    default: str = "",
) -> None:
    """Add an option `--section.field-name` for every field of a dataclass; its value is None if it is not given.

    Args:
        options: the verb's options, or a group of them.
        config: the dataclass; fields that are dataclasses themselves are left out, they have sections of their own.
        section: prefix of option and dest; "" is no prefix.
        only: names of the fields to add; None is all.
        default: text for the help: what happens if the option is not given.
    """
    texts, hints = meanings(config), typing.get_type_hints(config)
    prefix = f"{section}." if section else ""

    def add(dest: str, hint: object, spellings: dict[str, str]) -> None:
        if (read := _reader(hint)) is None:
            return
        convert, metavar, choices = read
        for option, help_text in spellings.items():
            options.add_argument(
                option,
                dest=f"{prefix}{dest}",
                type=convert,
                choices=choices,
                metavar=metavar,
                help=help_text.replace("%", "%%"),
            )

    for field in dataclasses.fields(config):
        if only is not None and field.name not in only:
            continue
        name, text = field.name.replace("_", "-"), texts.get(field.name, "")
        spellings = {f"--{prefix}{name}": f"{text} (default: {default})" if default else text}
        if section in _OLD:
            spellings[f"--{_OLD[section]}.{name}"] = argparse.SUPPRESS
        add(field.name, hints[field.name], spellings)
    for name, hint in old_spellings(config).items():
        prefixes = (prefix, *(f"{_OLD[old]}." for old in _OLD if old == section))
        add(name, hint, {f"--{before}{name}": argparse.SUPPRESS for before in prefixes})


def add_sections(options: Options) -> None:
    """Add the options of every section of a sampling recipe."""
    for section, config in SECTIONS.items():
        add_fields(options, config, section)


def given_sections(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The options of `add_sections` that were given, as the tables of a recipe file."""
    sections: dict[str, dict[str, Any]] = {}
    for dest, value in vars(args).items():
        section, dot, name = dest.partition(".")
        if dot and section in SECTIONS and value is not None:
            sections.setdefault(section, {})[name] = value
    return sections


def meanings(config: type[Any]) -> dict[str, str]:
    """The description of each field, from the "Attributes:" of a dataclass and its base classes."""
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__):
        attributes = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        block = textwrap.dedent(attributes.partition("\n\n")[0])
        for name, text in re.findall(r"^(\w+): (.*(?:\n .*)*)", block, re.MULTILINE):
            texts[name] = " ".join(text.split()).removesuffix(".")
    return texts


Reader = tuple[Callable[[str], Any], str | None, tuple[Any, ...] | None]
"""Function that converts the text to a value, metavar for the help, and choices."""


def _reader(hint: object) -> Reader | None:
    """How an option of a type is read; None if the field is a dataclass of its own."""
    if typing.get_origin(hint) is Literal:
        return str, None, typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        inner, *others = typing.get_args(hint)
        if others == [Ellipsis]:
            return _list(inner, ",", "numbers with commas between them"), "A,B,...", None
        return _list(inner, "x", "tokens along time, height and width, as in 1x8x8"), "TxHxW", None
    if hint is bool:
        return _truth, "BOOL", None
    plain = next((kind for kind in (int, float, str) if kind is hint), None)
    return None if plain is None else (plain, plain.__name__.upper(), None)


def _list(inner: type, separator: str, expected: str) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        if len(text) > _LONGEST:
            raise argparse.ArgumentTypeError(f"{shown(text, 40)}: is too long; give {expected}")
        try:
            return [inner(part) for part in text.split(separator)]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{shown(text, 40)}: give {expected}") from error

    return read


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: give true or false")
    return text == "true"
