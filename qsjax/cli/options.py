"""Options from a TOML file, which typed options override; and the meaning of `--recipe` in older versions."""

import argparse
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from qsjax.cli.numbers import real, whole
from qsjax.config import configs_directory, load_toml, nearest
from qsjax.errors import InputError
from qsjax.untrusted import shown

_SEPARATORS = {"TxHxW": "x", "A,B,...": ","}
"""Metavar of an option that is a list -> what is between its values when it is typed."""


class Options:
    """Adds options to a parser and keeps a list of them: argparse has one, but not for others to read.

    Attributes:
        parser: the parser.
        actions: option without "--" -> what the parser does with it.
        typed: names in the parsed arguments of the options that were typed, see `find_typed`.
        commands: name -> options of a command of the verb, as `compare` is one of `qsjax evaluate`.
    """

    def __init__(self, parser: argparse.ArgumentParser, *, depth: int = 0) -> None:
        self.parser = parser
        self._depth = depth
        self.commands: dict[str, Options] = {}
        self._subparsers: Any = None
        parser.set_defaults(options=self)  # for `--config`, and for messages
        self.typed: frozenset[str] = frozenset()
        self.actions: dict[str, argparse.Action] = {}
        self._add: Callable[..., argparse.Action] = parser.add_argument

    def add_argument(self, *names: str, **settings: Any) -> None:
        """Add an option or a positional argument; the arguments are argparse's. Numbers are finite, and of at most 64 bits."""
        plain = {int: whole, float: real}.get(settings.get("type", str))
        if plain is not None:
            settings["type"] = plain()
        action = self._add(*names, **settings)
        for name in names:
            if name.startswith("--"):
                self.actions[name.removeprefix("--")] = action

    def find_typed(self, words: Sequence[str]) -> None:
        """Set `typed`: what is there when the words are parsed without any default.

        Args:
            words: the command line after the verb; the parser has accepted it.
        """
        words = words[self._depth :]
        defaults = {action: action.default for action in self.actions.values()}
        try:
            for action in defaults:
                action.default = argparse.SUPPRESS
            self.typed = frozenset(vars(self.parser.parse_args(words)))
        finally:
            for action, default in defaults.items():
                action.default = default

    def command(self, name: str, summary: str, description: str = "") -> "Options":
        """A command of the verb, with options and a help of its own. Its name is `what` in the parsed arguments.

        Args:
            name: what is typed after the verb.
            summary: its line in the verb's help.
            description: further sentences for its own help.
        """
        if self._subparsers is None:
            self._subparsers = self.parser.add_subparsers(
                dest="what", metavar="WHAT", required=True
            )
        parser = self._subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {description}".strip(),
            formatter_class=self.parser.formatter_class,
        )
        self.commands[name] = Options(parser, depth=self._depth + 1)
        return self.commands[name]

    def group(self, title: str, description: str = "") -> "Options":
        """Options that the help shows under a title of their own; they are added to the same list."""
        group = copy(self)
        group._add = self.parser.add_argument_group(title, description or None).add_argument
        return group


def add_config(options: Options) -> None:
    """Add `--config FILE`."""
    options.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML file with any of these options (true-cfg = 3.0); options typed here win",
    )


def add_precision(options: Options) -> None:
    """Add `--dtype` and `--text-storage`: how a model is held that samples."""
    options.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="dtype of weights and matmuls (default: bfloat16 on TPU and GPU, float32 on CPU)",
    )
    options.add_argument(
        "--text-storage", choices=("int8",), help="hold the text encoders in 8 bits"
    )


def add_no_verify(options: Options) -> None:
    """Add `--no-verify`."""
    options.add_argument(
        "--no-verify",
        action="store_true",
        help="do not compare weights with their sha256 when they are read; damage on the disk then goes unnoticed",
    )


def with_config(options: Options, args: argparse.Namespace) -> argparse.Namespace:
    """Set the options that were not typed to the values in the file of `--config`.

    Args:
        options: all options of the verb, and which of them were typed.
        args: the parsed arguments; they are modified.

    Raises:
        InputError: the file is missing or not TOML, or has a key that is not an option, or a value that does not fit.
    """
    if args.config is None:
        return args
    actions = {name: action for name, action in options.actions.items() if name != "config"}
    for key, value in load_toml(args.config).items():
        if key not in actions:
            raise InputError(f"{args.config}: unknown option {shown(key)}; {nearest(key, actions)}")
        action = actions[key]
        if action.dest in options.typed:
            continue
        try:
            setattr(args, action.dest, _converted(action, value))
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise InputError(
                f"{args.config}: {key} = {shown(value)} does not fit ({error})"
            ) from error
    return args


def _converted(action: argparse.Action, value: object) -> object:
    """What the option would be if the value were typed: the same conversion and choices.

    Raises:
        TypeError, ValueError, ArgumentTypeError: the value does not fit.
    """
    if isinstance(action.default, bool):  # a switch
        if not isinstance(value, bool):
            raise ValueError("give true or false")
        return value
    if isinstance(value, list) and action.nargs in ("+", "*"):
        return [_converted_word(action, word) for word in value]
    return _converted_word(action, value)


def _converted_word(action: argparse.Action, value: object) -> object:
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, list) and action.metavar in _SEPARATORS:
        value = _SEPARATORS[str(action.metavar)].join(map(str, value))
    if not isinstance(value, (str, int, float)):
        raise TypeError("it is neither a text nor a number")
    word = action.type(str(value)) if callable(action.type) else str(value)
    if action.choices is not None and word not in action.choices:
        raise ValueError(nearest(str(word), map(str, action.choices)))
    return word


def quantizes(recipe: str) -> bool:
    """Whether a name or file is a quantization recipe, rather than a sampling recipe.

    Raises:
        InputError: a file that cannot be read.
    """
    if not recipe.endswith(".toml"):
        return (configs_directory() / "recipes" / f"{recipe}.toml").is_file()
    from qsjax.quant import Recipe

    own = Recipe.__dataclass_fields__.keys() - {"name"}
    return bool(own & load_toml(Path(recipe)).keys())
