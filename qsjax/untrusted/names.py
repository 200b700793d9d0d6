"""Names from outside: shown in messages, and joined to paths, only after a look at them."""

from pathlib import Path, PurePosixPath

from qsjax.errors import CheckpointError

LONGEST = 200
"""Bytes of a name; file systems take 255, and our own suffixes come after it."""
_FORBIDDEN = frozenset('/\\:*?"<>|')
"""Separators of paths, and what some file system does not take."""


def shown(text: object, length: int = 80) -> str:
    """A value for a message: text in quotes, what cannot be printed escaped, and cut.

    >>> shown("a" * 10, 8)
    "'aaaaaaaa'..."
    """
    if isinstance(text, int) and text.bit_length() > 256:
        return f"an integer of {text.bit_length()} bits"
    whole = text if isinstance(text, str) else repr(text)
    cut = whole[:length]
    cut = repr(cut) if isinstance(text, str) else cut
    cut = cut if cut.isprintable() else ascii(cut)
    return cut + ("..." if len(whole) > length else "")


def require_name(name: object, what: str) -> str:
    """A name that is one part of a path and nothing else: it leads nowhere.

    Args:
        name: from outside.
        what: what has it, for the message ("FILE: an item").

    Raises:
        CheckpointError: it is empty, too long, begins with a dot, or has a separator or something unprintable in it.
    """
    if (
        not isinstance(name, str)
        or not name
        or name.startswith(".")
        or name != name.strip()
        or not name.isprintable()
        or len(name.encode("utf-8", "surrogatepass")) > LONGEST
        or _FORBIDDEN & set(name)
    ):
        raise CheckpointError(
            f"{what} has the name {shown(name)}, which is no plain name; get it again from its source"
        )
    return name


def require_relative(path: object, what: str) -> str:
    """Names with "/" between them: a path that stays inside whatever folder it is joined to.

    Raises:
        CheckpointError: as `require_name`, or there are more than eight.
    """
    parts = path.split("/") if isinstance(path, str) else []
    if not 0 < len(parts) <= 8:
        raise CheckpointError(
            f"{what} has the path {shown(path)}, which is no path inside a folder; get it again from its source"
        )
    for part in parts:
        require_name(part, what)
    return "/".join(parts)


def inside(folder: Path, path: str, what: str) -> Path:
    """A path inside a folder, where nothing on the way is a link.

    Args:
        folder: trusted.
        path: from outside, "tokenizer/tokenizer.json".
        what: what names it, for the message.

    Raises:
        CheckpointError: as `require_relative`, or a part of it is a link.
    """
    place = folder
    for part in PurePosixPath(require_relative(path, what)).parts:
        place = place / part
        if place.is_symlink():
            raise CheckpointError(
                f"{what} has the path {shown(path)}, and {part} is a link; put the file itself there"
            )
    return place
