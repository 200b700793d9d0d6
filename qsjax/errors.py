"""The errors a user can cause, each one sentence: what was asked, what was found, what to do.

A message names arguments as a Python caller types them, between backticks: "pass `overwrite=True`". Commands print it with
`on_command_line`, which makes options of them: "pass --overwrite".
"""

import ast
import re
import shlex

_VALUE = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[\w.+-]+"""
_ARGUMENT = rf"([a-z]\w*(?:\.\w+)*)(?:=({_VALUE}))?"
_ARGUMENTS = re.compile(rf"`({_ARGUMENT}(?:, {_ARGUMENT})*)`")
_LONGEST = 1200
"""Characters of a printed message."""
_OTHER_NAMES = {
    "load_prompts": "encoded_prompt",
    "plot_to": "plot",
    "save_prompts": "save_prompt",
}
"""Python's name -> the option's, where they differ."""


class QsjaxError(Exception):
    """Base of every error that the caller can fix; the command line prints it and exits with 2."""


class InputError(QsjaxError, ValueError):
    """An argument, file or configuration value is not usable as given."""


class CheckpointError(QsjaxError):
    """A checkpoint (PyTorch or Orbax) is damaged, incomplete, or not what it was taken for."""


class NotFiniteError(QsjaxError):
    """A model computed something that is no number: a NaN or an infinity, of which no video can be made."""


class Cancelled(QsjaxError):
    """Sampling stopped on request; `step` says how many steps were done and `latents` holds their result."""

    def __init__(self, message: str, *, step: int, latents: object) -> None:
        super().__init__(message)
        self.step = step
        self.latents = latents


def on_command_line(message: object) -> str:
    """A message for the user of a command: arguments between backticks become options.

    >>> on_command_line("pass `overwrite=True`, or name one with `text_storage='int8', steps=4`")
    'pass --overwrite, or name one with --text-storage int8 --steps 4'

    Args:
        message: an error, or its text. What is between backticks but no arguments, as a command, stays.
    """

    def options(found: re.Match[str]) -> str:
        return " ".join(_option(name, value) for name, value in re.findall(_ARGUMENT, found[1]))

    text = _ARGUMENTS.sub(options, str(message))
    # Names from outside may hold what a terminal obeys.
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _option(name: str, value: str) -> str:
    """How an argument is typed in a shell; `value` is Python source, or "" if the message gives none."""
    option = "--" + _OTHER_NAMES.get(name, name).replace("_", "-")
    if value in ("", "True"):
        return option
    text = ast.literal_eval(value) if value[0] in "'\"" else value
    return f"{option} {shlex.quote(text)}"
