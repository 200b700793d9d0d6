"""Parameters by name: the dotted path of an attribute, and blocks that are stacked to run under `lax.scan`.

A module with stacked blocks has one parameter "blocks.qkv.kernel" of all of them; checkpoints store a leaf for each,
"blocks.3.qkv.kernel".
"""

from collections.abc import Callable, Container
from typing import Any, TypeVar

from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


def dotted(*path: object) -> str:
    """The name of a path: ("blocks", "qkv", "kernel") is "blocks.qkv.kernel"."""
    return ".".join(map(str, path))


def parameters(module: nnx.Module) -> dict[str, Any]:
    """Name -> array, or the abstract array of `nnx.eval_shape`; in the module's order."""
    flat = nnx.to_flat_state(nnx.state(module))
    return {dotted(*path): variable.get_value() for path, variable in flat}


def map_parameters(function: Callable[[str, Any], Any], module: Module) -> Module:
    """A module with the same structure and other parameters; `module` is not changed.

    Args:
        function: name, old value -> new value.
        module: of arrays, or abstract.
    """
    graph, state = nnx.split(module)
    flat = [
        (path, variable.replace(function(dotted(*path), variable.get_value())))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def find_parameter(leaf: str, names: Container[str]) -> tuple[str, int | None] | None:
    """The parameter that a stored leaf fills, and its row there where blocks are stacked; None where there is none.

    >>> find_parameter("blocks.3.proj.kernel", {"blocks.proj.kernel"})
    ('blocks.proj.kernel', 3)
    """
    if leaf in names:
        return leaf, None
    parts = leaf.split(".")
    for position, part in enumerate(parts):
        stacked = dotted(*parts[:position], *parts[position + 1 :])
        if part.isdecimal() and stacked in names:
            return stacked, int(part)
    return None
