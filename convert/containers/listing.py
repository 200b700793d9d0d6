"""Long lists in one sentence."""

from collections.abc import Iterable


def first_few(items: Iterable[str], limit: int = 8) -> str:
    """The first items and how many more there are; each item at most 160 characters."""
    every = list(items)
    shown = ", ".join(
        item if len(item) <= 160 else f"{item[:100]}...{item[-50:]}" for item in every[:limit]
    )
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"
