"""Where each stored piece of a component goes in a module, checked to cover every parameter exactly."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

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
    abstract: Mapping[str, Any],
    wanted: Callable[[str], bool] | None = None,
) -> dict[tuple[str, str], Place]:
    """The place of each (item, leaf).

    Args:
        manifest: the checkpoint.
        component: of it.
        abstract: the module's parameters by dotted name, with their shapes and dtypes. Floating ones may be stored in any
            floating dtype.
        wanted: says of a leaf's name whether it is read; None reads all.

    Raises:
        CheckpointError: a parameter is missing, surplus, there twice, or of another shape or kind.
    """
    shapes = {name: tuple(array.shape) for name, array in abstract.items()}
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
        if not _holds(abstract[name].dtype, jnp.dtype(spec["dtype"])):
            problems.append(f"{leaf} has dtype {spec['dtype']} instead of {abstract[name].dtype}")
        if place.stop > (shape[0] if shape else 1):
            problems.append(f"surplus {leaf} from index {place.start} on")
        covered[name].append((place.start, place.stop))
        places[item, leaf] = place
    for name, ranges in covered.items():
        edge = 0
        for start, stop in sorted(ranges):
            if start == edge:
                edge = stop
            elif start < edge:
                problems.append(f"{name} is there twice from index {start} on")
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


def _holds(parameter: jnp.dtype, stored: jnp.dtype) -> bool:
    """Whether values of the stored dtype are what the parameter means; numbers of packed integers are not to be converted."""
    if jnp.issubdtype(parameter, jnp.floating):
        return jnp.issubdtype(stored, jnp.floating)
    return parameter == stored
