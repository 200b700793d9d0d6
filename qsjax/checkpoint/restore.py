"""Reading a checkpoint into a Flax module, one item at a time."""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

from qsjax.checkpoint.arrays import aligned, require_digest
from qsjax.checkpoint.manifest import Manifest
from qsjax.checkpoint.places import Place, find_places
from qsjax.checkpoint.schema import Leaf, leaf_bytes
from qsjax.checkpoint.stored import StoredItem, require_files
from qsjax.params import map_parameters, parameters
from qsjax.progress import Progress

Module = TypeVar("Module", bound=nnx.Module)
Placement = Callable[[str, tuple[int, ...]], NamedSharding]
"""Where a parameter lies, by its dotted name and its shape."""
Read = TypeVar("Read")
ITEMS_AHEAD = 2
"""Items that are read while one is placed."""
_FOR_THREADS = 1 << 20
"""Bytes of an item that are worth threads."""
_THREADS = min(4, os.cpu_count() or 1)


def load_item(
    manifest: Manifest,
    component: str,
    item: str,
    leaves: Collection[str] | None = None,
    *,
    device: jax.Device | None = None,
    verify: bool = True,
) -> dict[str, Array]:
    """One stored item as device arrays in their stored dtypes.

    Args:
        manifest: the checkpoint.
        component: "dit", "vae", "llama" or "clip".
        item: its name.
        leaves: names of those to read; None reads all.
        device: for the arrays; None is this host's first.
        verify: compare each leaf's bytes with its sha256 in the manifest, once a process.

    Raises:
        CheckpointError: the files on disk do not hold what the manifest says.
    """
    read = read_item(manifest, component, item, leaves, verify=verify)
    return jax.device_put(read, device or jax.local_devices()[0])


def read_item(
    manifest: Manifest,
    component: str,
    item: str,
    leaves: Collection[str] | None = None,
    *,
    verify: bool = True,
) -> dict[str, np.ndarray]:
    """One stored item in the host's memory; the arguments are those of `load_item`.

    A thread a leaf reads and hashes: one leaf is hashed while another one is read.

    Raises:
        CheckpointError: the files on disk do not hold what the manifest says.
    """
    specifications = manifest.component(component).items[item]
    if leaves is not None:
        specifications = {name: specifications[name] for name in specifications if name in leaves}
    stored = StoredItem(manifest, component, item)

    def read(leaf: str) -> np.ndarray:
        array = stored.read(leaf)
        if verify:
            require_digest(manifest, component, item, leaf, lambda: (array,))
        return array

    if sum(map(leaf_bytes, specifications.values())) < _FOR_THREADS:
        return {name: read(name) for name in specifications}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:
        return dict(zip(specifications, pool.map(read, specifications), strict=True))


