"""In which order items are written, which files of the source each of them reads, and behind which one a file is needed no more."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from convert.component import Component
from convert.containers.files import Files
from convert.items import Item


class Step(NamedTuple):
    """An item to be written, or what is left to do when all of a component's are.

    Attributes:
        component: its name.
        item: to write; None after the last item of a component.
        left: whether it is still to be written.
        reads: the files of the source that its tensors are in.
        complete: files that no later item of the component reads, so that they can be hashed.
        free: files that no later step of any component needs.
    """

    component: str
    item: Item | None
    left: bool
    reads: tuple[Path, ...]
    complete: tuple[Path, ...]
    free: tuple[Path, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the item."""
        return 0 if self.item is None else self.item.nbytes


def schedule(
    components: Mapping[str, Component],
    plans: Mapping[str, tuple[Item, ...]],
    finished: Collection[str],
) -> list[Step]:
    """The steps of a conversion: of each component, items of the first file first, so that few files are needed at a time.

    Args:
        components: the open sources.
        plans: component -> its items.
        finished: "component/item" of those that are written.
    """
    steps = [
        step for name, part in components.items() for step in _steps(part, plans[name], finished)
    ]
    end = {path: number for number, step in enumerate(steps) for path in step.complete}
    return [
        step._replace(free=tuple(path for path in step.complete if end[path] == number))
        for number, step in enumerate(steps)
    ]


def _steps(part: Component, plan: tuple[Item, ...], finished: Collection[str]) -> Iterable[Step]:
    position = {path: number for number, path in enumerate(part.source.files)}

    def reads(item: Item) -> tuple[Path, ...]:
        names = {name for piece in item.pieces for name in piece.row.sources}
        paths = {path for name in names for path in part.source.files_of(name)}
        return tuple(sorted(paths, key=position.__getitem__))

    read = {item.name: reads(item) for item in plan}
    order = sorted(plan, key=lambda item: position[read[item.name][-1]])
    last = {path: item.name for item in order for path in read[item.name]}
    for item in order:
        complete = tuple(path for path in read[item.name] if last[path] == item.name)
        left = f"{part.name}/{item.name}" not in finished
        yield Step(part.name, item, left, read[item.name], complete)
    rest = tuple(path for path in part.source.files if path not in last)
    yield Step(part.name, None, False, (), rest)


def needed_files(steps: Iterable[Step], hashed: Collection[str]) -> list[Path]:
    """The files that the steps will read: for tensors, or to hash them.

    Args:
        steps: of `schedule`.
        hashed: "component/file" of files whose digest is known.
    """
    paths: dict[Path, None] = {}
    for step in steps:
        if step.left:
            paths |= dict.fromkeys(step.reads)
        if step.item is not None:
            known = (f"{step.component}/{path.name}" for path in step.complete)
            paths |= dict.fromkeys(
                path for path, key in zip(step.complete, known, strict=True) if key not in hashed
            )
    return list(paths)


def without_absent(steps: Iterable[Step], files: Files) -> list[Step]:
    """The steps without those files that nothing is read of and that are not here: they need not be fetched to be hashed."""
    return [
        step._replace(complete=tuple(path for path in step.complete if not files.missing(path)))
        if step.item is None
        else step
        for step in steps
    ]


class Room(NamedTuple):
    """Bytes on disks at the worst moment.

    Attributes:
        written: of the checkpoint, in the end.
        downloaded: of downloads that are there at a time.
        together: of both, where they share a disk.
    """

    written: int
    downloaded: int
    together: int


def room(steps: Iterable[Step], needed: Iterable[Path], files: Files, *, beside: int = 0) -> Room:
    """What the steps will need beyond what is on the disks now.

    Args:
        steps: of `schedule`.
        needed: files that they read.
        files: knows what is here of them, and what may be deleted.
        beside: bytes that are written beside the items.
    """
    lacking = {path: files.missing(path) for path in needed}
    read_again = set(lacking)
    written, there, most, together = beside, 0, 0, 0
    if not files.deletes:
        there = most = sum(lacking.values())
        lacking = {}
    for step in steps:
        read = (*step.reads, *step.complete) if step.left else step.complete
        there += sum(lacking.pop(path, 0) for path in read)
        written += step.nbytes if step.left else 0
        most, together = max(most, there), max(together, written + there)
        there -= sum(
            files.size(path)
            for path in step.free
            # An earlier run may have deleted it already.
            if files.may_delete(path) and (path in read_again or not files.missing(path))
        )
    return Room(written, most, max(together, written + there))
