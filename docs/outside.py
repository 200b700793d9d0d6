"""Pages of the site that lie outside `docs`: the notebooks, and the documents beside the README.

They are copied into `docs/outside`, which git ignores, and their links follow them. A link to another file of the
repository becomes its name: the site has no such page.
"""

import os
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
FOLDER = DOCS / "outside"
DOCUMENTS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
GATHERED = {
    source: FOLDER / source.name
    for source in (*DOCUMENTS, *sorted((ROOT / "notebooks").glob("*.ipynb")))
}
"""File of the repository -> its copy in the site."""
INCLUDED = {
    "results/quantization/tables.md": "results/quantization.md",
    "results/sparse/w4a8/sparse_tables.md": "results/sparse.md",
}
"""A command's tables -> the page that shows them; a link to the file leads there."""
LINK = re.compile(r"(?<!!)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s#:]+)((?:#[^)\s]*)?)\)")
"""A link to a file: its text, the file, and the anchor with its #."""


def gather() -> None:
    """Copy the pages, and leave those alone that are up to date, so that they are not read again."""
    FOLDER.mkdir(exist_ok=True)
    for left in set(FOLDER.iterdir()) - set(GATHERED.values()):
        left.unlink()
    for source, copy in GATHERED.items():
        text = mended(source.read_text(encoding="utf-8"), source, copy)
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def mend_links(app, docname: str, content: list[str]) -> None:
    """Mend the links of a page of `docs` (an event of Sphinx)."""
    page = Path(app.env.doc2path(docname))
    if page.parent != FOLDER:
        content[0] = mended(content[0], page, page)


def mended(text: str, source: Path, copy: Path) -> str:
    """The text of `source`, its links written for `copy`."""

    def link(found: re.Match[str]) -> str:
        words, path, anchor = found.groups()
        target = (source.parent / path).resolve()
        if not target.exists():
            return found[0]  # code that looks like a link, or one that Sphinx refuses
        target = GATHERED.get(target, target)
        if not target.is_relative_to(DOCS):
            return words
        name = target.relative_to(DOCS).as_posix()
        target = DOCS / INCLUDED.get(name, name)
        return f"[{words}]({Path(os.path.relpath(target, copy.parent)).as_posix()}{anchor})"

    return LINK.sub(link, text)
