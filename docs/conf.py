"""The settings of Sphinx, which makes the site: `sphinx-build -W --keep-going docs outputs/docs`."""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import commands  # noqa: E402 (the line above finds them)
import outside  # noqa: E402

project = "qsjax"
author = "The qsjax authors"
copyright = author
release = version = re.search(
    r'__version__ = "(.*)"', (DOCS.parent / "qsjax/__init__.py").read_text(encoding="utf-8")
)[1]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Tables as commands print them stand in pages that include them. They begin with a heading of the third level.
exclude_patterns = ["results/**/*tables.md"]
suppress_warnings = ["myst.header"]

# Pages are read on the repository's pages too: links go to files, and to headings by their anchors there.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"
highlight_language = "none"

# Docstrings are plain text in which names stand between single backticks.
default_role = "code"
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "class"
maximum_signature_line_length = 88

# Fonts, scripts and icons are the reader's own or lie beside the pages, which therefore open without a network.
html_theme = "furo"
html_title = f"qsjax {release}"
html_static_path = ["static"]
html_css_files = ["wide_tables.css"]
html_copy_source = False
html_show_sourcelink = False


def setup(app):
    """Make the pages that are not files of this folder before Sphinx looks for pages."""
    commands.write(DOCS / "api/commands.md")
    outside.gather()
    app.connect("source-read", outside.mend_links)
    app.connect("autodoc-process-signature", short_names)


def short_names(app, what, name, obj, options, signature, returns):
    """Write jax's array type by the name that people import."""
    return tuple(
        text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, returns)
    )
