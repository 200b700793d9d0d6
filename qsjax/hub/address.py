"""How a model of the hub is named on a command line."""

import re
from dataclasses import dataclass

from qsjax.errors import InputError
from qsjax.untrusted import shown

SCHEME = "hf://"
_LONGEST = 200
"""Characters; the record of a listing is named after it."""
_ADDRESS = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?P<folder>(?:/[\w.-]+)*)(?:@(?P<revision>[\w./-]+))?"
)


@dataclass(frozen=True)
class Address:
    """The address of a model: `hf://OWNER/NAME[/FOLDER][@REVISION]`.

    Attributes:
        repo: owner and name.
        folder: inside the repository; empty for all of it.
        revision: branch, tag or commit.
    """

    repo: str
    folder: str = ""
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse a string that begins with `hf://`.

        Raises:
            InputError: the rest is not an address.
        """
        match = _ADDRESS.fullmatch(text.removeprefix(SCHEME))
        if (
            not text.startswith(SCHEME)
            or match is None
            or {".", ".."} & set(re.split("[/@]", text))
            or "--"
            in match["repo"]  # which the hub allows in no name, and folders here have for "/"
            or len(text) > _LONGEST
        ):
            raise InputError(
                f"{shown(text)[1:-1]}: is no address; write {SCHEME}OWNER/NAME, or with /FOLDER or @REVISION"
            )
        return cls(match["repo"], match["folder"].lstrip("/"), match["revision"] or "main")

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return f"{SCHEME}{self.repo}{folder}@{self.revision}"
