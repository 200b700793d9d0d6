"""Write the address of qsjax's repository wherever a file has it: badges, citation, package, notebooks.

    python .ci/address.py

takes it from `qsjax/address.py` and names the files that it changed.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
COLAB = "https://colab.research.google.com/github"
FIRST_NOTEBOOK = "notebooks/colab_tpu_sample.ipynb"


def readme(text: str, address: str | None) -> str:
    """Between the two marks: Colab's badge, which knows GitHub only, and the command that fetches the sources."""
    lines = []
    if address is not None:
        owner_and_name = address.removeprefix("https://github.com/")
        if owner_and_name != address:
            notebook = f"{COLAB}/{owner_and_name}/blob/main/{FIRST_NOTEBOOK}"
            lines += ["", f"[![Open in Colab]({BADGE})]({notebook})"]
        lines += ["", f"`git clone {address} && cd {address.rsplit('/', 1)[-1]}`", ""]
    inside = "\n".join(["", *lines])
    marks = re.compile(r"(<!-- address -->)\n(?:.*\n)*?(<!-- /address -->)")
    return replaced(marks, lambda found: f"{found[1]}{inside or chr(10)}{found[2]}", text)


def citation(text: str, address: str | None) -> str:
    """`repository-code:` after the version, or none."""
    text = re.sub(r"^repository-code: .*\n", "", text, flags=re.MULTILINE)
    if address is None:
        return text
    line = f'repository-code: "{address}"'
    return replaced(r"^(version: .*)$", lambda found: f"{found[1]}\n{line}", text)


def package(text: str, address: str | None) -> str:
    """`[project.urls]` before the extras, or none."""
    text = re.sub(r"^\[project\.urls\]\n(?:.+\n)*\n", "", text, flags=re.MULTILINE)
    if address is None:
        return text
    urls = f'[project.urls]\nRepository = "{address}"\nIssues = "{address}/issues"\n\n'
    return replaced(r"^(\[project\.optional-dependencies\])$", lambda f: f"{urls}{f[1]}", text)


def notebook(text: str, address: str | None) -> str:
    """What the first cell installs; in .ipynb files quotation marks have backslashes."""
    value = "" if address is None else f"git+{address}"
    line = re.compile(r'\b((?:REPOSITORY|ADDRESS) = \\?")[^"\\]*(\\?")')
    return replaced(line, lambda found: f"{found[1]}{value}{found[2]}", text)


def replaced(pattern: str | re.Pattern[str], new: Callable[[re.Match[str]], str], text: str) -> str:
    """Replace the one place that matches; it is an error if there is none, for then the address would be missing."""
    made, count = re.subn(pattern, new, text, count=1, flags=re.MULTILINE if isinstance(pattern, str) else 0)  # fmt: skip
    if count != 1:
        raise ValueError(f"no place for the address: {pattern}")
    return made


FILES: dict[str, Callable[[str, str | None], str]] = {
    "README.md": readme,
    "CITATION.cff": citation,
    "pyproject.toml": package,
    **{
        path.relative_to(ROOT).as_posix(): notebook
        for path in sorted(ROOT.glob("notebooks/*.*"))
        if path.suffix in (".py", ".ipynb")
    },
}


def main() -> None:
    """Write what differs."""
    sys.path.insert(0, str(ROOT))
    from qsjax.address import ADDRESS

    for name, write in FILES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if (made := write(text, ADDRESS)) != text:
            path.write_text(made, encoding="utf-8")
            print(name)


if __name__ == "__main__":
    main()
