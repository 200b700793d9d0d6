"""Conversions that die, or that have company: `python conversions.py kill SOURCE FOLDER N...` or `pair SOURCE FOLDER COUNT`.

The process imports everything once and starts each conversion by a fork, which takes a tenth of a second. It prints a JSON object a
line: what came of each.
"""

import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from convert import Sources, convert
from convert.verification import verify
from qsjax.checkpoint import Manifest
from qsjax.errors import QsjaxError

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.copyfile")  # fmt: skip


def run(work: Callable[[], object], gate: int | None = None) -> int:
    """Do the work in a process of its own, which ends as a command does; with a gate it waits until that is closed."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if gate is not None:
            os.read(gate, 1)
        work()
        status = 0
    except QsjaxError as error:
        print(error, file=sys.stderr)
        status = 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(child: int) -> int:
    """Its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(number: int, folder: Path) -> Callable[[], int]:
    """End this process at its N-th change of the file system in a folder; one that comes so far tells how many there are."""
    count, inside = 0, os.path.realpath(folder) + os.sep

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        opens = event == "open" and isinstance(arguments[2], int)
        if event not in CHANGES and not (opens and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        place = arguments[0]
        if isinstance(place, str | bytes | os.PathLike):
            changed = os.path.realpath(os.fsdecode(place)).startswith(inside)
            count += changed
            if changed and count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return lambda: count


def look(folder: Path) -> dict[str, object]:
    """What is in a folder, and the digests of the checkpoint's leaves."""
    manifest = Manifest.read(folder / "checkpoint")
    leaves = sorted([item, leaf, spec["sha256"]] for item, leaf, spec in manifest.leaves("dit"))
    return {
        "bits": hashlib.sha256(json.dumps(leaves).encode()).hexdigest(),
        "left": sorted(path.name for path in folder.iterdir()),
        "inside": sorted(path.name for path in (folder / "checkpoint").iterdir()),
    }


def kill(source: Path, folder: Path, numbers: Iterable[int]) -> None:
    """Kill a conversion at each of these changes, -1 the last one, and do the same again; at 0 it lives."""
    sources, count = Sources(transformer=source), 0
    for given in numbers:
        number = given + count + 1 if given < 0 else given
        place = folder / f"kill-{number}"
        place.mkdir()
        destination = place / "checkpoint"

        reader, writer = os.pipe()

        def dying(
            number: int = number, place: Path = place, out: Path = destination, told: int = writer
        ) -> None:
            changes = die_at(number, place)
            convert(sources, out, progress=False)
            os.write(told, str(changes()).encode())

        def again(out: Path = destination) -> None:
            convert(sources, out, progress=False)
            verify(out, sources, progress=False)

        killed = ended(run(dying))
        os.close(writer)
        count = int(os.read(reader, 20) or count)
        os.close(reader)
        status = ended(run(again))
        found = look(place) if status == 0 else {}
        print(
            json.dumps({"at": number, "of": count, "killed": killed, "status": status, **found}),
            flush=True,
        )


def pair(source: Path, folder: Path, count: int) -> None:
    sources = Sources(transformer=source)
    for number in range(count):
        place = folder / f"pair-{number}"
        place.mkdir()
        destination = place / "checkpoint"
        gate, opener = os.pipe()

        def work(out: Path = destination) -> None:
            convert(sources, out, progress=False)

        def other(out: Path = destination) -> None:
            convert(sources, out, progress=False, dtype="float32")

        children = [run(work, gate), run(other if number % 4 == 3 else work, gate)]
        # Both hold a copy of the opener; a byte for each lets them go.
        os.write(opener, b"12")
        statuses = sorted(map(ended, children))
        os.close(gate)
        os.close(opener)
        checked = ended(run(lambda out=destination: verify(out, sources, progress=False)))
        found = look(place)
        line = {"pair": number, "alike": number % 4 != 3, "statuses": statuses, "checked": checked}
        print(json.dumps(line | found), flush=True)


if __name__ == "__main__":
    what, where, into, *rest = sys.argv[1:]
    if what == "kill":
        kill(Path(where), Path(into), map(int, rest))
    else:
        pair(Path(where), Path(into), int(rest[0]))