def restore(
    manifest: Manifest,
    component: str,
    module: Module,
    *,
    dtype: jnp.dtype | None = None,
    wanted: Callable[[str], bool] | None = None,
    place: Placement | None = None,
    progress: bool = False,
    verify: bool = True,
) -> Module:
    """Load a component into an abstract module; at most `ITEMS_AHEAD` + 1 items are held twice.

    A leaf "blocks.3.proj.kernel" fills index 3 of a stacked parameter "blocks.proj.kernel" (blocks that
    run under `lax.scan`), or the parameter of exactly that name where the model is not stacked.

    Args:
        manifest: the checkpoint.
        component: "dit", "vae", "llama" or "clip".
        module: without values (`nnx.eval_shape`); not changed.
        dtype: dtype of all floating parameters; None keeps the module's.
        wanted: says of a leaf's name whether it is read, for a module that is a part of the component.
        place: the sharding of each parameter; devices get their shards item by item. None puts all on this host's first
            device.
        progress: show a bar in bytes.
        verify: compare each leaf's bytes with its sha256 in the manifest, once a process.

    Raises:
        CheckpointError: a parameter is missing, surplus or of another shape, or a file is damaged.
    """
    abstract = parameters(module)
    items: dict[str, dict[str, Leaf]] = {}
    for item, leaf, specification in manifest.leaves(component):
        if wanted is None or wanted(leaf):
            items.setdefault(item, {})[leaf] = specification
    places = find_places(manifest, component, abstract, wanted)
    require_files(manifest, component)
    arrays: dict[str, Any] = {}
    # In the processor's memory NumPy puts rows in their places; elsewhere a small program does, one for each shape.
    here = place is None and jax.local_devices()[0].platform == "cpu"
    total = sum(leaf_bytes(spec) for leaves in items.values() for spec in leaves.values())
    with Progress(total, f"load {component}", unit="B", enabled=progress) as bar:

        def read_next(item: str) -> Mapping[str, Array | np.ndarray]:
            chosen = None if wanted is None else items[item]
            if here or place:
                return read_item(manifest, component, item, chosen, verify=verify)
            return load_item(manifest, component, item, chosen, verify=verify)

        for (item, specifications), read in zip(
            items.items(), read_ahead(read_next, items), strict=True
        ):
            for leaf, value in read.items():
                part = places[item, leaf]
                name, target = part.parameter, abstract[part.parameter]
                floating = jnp.issubdtype(target.dtype, jnp.floating)
                kind = dtype if dtype is not None and floating else target.dtype
                if here:
                    if part.whole and value.dtype == kind:
                        arrays[name] = value
                        continue
                    if name not in arrays:
                        arrays[name] = aligned(target.shape, kind)
                    rows = arrays[name] if part.whole else arrays[name][part.start : part.stop]
                    rows[...] = np.asarray(value).reshape(rows.shape)
                    continue
                if place:
                    value = _spread(value, part, place(name, target.shape))
                assert isinstance(value, jax.Array)
                if part.whole:
                    arrays[name] = value if value.dtype == kind else value.astype(kind)
                    continue
                # The target starts with this sharding too: without one, writing into it would be compiled twice.
                sharding = value.sharding if place is None else place(name, target.shape)
                if name not in arrays:
                    arrays[name] = jnp.zeros(target.shape, kind, device=sharding)
                arrays[name] = _writer(sharding)(arrays[name], value, np.int32(part.start))
            bar.advance(sum(leaf_bytes(spec) for spec in specifications.values()))

    def placed(name: str, _: object) -> jax.Array:
        value = arrays.pop(name)
        # `jnp.asarray` would compile a program for each shape.
        return value if isinstance(value, jax.Array) else jax.device_put(value)

    return map_parameters(placed, module)


def read_ahead(read: Callable[[str], Read], items: Iterable[str]) -> Iterator[Read]:
    """Yield what `read` returns for each item; while the caller places one, the next `ITEMS_AHEAD` are read in a thread.

    An exception of `read` is raised where its result would be yielded.
    """
    left, waiting = iter(items), deque[Future[Read]]()
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        try:
            waiting.extend(pool.submit(read, item) for item in islice(left, ITEMS_AHEAD))
            for item in left:
                waiting.append(pool.submit(read, item))
                yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def stored_bytes(manifest: Manifest, component: str | None = None) -> int:
    """Bytes of a component's leaves as they are stored; None is all components."""
    components = manifest.components if component is None else (component,)
    return sum(leaf_bytes(spec) for name in components for *_, spec in manifest.leaves(name))


@lru_cache(maxsize=8)
def _writer(sharding: Sharding) -> Callable[[Array, Array, np.int32], Array]:
    """Writes rows into an array that stays where it is."""
    return jax.jit(write_rows, donate_argnums=0, out_shardings=sharding)


def write_rows(whole: Array, rows: Array, first: Array) -> Array:
    """`whole` with some of its rows replaced, from the number `first` on; a single row may lack its leading axis."""
    rows = rows.reshape(-1, *whole.shape[1:]).astype(whole.dtype)
    return jax.lax.dynamic_update_slice_in_dim(whole, rows, first, axis=0)


def _spread(value: Array | np.ndarray, part: Place, whole: NamedSharding) -> Array:
    """A stored piece sharded like its parameter; each host provides its own devices' shards."""
    spec = PartitionSpec(*whole.spec[1:]) if part.layer else whole.spec
    rows = np.asarray(value)
    return jax.make_array_from_callback(
        value.shape, NamedSharding(whole.mesh, spec), lambda index: rows[index]
    )
