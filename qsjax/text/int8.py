"""Weight-only int8 storage of the text encoders' linear layers.

Each output channel has a scale: w[:, n] ~ scale[n] * q[:, n], q = round(w / scale), scale = max |w[:, n]| / 127.
The 8B LLaMA then takes 6.5 GB of memory instead of 13.1 in bfloat16. Weights become floating point one layer at a time,
inside the scan over layers; activations, norms and embeddings stay as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from pallas_kernels.absmax import limit
from qsjax.checkpoint import Manifest, load_item
from qsjax.checkpoint.places import find_places
from qsjax.checkpoint.restore import read_ahead, write_rows
from qsjax.checkpoint.stored import require_files
from qsjax.params import map_parameters, parameters
from qsjax.progress import Progress

Module = TypeVar("Module", bound=nnx.Module)


class Int8Linear(nnx.Module):
    """Takes the place of an `nnx.Linear`, with `kernel` int8 and one float32 `scale` per output channel.

    Args:
        linear: whose weights to store; stacked layers keep their leading axis.
    """

    def __init__(self, linear: nnx.Linear) -> None:
        kernel, scale = quantize_kernel(linear.kernel[...])
        self.kernel, self.scale = nnx.Param(kernel), nnx.Param(scale)
        self.bias = nnx.data(None if linear.bias is None else nnx.Param(linear.bias[...]))

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """x w + b in x's dtype; integers up to 127 are exact in bfloat16, sums and scale are float32."""
        y = jnp.matmul(x, self.kernel[...].astype(x.dtype), preferred_element_type=jnp.float32)
        leading = (1,) * (x.ndim - 1)
        y = y * self.scale[...].reshape(*leading, -1)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32).reshape(*leading, -1)
        return y.astype(x.dtype)


@jax.jit
def quantize_kernel(
    kernel: Float[Array, "*N I O"],
) -> tuple[Int8[Array, "*N I O"], Float[Array, "*N O"]]:
    """Symmetric int8 with a float32 scale per output channel; |error| <= scale / 2 for each weight."""
    # Unlike `pallas_kernels.absmax` this divides by the stored scale, from which the bound follows, where activations are
    # multiplied by Q / absmax, which is faster; a column of zeros has the scale 1.
    wide = kernel.astype(jnp.float32)
    peak = jnp.max(jnp.abs(wide), axis=-2)
    scale = jnp.where(peak > 0, peak / limit(8), 1)
    return jnp.round(wide / scale[..., None, :]).astype(jnp.int8), scale


def store_int8(module: Module) -> Module:
    """Swap every `nnx.Linear` inside `module` (in place) for an `Int8Linear` with the same weights."""
    for _, parent in list(nnx.iter_modules(module)):
        for name, child in list(vars(parent).items()):
            if isinstance(child, nnx.Linear):
                setattr(parent, name, Int8Linear(child))
    return module


def restore_int8(
    manifest: Manifest,
    component: str,
    module: Module,
    *,
    dtype: DTypeLike | None = None,
    wanted: Callable[[str], bool] | None = None,
    progress: bool = False,
    verify: bool = True,
) -> Module:
    """Load a component as `restore` does, quantizing each linear layer as it comes off the disk.

    The whole model never exists in floating point: at most a few stored items do.

    Args:
        manifest: the checkpoint.
        component: "llama" or "clip".
        module: the floating-point one, without values (`nnx.eval_shape`); not changed.
        dtype: of the parameters that stay floating; None keeps the module's.
        wanted: says of a leaf's name whether it is read, for a module that is a part of the component; None reads all.
        progress: show a bar, in items.
        verify: compare each leaf's bytes with its sha256 in the manifest, once a process.

    Raises:
        CheckpointError: a parameter is missing, surplus or of another shape.
    """
    floating = parameters(module)
    places = find_places(manifest, component, floating, wanted)
    require_files(manifest, component)
    module = nnx.eval_shape(store_int8, module)
    abstract = parameters(module)
    arrays = {
        name: jnp.zeros(
            leaf.shape,
            dtype if dtype is not None and name in floating and _floats(leaf) else leaf.dtype,
        )
        for name, leaf in abstract.items()
    }
    items: dict[str, list[str]] = {}
    for item, leaf in places:
        items.setdefault(item, []).append(leaf)

    def read(item: str) -> dict[str, Array]:
        chosen = None if wanted is None else items[item]
        return load_item(manifest, component, item, chosen, verify=verify)

    with Progress(len(items), f"load {component}", unit="item", enabled=progress) as bar:
        for item, leaves in zip(items, read_ahead(read, items), strict=True):
            for leaf, value in leaves.items():
                name, row = places[item, leaf].parameter, np.int32(places[item, leaf].start)
                if _floats(abstract[name]):
                    arrays[name] = _write(arrays[name], value, row)
                else:
                    scale = name.removesuffix("kernel") + "scale"
                    arrays[name], arrays[scale] = _write_int8(
                        arrays[name], arrays[scale], value, row
                    )
            bar.advance()
    return map_parameters(lambda name, _: arrays[name], module)


_write = jax.jit(write_rows, donate_argnums=0)


@partial(jax.jit, donate_argnums=(0, 1))
def _write_int8(integers: Array, scales: Array, kernel: Array, first: Array) -> tuple[Array, Array]:
    quantized, scale = quantize_kernel(kernel)
    return write_rows(integers, quantized, first), write_rows(scales, scale, first)


def _floats(leaf: jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
