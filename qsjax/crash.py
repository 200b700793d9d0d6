"""The last resort: what the system refuses becomes one sentence, and so does an error that nobody foresaw, with a file that
tells the rest."""

import errno
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from qsjax.cache import cache_directory
from qsjax.untrusted import shown
from qsjax.untrusted.files import shown_path
from qsjax.versions import EVALUATION, versions

_REFUSED = {
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
}


def refusal(error: Exception) -> str | None:
    """What the user can mend of an error that the system raised: a name, a permission, a full disk; None if it is another."""
    if isinstance(error, OSError) and error.errno in _REFUSED:
        where = f"{shown_path(os.fsdecode(error.filename))}: " if error.filename else ""
        return (
            f"{where}{error.strerror}; name another place, or mend this one and do the same again"
        )
    if isinstance(error, ValueError) and str(error).startswith("embedded null"):
        return "a name has a zero byte in it; give another name"
    return None


def report_crash(error: BaseException) -> str:
    """Store the traceback of an error in a file that only its owner reads, and say so in a sentence.

    Args:
        error: that was raised.

    Returns:
        What happened and where the file is; without a place for the file, the traceback goes to standard error.
    """
    kind = type(error).__name__
    lines = [line for line in str(error).splitlines() if line.strip()]
    what = f"{kind}: {shown(lines[0], 200)}" if lines else kind
    text = "\n".join(
        [
            f"{sys.version}",
            f"{versions(EVALUATION)}",
            "".join(traceback.format_exception(error)),
        ]
    )
    try:
        place = _write(text)
    except OSError:
        print(text, file=sys.stderr)
        return f"{what}; this should not happen, please report it with the lines above"
    return f"{what}; this should not happen, please report it with the file {place}"


def _write(text: str) -> Path:
    folder = cache_directory() / "crashes"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    # mkstemp: mode 600, and never a file that is there.
    descriptor, name = tempfile.mkstemp(prefix=f"{stamp}-", suffix=".txt", dir=folder)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return Path(name)
