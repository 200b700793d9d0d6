"""Long lists in one sentence."""

from collections.abc import Iterable


def first_few(items: Iterable[str], limit: int = 8) -> str:
    """The first items and how many more there are; each item at most 160 characters, all of which can be printed."""
    every = list(items)
    listed = ", ".join(_short(item) for item in every[:limit])
    return listed if len(every) <= limit else f"{listed} and {len(every) - limit} more"


def _short(item: str) -> str:
    cut = item if len(item) <= 160 else f"{item[:100]}...{item[-50:]}"
    return cut if cut.isprintable() else ascii(cut)
