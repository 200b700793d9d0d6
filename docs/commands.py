"""The page of all commands: what their `--help` prints, so that it cannot differ from it."""

import os
from argparse import ArgumentParser
from pathlib import Path

WIDTH = "84"


def write(page: Path) -> None:
    """Write the page, unless it says that already."""
    os.environ["COLUMNS"] = WIDTH
    from qsjax.cli import VERBS, build_parser

    parts = ["# Commands", "What each command prints with `--help`."]
    for verb in VERBS:
        parser = _commands_of(build_parser(verb))[verb]
        parts.append(_section("##", parser))
        parts.extend(_section("###", command) for command in _commands_of(parser).values())
    text = "\n\n".join(parts) + "\n"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def _commands_of(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """Name -> parser of what stands below it."""
    return {} if parser._subparsers is None else parser._subparsers._group_actions[0].choices


def _section(level: str, parser: ArgumentParser) -> str:
    return f"{level} {parser.prog}\n\n```text\n{parser.format_help().strip()}\n```"
