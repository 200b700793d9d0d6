"""Every block of code of the documentation is parsed, every link and every message that it quotes is there."""

import ast
import functools
import importlib
import json
import re
import tomllib

import pytest
from documentation.commands import check, check_extras, check_options, check_pytest, commands
from documentation.pages import DOCS, ROOT, blocks, blocks_of, inline_commands, pages

LANGUAGES = {"python", "sh", "toml", "json", "text", "bibtex", ""}
_LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def test_code_is_in_languages_that_are_parsed():
    """Directives of MyST stand between braces; what programs print has no language."""
    for page in pages():
        for block in blocks_of(page, page.read_text(encoding="utf-8")):
            assert block.language in LANGUAGES or block.language.startswith("{"), str(block)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_can_be_parsed_and_names_what_is_there(block):
    """Only names are looked up; what can be run is run in `test_examples.py`."""
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "qsjax":
            assert hasattr(importlib.import_module("qsjax"), node.attr), ast.unparse(node)


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_are_ones_that_can_be_typed(block):
    found = list(filter(None, commands(block)))
    assert found
    for words in found:
        try:
            check(words)
        except AssertionError as error:
            pytest.fail(f"{block}: {' '.join(words)}: {error}")


def test_commands_inside_sentences_have_options_that_are_there():
    found = list(inline_commands())
    assert len(found) > 20
    for block in found:
        words = block.text.split()
        try:
            check_options([word for word in words[1:] if word != "|"])
        except AssertionError as error:
            pytest.fail(f"{block}: {block.text}: {error}")


def test_other_inline_commands_name_tests_and_extras_that_are_there():
    for page in pages():
        text = page.read_text(encoding="utf-8")
        check_extras(text)
        for command in re.findall(r"`pytest ([^`\n]+)`", text):
            check_pytest(command.split())


@pytest.mark.parametrize("block", blocks("toml", "json"), ids=str)
def test_data_can_be_parsed(block):
    (tomllib.loads if block.language == "toml" else json.loads)(block.text)


def anchors(page):
    """Anchors of a page's headings, as the repository's pages make them."""
    found, seen = set(), {}
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        number = seen[anchor] = seen.get(anchor, -1) + 1
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_are_there(page):
    for image, _, link in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not image or target.suffix in {".png", ".svg"}, link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_of_docs_is_in_the_contents():
    """As Sphinx asks for it, and as people find pages."""
    named = {DOCS / "index.md"}
    for page in DOCS.rglob("*.md"):
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):  # fmt: skip
            entries = re.findall(r"^(?!:)(\S+)$", tree, flags=re.M)
            named |= {page.parent / f"{entry}.md" for entry in entries}
        for file in re.findall(r"^```\{include\} (\S+)$", page.read_text(encoding="utf-8"), re.M):
            named.add(page.parent / file)
    found = {page for page in pages() if page.is_relative_to(DOCS)}
    assert {page for page in found if not page.name.endswith("tables.md")} <= named


def quoted_messages():
    """Messages that are headings of the FAQ, without what differs from case to case."""
    text = (DOCS / "faq.md").read_text(encoding="utf-8")
    return re.findall(r"^### `(.+)`$", text, flags=re.M)


@functools.cache
def code():
    """All of the program's code; strings that go on in the next line are joined."""
    files = (path for folder in ("qsjax", "convert", "pallas_kernels") for path in (ROOT / folder).rglob("*.py"))  # fmt: skip
    return " ".join(re.sub(r'"\s*f?"', "", path.read_text(encoding="utf-8")) for path in files)


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_of_the_faq_are_messages_of_the_program(message):
    """Every run of words without names and numbers stands in the code."""
    names = r"[\w.]*\d[\w.]*|'[^']*'|--[a-z-]+|[()=;:,?]|\bnowhere\b|\bcpu\b"
    words = [part.strip() for part in re.split(names, message) if len(part.split()) > 2]
    assert words
    assert all(part in code() for part in words), words
