"""Constants and the bias that all online softmaxes share, chosen so that every number stays finite."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.block_sparse_attention.cache import EMPTY

INITIAL_MAX = -1e29
"""Where running maxima start: above the score of an invalid key, whose weight is then exp(-9e29) = 0."""

LOG2_E = math.log2(math.e)
"""Turns exponents of e into exponents of 2, for which the hardware has an instruction."""


def key_bias(kv_valid: Bool[Array, "B L"], padded: int) -> Float[Array, "B P"]:
    """What is added to the scores of each key: 0, or `EMPTY` if it is invalid or padding.

    Args:
        kv_valid: keys that may be seen.
        padded: number of keys, rounded up to whole blocks.
    """
    bias = jnp.where(kv_valid, jnp.float32(0), jnp.float32(EMPTY))
    return jnp.pad(bias, ((0, 0), (0, padded - bias.shape[1])), constant_values=EMPTY)
