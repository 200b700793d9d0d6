"""The rounding of the text refiner with error feedback: its layers' Gram matrices, and the integers that follow.

Its weights have 8 bits: the inputs of a layer differ too little from the float model's for rounding one layer after the other.
"""

from collections.abc import Mapping
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from qsjax.calibration.methods import Method
from qsjax.calibration.rounding import Rounded, round_layer
from qsjax.calibration.samples import Samples
from qsjax.dit.refiner import TokenRefiner
from qsjax.layers.stack import depth, take_layer
from qsjax.params import dotted
from qsjax.quant import Recipe
from qsjax.quant.storage import Leaves, linear_leaves, packed_leaves

Module = TypeVar("Module", bound=nnx.Module)


class Watched(nnx.Module):
    """A linear layer that adds up X^T X of what it is called with, over valid tokens.

    Args:
        linear: the layer.
        name: for `found`.
        valid: of text tokens.
        found: receives the sum under that name, while a program is traced.
    """

    def __init__(
        self, linear: nnx.Linear, name: str, valid: Bool[Array, "B L"], found: dict[str, Array]
    ) -> None:
        self.linear, self.kernel = linear, linear.kernel
        self._note = nnx.static(partial(found.__setitem__, name))
        self._valid = nnx.data(valid)

    def __call__(self, x: Float[Array, "*B K"]) -> Float[Array, "*B N"]:
        """The layer's output."""
        rows = x.astype(jnp.float32)
        if x.ndim == 3:
            rows = rows * self._valid[:, :, None].astype(jnp.float32)
        rows = rows.reshape(-1, x.shape[-1])
        self._note(jnp.matmul(rows.T, rows, precision="highest"))
        return self.linear(x)


def rounded_refiner(
    refiner: TokenRefiner, samples: Samples, recipe: Recipe, method: Method
) -> dict[str, Rounded]:
    """Layer -> its rounded weights, as in "refiner.blocks.0.qkv"; empty for a method that rounds to nearest.

    Args:
        refiner: float weights.
        samples: whose text and time it is called with.
        recipe: bits of its layers.
        method: `rounding` and `search_clips`.
    """
    if method.rounding == "nearest":
        return {}
    total: dict[str, Array] = {}
    for index in range(len(samples.timestep)):
        row = slice(index, index + 1)
        text, mask, timestep = (
            jnp.asarray(part[row]) for part in (samples.text, samples.mask, samples.timestep)
        )
        found = _grams(refiner, text, mask, timestep)
        total = {name: gram + total[name] if total else gram for name, gram in found.items()}
    rounded = {}
    for name, gram in total.items():
        path = ".".join(part for part in name.split(".") if not part.isdecimal())
        precision = recipe.precision(f"refiner.{path}")
        if precision.quantized:
            kernel = jnp.asarray(_kernel(refiner, name))
            layer = f"refiner.{name}"
            rounded[layer] = round_layer(kernel, gram, None, precision, search=method.search_clips)
    return rounded


def layer_leaves(
    layer: str, kernel: Array | np.ndarray, recipe: Recipe, rounded: Mapping[str, Rounded]
) -> Leaves:
    """The leaves of a packed layer outside the blocks, rounded already or to nearest.

    Args:
        layer: its name, as in "refiner.blocks.0.qkv".
        kernel: [in, out].
        recipe: bits.
        rounded: of `rounded_refiner`.
    """
    path = ".".join(part for part in layer.split(".") if not part.isdecimal())
    precision = recipe.precision(path)
    if layer in rounded:
        return packed_leaves(*rounded[layer], precision)
    return linear_leaves(kernel, precision)


@jax.jit
def _grams(refiner: TokenRefiner, text: Array, mask: Array, timestep: Array) -> dict[str, Array]:
    """Layer -> X^T X of its inputs; blocks are unrolled, since a scan cannot return what its layers have seen."""
    found: dict[str, Array] = {}
    graph, parameters = nnx.split(refiner.blocks)
    watched = _watched(refiner, "", mask, found)
    tokens, conditioning, pairs = watched.embed(text, mask, timestep)
    for index in range(depth(parameters)):
        own = jax.tree.map(partial(take_layer, index=index), parameters)
        block = _watched(nnx.merge(graph, own), f"blocks.{index}.", mask, found)
        tokens = block(tokens, conditioning, pairs)
    return found


def _watched(module: Module, prefix: str, valid: Array, found: dict[str, Array]) -> Module:
    module = nnx.merge(*nnx.split(module))
    for path, parent in list(nnx.iter_modules(module)):
        for name, child in list(vars(parent).items()):
            if isinstance(child, nnx.Linear) and child.kernel.ndim == 2:
                layer = prefix + dotted(*path, name)
                setattr(parent, name, Watched(child, layer, valid, found))
    return module


def _kernel(refiner: TokenRefiner, name: str) -> Array:
    """The kernel of a layer, which may be one of a stack."""
    module: object = refiner
    index = None
    for part in name.split("."):
        if part.isdecimal():
            index = int(part)
        else:
            module = getattr(module, part)
    assert isinstance(module, nnx.Linear)
    kernel = module.kernel.get_value()
    return kernel if index is None else kernel[index]
