"""Constants and the bias that all online softmaxes share, chosen so that every number stays finite."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8

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


_RANGE = 100.0
# Rounding of the norms and of the products must not carry a score over the bound.
_MARGIN = 1.01


def score_bound(
    q_norm: Float[Array, "B H Q"], k_norm: Float[Array, "B H L"], scale: float
) -> tuple[Float[Array, "B H Q"], Bool[Array, "B H"]]:
    """A number that no product of a query with a key exceeds, |q| max |k|, and whether a softmax can be taken relative to it.

    A score is at least the negative bound. So the largest one is less than twice the bound below it, and where that is less
    than 2^100, the weight of the best key is a normal float32 and all digits stay. Queries and keys of a DiT are RMS-normed.
    Keys that are not valid count, too: they are as long as the others.

    Args:
        q_norm, k_norm: lengths of the vectors that are multiplied.
        scale: of the scores.
    """
    bound = q_norm * (k_norm.max(axis=-1, keepdims=True) * jnp.float32(_MARGIN))
    return bound, bound.max(axis=-1) * jnp.float32(2 * scale * LOG2_E) < _RANGE


def lengths(
    x: Float[Array, "B H L D"] | Int8[Array, "B H L D"], scale: Float[Array, "B H L"] | None = None
) -> Float[Array, "B H L"]:
    """Euclidean lengths of vectors, float32; of int8 vectors times their scales.

    The matrix unit sums the squares, eight times, or XLA would make a sum along lanes of it, which takes a TPU three times as long.
    There it rounds them to bfloat16, which lets a length be wrong by 2^-10; the bound's margin is larger.
    """
    squares = jnp.square(x.astype(jnp.float32))
    sums = jnp.einsum("rd,bhld->rbhl", jnp.ones((8, x.shape[-1]), jnp.float32), squares)
    norm = jnp.sqrt(sums[0])
    return norm if scale is None else norm * scale
