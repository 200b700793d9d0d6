"""A qsjax command that dies at its N-th change of the file system: `python cut.py N FOLDER WORDS...`; started by the tests.

Python's audit events tell of every file that is opened for writing, renamed, made or removed, whoever does it; those of
FOLDER count. N is 0: it lives, and the last line that it prints is their number.
"""

import os
import signal
import sys

from qsjax.cli import main

CHANGES = (
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.truncate",
    "shutil.copyfile",
)
at, folder, count = int(sys.argv[1]), os.path.realpath(sys.argv[2]), 0


def watch(event: str, arguments: tuple) -> None:
    """Count, and die."""
    global count
    if event != "open" and event not in CHANGES:
        return
    if event == "open" and not (
        isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    ):
        return
    place = arguments[0]
    if not isinstance(place, str | bytes | os.PathLike):
        return
    if os.path.realpath(os.fsdecode(place)).startswith(folder + os.sep):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)


work, words = main, sys.argv[3:]
if words[0] == "four-blocks":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from end_to_end.four_blocks import main as work

    words = words[1:]
sys.addaudithook(watch)
status = work(words)
print(count)
sys.exit(status)
