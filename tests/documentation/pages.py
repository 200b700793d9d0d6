"""The pages of the documentation, and the blocks of code in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+")
_INLINE = re.compile(r"(?<!`)`(qsjax [a-z]+ [^`]+)`(?!`)")
PROGRAMS = {"qsjax", "python", "pytest", "pip", "ruff", "sphinx-build"}


class Block(NamedTuple):
    """A block of code: its page and its line, so that a failure says where it is."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def pages():
    """All pages that people write, as paths; those that are made when the site is built are not among them."""
    made = {DOCS / "outside", DOCS / "api/commands.md"}
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    return [*found, *(p for p in sorted(DOCS.rglob("*.md")) if made.isdisjoint({p, *p.parents}))]


def blocks(*languages):
    """The fenced blocks in these languages; "sh" has indented commands, too."""
    return [
        block for page in pages() for block in blocks_of(page, page.read_text(encoding="utf-8"))
        if block.language in languages
    ]  # fmt: skip


def blocks_of(page, text):
    """All blocks of a page, in its order."""
    found = [Block(_name(page), _line(text, m), m[1], m[2]) for m in _FENCE.finditer(text)]
    # A fence may hold indented lines of its own.
    rest = _FENCE.sub(lambda m: re.sub(r"[^\n]", "~", m[0]), text)
    for match in _INDENTED.finditer(rest):
        code = re.sub(r"^ {4}", "", match[0], flags=re.M)
        if code.split(maxsplit=1)[0] in PROGRAMS:
            found.append(Block(_name(page), _line(text, match), "sh", code))
    return sorted(found, key=lambda block: block.line)


def inline_commands():
    """Commands of qsjax inside sentences and tables."""
    for page in pages():
        text = _FENCE.sub(lambda m: re.sub(r"[^\n]", "~", m[0]), page.read_text(encoding="utf-8"))
        for match in _INLINE.finditer(text):
            yield Block(_name(page), _line(text, match), "sh", match[1].replace("\n", " "))


def _name(page):
    return page.relative_to(ROOT).as_posix()


def _line(text, match):
    return text.count("\n", 0, match.start()) + 1
