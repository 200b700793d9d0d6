"""Where a layer lies: the rows of a leaf that it computes, under its names in every layout."""

from collections.abc import Mapping
from typing import NamedTuple

from convert.keymaps import expand, layouts
from convert.keymaps.transforms import Shape
from qsjax.dit.config import DiTConfig


class Place(NamedTuple):
    """A linear layer, or a part of one that some layouts store as a layer of its own.

    Attributes:
        leaf: whose kernel it is, or is a part of.
        start: its first row in the joined PyTorch weight.
        shape: of its PyTorch weight, [rows, ...].
        swapped: whether its layout has the two halves of the rows exchanged; the layer is whole then.
    """

    leaf: str
    start: int
    shape: Shape
    swapped: bool


def layers(config: DiTConfig) -> dict[str, Place]:
    """The layers of a transformer of this size, by their names in all layouts."""
    found: dict[str, Place] = {}
    for layout in dict.fromkeys(layout.name for layout in layouts("dit")):
        for row in expand("dit", config, layout, prefix=""):
            found |= places(row.leaf, row.sources, row.transform)
    return found


def places(leaf: str, sources: Mapping[str, Shape], transform: str) -> dict[str, Place]:
    """The layers that make one leaf; none if it is no kernel."""
    found, start = {}, 0
    for name, shape in sources.items():
        if leaf.endswith(".kernel"):
            layer = name.removesuffix(".weight")
            found[layer] = Place(leaf, start, shape, transform.startswith("swap"))
        start += shape[0]
    return found


def underscored(named: Mapping[str, Place]) -> dict[str, Place]:
    """The same layers with "_" for "." in their names."""
    return {name.replace(".", "_"): place for name, place in named.items()}
