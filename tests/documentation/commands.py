"""Commands as the documentation writes them: what is checked of one before it is believed."""

import importlib.util
import re
import shlex
import tomllib

from documentation.pages import PROGRAMS, ROOT

from qsjax.cli import VERBS, build_parser

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = set(PROJECT["project"]["optional-dependencies"])
MARKERS = {line.split(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
OTHERS = {"source", "git", "cd", "curl", ".ci/run", "lint-imports", "pyrefly", "jupytext"}


def commands(block):
    """The commands of a block, each as a list of words: without comments, redirections and variables."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            if ">" in command:
                command = command[: command.index(">")]
            while command and re.match(r"[A-Z_0-9]+=", command[0]):
                command = command[1:]
            yield command


def check(words):
    """Refuse a command that could not be run as it stands."""
    program, *arguments = words
    if program == "qsjax":
        check_options(arguments)
        try:
            build_parser(arguments[0]).parse_args(arguments)
        except SystemExit as end:
            raise AssertionError("the command line refuses it") from end
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) or arguments[1] == "venv", "no such module"
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), "no such file"
    elif program == "pytest":
        check_pytest(arguments)
    elif program == "pip":
        check_extras(" ".join(arguments))
    else:
        assert program in OTHERS | PROGRAMS, f"a program that nobody knows: {program}"


def check_options(arguments):
    """Refuse a verb or an option that is not there; values are not looked at."""
    verb, *rest = arguments
    assert verb in VERBS, f"no verb {verb}"
    parser = build_parser(verb)
    for word in arguments:
        below = parser._subparsers
        if below is not None and word in below._group_actions[0].choices:
            parser = below._group_actions[0].choices[word]
    known = set(parser._option_string_actions)
    missing = {word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)} - known
    assert not missing, f"{parser.prog} has no {', '.join(sorted(missing))}"


def check_pytest(arguments):
    """Refuse paths and markers that are not there."""
    markers = {arguments[i + 1] for i, word in enumerate(arguments) if word == "-m"}
    assert markers <= MARKERS, f"no markers {markers - MARKERS}"
    for path in (word for word in arguments if word.startswith("tests")):
        assert (ROOT / path).exists(), f"no {path}"


def check_extras(words):
    """Refuse extras of qsjax that are not there."""
    for extras in re.findall(r"(?:\.|qsjax)\[([\w,]+)\]", words):
        assert set(extras.split(",")) <= EXTRAS, f"no extras {set(extras.split(',')) - EXTRAS}"
