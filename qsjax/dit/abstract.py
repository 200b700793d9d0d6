"""The DiT without values: loading fills it, memory plans count it, and programs are compiled for it."""

from functools import lru_cache

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from qsjax.dit.config import DiTConfig
from qsjax.dit.model import DiT
from qsjax.params import map_parameters
from qsjax.quant import Recipe, with_quantized_layers


def abstract_dit(
    config: DiTConfig,
    *,
    dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    clipped: bool = False,
) -> DiT:
    """A transformer whose parameters are `jax.ShapeDtypeStruct`s; the caller may change it.

    Args:
        config: its sizes.
        dtype: of parameters and matmuls; of a quantized layer, of its output.
        recipe: how it is quantized; None leaves it as it is.
        clipped: whether quantized layers have learned clips.

    Raises:
        InputError: an override of the recipe matches no layer.
    """
    made = _make(config, jnp.dtype(dtype), recipe, clipped)
    return map_parameters(lambda _, leaf: leaf, made)


# Tracing takes a tenth of a second, and loading, planning and quantizing all need the result.
@lru_cache(maxsize=16)
def _make(config: DiTConfig, dtype: jnp.dtype, recipe: Recipe | None, clipped: bool) -> DiT:
    def build() -> DiT:
        dit = DiT(config, dtype=dtype, rngs=nnx.Rngs(0))
        return dit if recipe is None else with_quantized_layers(dit, recipe, clipped=clipped)

    return nnx.eval_shape(build)
