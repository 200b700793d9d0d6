"""Where each stored piece of a component goes in a module, checked to cover every parameter exactly."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from qsjax.checkpoint.manifest import Manifest
from qsjax.errors import CheckpointError
from qsjax.params import find_parameter


class Place(NamedTuple):
    """Where a stored piece goes.

    Attributes:
        parameter: dotted name.
        start, stop: the rows of its first axis that the piece fills.
        whole: the piece is all of the parameter.
        layer: the piece is one layer of stacked blocks, so it lacks the first axis.
    """

    parameter: str
    start: int
    stop: int
    whole: bool
    layer: bool = False


def find_places(
    manifest: Manifest,
    component: str,
    shapes: Mapping[str, tuple[int, ...]],
    wanted: Callable[[str], bool] | None = None,
) -> dict[tuple[str, str], Place]:
    """The place of each (item, leaf).

    Args:
        manifest: the checkpoint.
        component: of it.
        shapes: of the module's parameters, by dotted name.
        wanted: says of a leaf's name whether it is read; None reads all.

    Raises:
        CheckpointError: a parameter is missing, surplus or of another shape.
    """
    places: dict[tuple[str, str], Place] = {}
    covered: dict[str, list[tuple[int, int]]] = {name: [] for name in shapes}
    problems: list[str] = []
    for item, leaf, spec in manifest.leaves(component):
        if wanted is not None and not wanted(leaf):
            continue
        match = find_parameter(leaf, shapes)
        if match is None:
            problems.append(f"surplus {leaf}")
            continue
        name, index = match
        shape = shapes[name]
        if index is not None and index >= shape[0]:
            problems.append(f"surplus {leaf}")
            continue
        if index is not None:
            place, expected = Place(name, index, index + 1, False, True), shape[1:]
        elif "rows" in spec:
            start, stop = spec["rows"]
            place, expected = Place(name, start, stop, False), (stop - start, *shape[1:])
        else:
            place, expected = Place(name, 0, shape[0] if shape else 1, True), shape
        if tuple(spec["shape"]) != expected:
            problems.append(f"{leaf} has shape {tuple(spec['shape'])} instead of {expected}")
        covered[name].append((place.start, place.stop))
        places[item, leaf] = place
    for name, ranges in covered.items():
        edge = 0
        for start, stop in sorted(ranges):
            if start == edge:
                edge = stop
        if edge != (shapes[name][0] if shapes[name] else 1):
            problems.append(f"missing {name}" + (f" from index {edge} on" if edge else ""))
    if problems:
        shown = "; ".join(problems[:8]) + (
            f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        )
        raise CheckpointError(
            f"{manifest.directory}: {component} does not fit its own configuration: {shown}"
        )
    return places
