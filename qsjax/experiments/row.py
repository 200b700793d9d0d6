"""A row of a grid: one experiment as data, with the name it is chosen by and the key its result is stored under."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from qsjax.config import Config, to_mapping
from qsjax.errors import InputError
from qsjax.untrusted import shown

RowT = TypeVar("RowT", bound="Row")
Outliers = Literal["none", "channels", "spikes"]
"""Of the model: none, loud channels (`qsjax.tiny.outliers`), which a scale for each channel undoes, or spikes of some tokens at some
times (`qsjax.tiny.spikes`), which no scale does. The function is the same."""


@dataclass(frozen=True, kw_only=True)
class Row(ABC):
    """One experiment.

    Attributes:
        group: the table that it stands in.
        label: its row there.
    """

    group: str
    label: str

    @property
    def name(self) -> str:
        """Group and label, what `--rows` is matched against."""
        return f"{self.group}/{self.label}"

    @property
    def key(self) -> str:
        """A digest of `content`; rows of other names with the same content share their result."""
        content = json.dumps(self.content(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def reference_name(self) -> str:
        """The full-precision run that it is compared with."""
        return "reference"

    @abstractmethod
    def content(self) -> dict[str, object]:
        """What is done, without names, as plain data."""


def select(rows: Sequence[RowT], pattern: str) -> tuple[RowT, ...]:
    """The rows in whose name a regular expression is found.

    Raises:
        InputError: not a regular expression, or none of the rows.
    """
    try:
        chosen = tuple(row for row in rows if re.search(pattern, row.name))
    except re.error as error:
        raise InputError(f"rows {shown(pattern)}: is no regular expression ({error})") from error
    if not chosen:
        groups = ", ".join(dict.fromkeys(row.group for row in rows))
        raise InputError(
            f"rows {shown(pattern)}: is found in no row; they are named as {rows[0].name!r}, of the groups {groups}"
        )
    return chosen


def nameless(config: Config) -> dict[str, object]:
    """A dataclass as plain data, but for its name: what is called otherwise is the same experiment."""
    return {key: value for key, value in to_mapping(config).items() if key != "name"}
