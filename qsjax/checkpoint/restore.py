"""Reading a checkpoint into a Flax module, one item at a time."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from flax import nnx
from jaxtyping import Array

from qsjax.checkpoint.manifest import Manifest
from qsjax.errors import CheckpointError
from qsjax.progress import Progress

Module = TypeVar("Module", bound=nnx.Module)


class _Place(NamedTuple):
    """Where a stored piece goes: rows `start:stop` of the first axis of a parameter, or all of it."""

    parameter: str
    start: int
    stop: int
    whole: bool


def load_item(
    manifest: Manifest, component: str, item: str, leaves: Collection[str] | None = None
) -> dict[str, Array]:
    """One stored item as device arrays in their stored dtypes.

    Args:
        manifest: the checkpoint.
        component: "dit", "vae", "llama" or "clip".
        item: its name.
        leaves: the only ones to be read; None reads all.

    Raises:
        CheckpointError: the files on disk do not hold what the manifest says.
    """
    specifications = manifest.data["components"][component]["items"][item]
    if leaves is not None:
        specifications = {name: specifications[name] for name in specifications if name in leaves}
    placed = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(tuple(spec["shape"]), jnp.dtype(spec["dtype"]), sharding=placed)
        for name, spec in specifications.items()
    }
    context = ocp.Context()
    context.pytree.loading.partial_load = leaves is not None
    if jax.process_count() > 1:
        # Every host reads for itself, and waits for nobody.
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
        context.multiprocessing.barrier_sync_key_prefix = f"host{jax.process_index()}"
    try:
        with context:
            return ocp.load((manifest.directory / component / item).absolute(), abstract)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{manifest.directory}: item {component}/{item} cannot be loaded ({str(error).splitlines()[0]});"
            f" convert the checkpoint again"
        ) from error


def restore(
    manifest: Manifest,
    component: str,
    build: Callable[[], Module],
    *,
    dtype: jnp.dtype | None = None,
    wanted: Callable[[str], bool] | None = None,
    progress: bool = False,
) -> Module:
    """Load a component into the module that `build` describes; at most one item is held twice.

    A leaf "blocks.3.proj.kernel" fills index 3 of a stacked parameter "blocks.proj.kernel" (blocks that
    run under `lax.scan`), or the parameter of exactly that name where the model is not stacked.

    Args:
        manifest: the checkpoint.
        component: "dit", "vae", "llama" or "clip".
        build: makes the module; only evaluated abstractly.
        dtype: dtype of all floating parameters; None keeps what `build` says.
        wanted: says of a leaf's name whether it is read, for a module that is a part of the component.
        progress: show a bar in bytes.

    Raises:
        CheckpointError: a parameter is missing, surplus or of another shape.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    variables = {
        ".".join(map(str, path)): (path, value) for path, value in nnx.to_flat_state(state)
    }
    abstract = {name: value.get_value() for name, (_, value) in variables.items()}
    items: dict[str, dict[str, Any]] = {}
    for item, leaf, specification in manifest.leaves(component):
        if wanted is None or wanted(leaf):
            items.setdefault(item, {})[leaf] = specification
    shapes = {name: tuple(a.shape) for name, a in abstract.items()}
    places = _places(manifest, component, shapes, wanted)
    arrays: dict[str, Array] = {}
    total = sum(_bytes(spec) for leaves in items.values() for spec in leaves.values())
    with Progress(total, f"load {component}", unit="B", enabled=progress) as bar:
        for item, specifications in items.items():
            chosen = None if wanted is None else specifications
            for leaf, value in load_item(manifest, component, item, chosen).items():
                place = places[item, leaf]
                target = abstract[place.parameter]
                floating = jnp.issubdtype(target.dtype, jnp.floating)
                kind = dtype if dtype is not None and floating else target.dtype
                if place.whole:
                    arrays[place.parameter] = value.astype(kind)
                    continue
                if place.parameter not in arrays:
                    # Where the rows are: an array without a place would have the writing compiled twice.
                    arrays[place.parameter] = jnp.zeros(target.shape, kind, device=value.sharding)
                arrays[place.parameter] = _write_rows(
                    arrays[place.parameter], value, np.int32(place.start)
                )
            bar.advance(sum(_bytes(spec) for spec in specifications.values()))
    flat = [(path, value.replace(arrays[name])) for name, (path, value) in variables.items()]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def stored_bytes(manifest: Manifest, component: str | None = None) -> int:
    """Bytes of a component's leaves as they are stored; None is all components."""
    components = manifest.data["components"] if component is None else (component,)
    return sum(_bytes(spec) for name in components for *_, spec in manifest.leaves(name))


@partial(jax.jit, donate_argnums=0)
def _write_rows(whole: Array, part: Array, offset: Array) -> Array:
    rows = part.reshape(-1, *whole.shape[1:]).astype(whole.dtype)
    return jax.lax.dynamic_update_slice_in_dim(whole, rows, offset, axis=0)


def _bytes(specification: Mapping[str, Any]) -> int:
    return int(np.prod(specification["shape"])) * jnp.dtype(specification["dtype"]).itemsize


def _places(
    manifest: Manifest,
    component: str,
    shapes: Mapping[str, tuple[int, ...]],
    wanted: Callable[[str], bool] | None,
) -> dict[tuple[str, str], _Place]:
    """The place of each (item, leaf), once every parameter is known to be covered exactly."""
    places: dict[tuple[str, str], _Place] = {}
    covered: dict[str, list[tuple[int, int]]] = {name: [] for name in shapes}
    problems: list[str] = []
    for item, leaf, spec in manifest.leaves(component):
        if wanted is not None and not wanted(leaf):
            continue
        name, index = _parameter_of(leaf, shapes)
        if name is None:
            problems.append(f"surplus {leaf}")
            continue
        shape = shapes[name]
        if index is not None:
            place, expected = _Place(name, index, index + 1, False), shape[1:]
        elif "rows" in spec:
            start, stop = spec["rows"]
            place, expected = _Place(name, start, stop, False), (stop - start, *shape[1:])
        else:
            place, expected = _Place(name, 0, shape[0] if shape else 1, True), shape
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


def _parameter_of(
    leaf: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str | None, int | None]:
    if leaf in shapes:
        return leaf, None
    parts = leaf.split(".")
    for position, part in enumerate(parts):
        stacked = ".".join(parts[:position] + parts[position + 1 :])
        if part.isdecimal() and stacked in shapes and int(part) < shapes[stacked][0]:
            return stacked, int(part)
    return None, None
