"""The front page: short, its links and commands are there, and no figure stands without its command."""

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest
from command_lines import COMMANDS
from PIL import Image

import qsjax
from qsjax.cli import main

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
PYTHON = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
SHELL = "".join(re.findall(r"^```sh\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL))
COMMAND = re.compile(r"`(qsjax [^`]+|pytest [^`]+)`")
FIGURE = re.compile(r"\d(?: (?:%|dB|GB|s\b|times)| \|)")


def sections():
    """Title -> text of each, code included."""
    parts = re.split(r"^## (.*)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands():
    spans = COMMAND.findall(PROSE)
    return [*spans, *(line for line in SHELL.splitlines() if line.startswith("qsjax "))]


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 180
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")]
    assert len(cells) > 50
    assert [cell for cell in cells if len(cell) > 80] == []


def test_links_and_pictures_are_there():
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    here = [link for link in links if not link.startswith("https://")]
    assert len(here) > 15
    titles = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in sections()}
    for link in here:
        path, _, anchor = link.partition("#")
        assert path or anchor in titles, link
        assert (ROOT / path).exists(), link


def test_the_strip_is_small():
    strip = ROOT / "docs" / "strip.png"
    assert strip.stat().st_size < 500_000
    with Image.open(strip) as picture:
        assert 800 <= picture.width <= 2000


def test_commands_and_their_options_are_there(capsys):
    known = {}
    for words in COMMANDS:
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        known[tuple(words)] = capsys.readouterr().out
    found = commands()
    assert len(found) > 10
    for command in found:
        first, *words = shlex.split(command.partition("#")[0])
        if first == "pytest":
            assert all((ROOT / word).exists() for word in words if "/" in word), command
            continue
        if words == ["--help"]:
            continue
        name = next((of for of in known if list(of) == words[: len(of)]), None)
        assert name is not None or words[0] in {of[0] for of in known}, command
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b", known[name]), command


@pytest.mark.parametrize(
    "title", [title for title, text in sections().items() if FIGURE.search(text)]
)
def test_a_section_with_figures_has_the_command_that_prints_them(title):
    assert COMMAND.search(sections()[title]) or "\nqsjax " in sections()[title]


def test_its_python_names_what_is_there():
    (source,) = PYTHON
    assert len([line for line in source.splitlines() if line]) <= 10
    names = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "qsjax"
    }
    assert names
    assert names <= set(qsjax.__all__)


@pytest.mark.whole
def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("readme.py").write_text(PYTHON[0], encoding="utf-8")
    runpy.run_path("readme.py")
    shape, said = re.search(r"\(33, 64, 64, 3\)", capsys.readouterr().out), PYTHON[0]
    assert shape
    assert shape[0] in said
    assert {path.name for path in tmp_path.glob("*.mp4")} == {"circle.mp4", "sparse.mp4"}
