"""The page of all commands: what their `--help` prints, so that it cannot differ from it."""

import os
from pathlib import Path

WIDTH = "84"


def write(page: Path) -> None:
    """Write the page, unless it says that already."""
    os.environ["COLUMNS"] = WIDTH
    from qsjax.cli import VERBS, build_parser

    parts = ["# Commands", "What each command prints with `--help`."]
    for verb in VERBS:
        actions = build_parser(verb)._subparsers
        assert actions is not None
        child = actions._group_actions[0].choices[verb]
        parts.append(f"## qsjax {verb}\n\n```text\n{child.format_help().strip()}\n```")
    text = "\n\n".join(parts) + "\n"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
