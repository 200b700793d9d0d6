"""How a model of the hub, or one of its folders or files, is named on a command line."""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import require_relative, shown

SCHEME = "hf://"
FORM = f"{SCHEME}OWNER/NAME, followed by @REVISION, /FOLDER or /FILE"
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".gguf")
_FILES = (*WEIGHTS, ".json", ".txt")
_LONGEST = 200
"""Characters; the record of a listing is named after it."""
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_WHOLE = re.compile(r"main|[0-9a-f]{40}")
"""The branch that every repository has, and a commit: nothing else begins with them and a slash."""
_REFS = re.compile(r"refs/(?:pr/\d+|convert/[\w.-]+)")
"""Revisions with slashes that the hub itself makes."""
_ESCAPED = re.compile(r"(?:[\w.+,=~/-]|%[0-9A-Fa-f]{2})*")


@dataclass(frozen=True)
class Address:
    """The address of a model: `hf://OWNER/NAME[@REVISION][/PATH]` or `hf://OWNER/NAME[/PATH][@REVISION]`.

    Attributes:
        repo: owner and name.
        path: of a folder or a file inside the repository; empty for all of it.
        revision: branch, tag or commit.
    """

    repo: str
    path: str = ""
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse a string that begins with `hf://`. What is not a letter, a digit or one of `-_.+,=~` is percent-encoded.

        Raises:
            InputError: the rest is no address, or can be read as two.
        """
        before, at, after = text.removeprefix(SCHEME).partition("@")
        owner, _, rest = before.partition("/")
        name, _, path = rest.partition("/")
        if (
            not text.startswith(SCHEME)
            or "@" in after
            or bool(at) != bool(after)
            or {".", ".."} & set(re.split("[/@]", unquote(text)))
        ):
            raise _no_address(text)
        if not path:  # behind one, the revision is all that is left
            after, path = _split(f"{owner}/{name}", after)
        path = path.removesuffix("/")
        address = cls(f"{owner}/{name}", unquote(path), unquote(after) or "main")
        if not _ESCAPED.fullmatch(f"{path}/{after}") or not address._possible():
            raise _no_address(text)
        return address

    def _possible(self) -> bool:
        """Every part is a plain name, so that the address can also name places on a disk."""
        try:
            for part in (self.path, self.revision):
                if part:
                    require_relative(part, "it")
        except CheckpointError:
            return False
        return (
            _REPO.fullmatch(self.repo) is not None
            and "--"
            not in self.repo  # the hub allows it in no name, and folders here have it for "/"
            and len(str(self)) <= _LONGEST
        )

    def __str__(self) -> str:
        path = f"/{quote(self.path)}" if self.path else ""
        return f"{SCHEME}{self.repo}{path}@{quote(self.revision, safe='')}"


def _split(repo: str, text: str) -> tuple[str, str]:
    """The revision and the path of what stands behind "@"."""
    if refs := _REFS.match(text):
        revision, path = refs[0], text[refs.end() :]
        if not path or path.startswith("/"):
            return revision, path.lstrip("/")
    revision, _, path = text.partition("/")
    if path and not _WHOLE.fullmatch(revision) and not path.endswith(_FILES):
        raise InputError(
            f"{shown(SCHEME + repo + '@' + text)[1:-1]}: can be read as the revision {shown(text)} or as {shown(path)} of the "
            f"revision {shown(revision)}; write @{shown(quote(text, safe='%'))[1:-1]} for the one, "
            f"/{shown(path)[1:-1]}@{shown(revision)[1:-1]} for the other"
        )
    return revision, path


def _no_address(text: str) -> InputError:
    return InputError(
        f"{shown(text)[1:-1]}: is no address; write {FORM}, with %20 and the like for other characters"
    )
