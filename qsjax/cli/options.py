"""Options from a TOML file, which typed options override; and the meaning of `--recipe` in older versions."""

import argparse
from pathlib import Path

from qsjax.config import configs_directory, load_toml, nearest
from qsjax.errors import InputError


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config FILE`; call it after all other options of the verb."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML file with any of these options (true-cfg = 3.0); options typed here win",
    )


def with_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """Set the options that were left at their default to the values in the file of `--config`.

    Raises:
        InputError: the file is missing or not TOML, or has a key that is not an option, or a value that does not fit.
    """
    if args.config is None:
        return args
    options = {
        action.option_strings[-1].removeprefix("--"): action
        for action in parser._actions
        if action.option_strings and action.dest not in ("help", "config")
    }
    for key, value in load_toml(args.config).items():
        if key not in options:
            raise InputError(f"{args.config}: unknown option {key!r}; {nearest(key, options)}")
        action = options[key]
        if getattr(args, action.dest) != action.default:
            continue
        try:
            setattr(args, action.dest, _converted(action, value))
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise InputError(f"{args.config}: {key} = {value!r} does not fit ({error})") from error
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
    elif isinstance(value, list):
        value = ("x" if action.metavar == "TxHxW" else ",").join(map(str, value))
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
