"""The repository's address: one constant, and every file agrees with it."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

import qsjax
from qsjax.address import ADDRESS, install, requirement

ROOT = Path(__file__).resolve().parent.parent
FILES = runpy.run_path(str(ROOT / ".ci" / "address.py"))["FILES"]
MADE_UP = "https://github.com/someone/qsjax"


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_address_and_takes_another(name):
    """What is there is what `python .ci/address.py` writes; twice is once, and back is back."""
    text, write = (ROOT / name).read_text(encoding="utf-8"), FILES[name]
    assert write(text, ADDRESS) == text, "run: python .ci/address.py"
    changed = write(text, MADE_UP)
    assert MADE_UP in changed
    assert write(changed, MADE_UP) == changed
    assert write(changed, ADDRESS) == text
    if name == "pyproject.toml":
        assert tomllib.loads(changed)["project"]["urls"]["Repository"] == MADE_UP
    if name == "README.md":
        assert "colab.research.google.com/github/someone/qsjax/blob/main/notebooks/" in changed
        elsewhere = write(text, "https://example.org/a/b")
        assert "colab.research" not in elsewhere
        assert "git clone https://example.org/a/b && cd b" in elsewhere


def test_no_other_file_has_an_address_of_its_own():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("qsjax/**/*.py")]:
        if path.name not in ("address.py", "README.md"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"https?://[\w./-]+/qsjax\b", text), path


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {qsjax.__version__}\n" in text


def test_what_is_to_be_installed():
    assert requirement() == "."
    assert requirement("tpu") == ".[tpu]"
    assert install("tpu") == "`pip install '.[tpu]'` in a checkout of qsjax"
    assert requirement("tpu", address=MADE_UP) == f"qsjax[tpu] @ git+{MADE_UP}"
    assert install("tpu", address=MADE_UP) == f"`pip install 'qsjax[tpu] @ git+{MADE_UP}'`"
