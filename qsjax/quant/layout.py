"""How packed weights are laid out in device memory, and how many bytes they take.

On disk they have the layout "bytes", which every backend can compute with. The layout of a backend's fastest
implementation is made from it while loading, by moving bits only.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array

from pallas_kernels import PackedWeight, unpack
from pallas_kernels.dispatch import AUTO, parse
from pallas_kernels.quantized_matmul import QUANTIZED_MATMUL, WeightLayout
from pallas_kernels.targets import current
from qsjax.params import dotted
from qsjax.quant.linear import QuantizedLinear
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.quant.recipe import Precision

Module = TypeVar("Module", bound=nnx.Module)


def preferred_layout(
    precision: Precision, rows: int, backend: str | None = None, matmul: str = AUTO
) -> WeightLayout:
    """The layout that the implementation of the matmul takes; of several, the first in `layouts`.

    Args:
        precision: of the layer.
        rows: K.
        backend: "cpu", "gpu" or "tpu"; None is the default device's.
        matmul: name of the implementation, perhaps with a target; "auto" is the most preferred one.

    Raises:
        UnsupportedError: the implementation takes no layout.
    """
    name, target = parse(matmul)
    backend = backend or (current() if name == matmul else target).backend
    layouts: list[WeightLayout] = ["bytes", "bytes_transposed"]
    if backend == "tpu" and precision.container == 4:
        layouts.insert(0, "int4")  # elsewhere an int4 takes a whole byte
    order = list(QUANTIZED_MATMUL.implementations)
    facts = {
        "backend": backend,
        "bits": precision.container,
        "rows": rows,
        "weight_only": precision.activations == UNQUANTIZED,
    }
    if name != AUTO:
        takes = [
            layout
            for layout in layouts
            if QUANTIZED_MATMUL.objections(layout=layout, **facts)[name] is None
        ]
        if not takes:  # raises with the reason
            QUANTIZED_MATMUL.choose(name, layout=layouts[0], **facts)
        return takes[0]

    def rank(layout: WeightLayout) -> int:
        return order.index(QUANTIZED_MATMUL.choose(layout=layout, **facts))

    return min(layouts, key=rank)


def arrange(
    module: Module,
    backend: str | None = None,
    place: Callable[[str, tuple[int, ...]], Sharding] | None = None,
    matmul: str = AUTO,
) -> Module:
    """Give every quantized layer the layout that suits a backend, in place.

    Parameters are rearranged one at a time, so that the copies held are of a single parameter.

    Args:
        module: with packed weights in bytes, as stored.
        backend: "cpu", "gpu" or "tpu"; None is the default device's.
        place: the sharding of a parameter, by its dotted name and shape; None leaves it to the compiler.
        matmul: name of the implementation of the product; "auto" is the most preferred one.
    """
    for path, linear in nnx.iter_modules(module):
        if not isinstance(linear, QuantizedLinear) or linear.layout != "bytes":
            continue
        layout = preferred_layout(linear.precision, linear.rows, backend, matmul)
        if layout == "bytes":
            continue
        for name in ("packed", "low_bits"):
            plane = getattr(linear, name)
            if plane is not None:
                place_plane = None if place is None else partial(place, dotted(*path, name))
                plane.set_value(_rearranged(plane.get_value(), layout, linear.rows, place_plane))
        linear.layout = layout
    return module


def device_bytes(tree: object) -> int:
    """Bytes of all arrays of a module or another pytree; two int4 values share one.

    Abstract arrays (`nnx.eval_shape`) count like real ones.
    """
    return sum(_nbytes(leaf) for leaf in jax.tree.leaves(tree))


def _nbytes(leaf: Array | np.ndarray | jax.ShapeDtypeStruct) -> int:
    if leaf.dtype in (jnp.int4, jnp.uint4):
        return -(-leaf.size // 2)
    return leaf.size * np.dtype(leaf.dtype).itemsize


def _rearranged(
    plane: Array,
    layout: str,
    rows: int,
    place: Callable[[tuple[int, ...]], Sharding] | None,
) -> Array:
    sharding = None
    if place is not None:
        sharding = place(jax.eval_shape(partial(_bits, layout=layout, rows=rows), plane).shape)
    return _mover(sharding)(plane, layout, rows)


@lru_cache(maxsize=8)
def _mover(sharding: Sharding | None) -> Callable[[Array, str, int], Array]:
    return jax.jit(_bits, static_argnums=(1, 2), out_shardings=sharding)


def _bits(plane: Array, layout: str, rows: int) -> Array:
    """A plane [K', N], or one for each layer; "int4" is for 4 bits, whose only plane it is."""
    if layout == "bytes_transposed":
        return jnp.swapaxes(plane, -1, -2)

    def as_int4(plane: Array) -> Array:
        return unpack(PackedWeight((plane,), 4, "bytes", rows)).astype(jnp.int4)

    return as_int4(plane) if plane.ndim == 2 else jax.lax.map(as_int4, plane)
