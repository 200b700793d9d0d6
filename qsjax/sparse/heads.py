"""Copies that a layer makes of its tokens, heads before tokens, in forms that XLA compiles to few passes.

On a TPU a slice or a padding by itself is a pass over the whole tensor. As operands of a select they are read where they are, and
the select is one pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped


def followed(
    x: Shaped[Array, "B S *C"], count: int, rest: Shaped[Array, "B T *C"], start: int
) -> Shaped[Array, "B L *C"]:
    """The first `count` rows of x; zeros up to row `start`; the rest."""
    length = start + rest.shape[1]
    first = (jnp.arange(length) < count).reshape(1, -1, *(1,) * (x.ndim - 2))
    return jnp.where(first, _padded(x, 0, length - x.shape[1]), _padded(rest, start, 0))


def permuted(
    x: Shaped[Array, "N L D"],
    wanted: Bool[Array, " N"],
    permutation: Callable[[Array], Array],
    tokens: int,
) -> Shaped[Array, "N L D"]:
    """Permute the first tokens of the heads that want it.

    The others are not touched: the loop is as long as the number of heads that want it, and writes in place.

    Args:
        x: tokens of all heads of all samples.
        wanted: which of them to permute.
        permutation: from [1, tokens, D] to [1, tokens, D].
        tokens: number of tokens that are permuted.
    """
    first = jnp.argsort(~wanted, stable=True)

    def step(i: Array, x: Array) -> Array:
        start = first[i], 0, 0
        head = jax.lax.dynamic_slice(x, start, (1, tokens, x.shape[-1]))
        return jax.lax.dynamic_update_slice(x, permutation(head), start)

    return jax.lax.fori_loop(0, wanted.sum(dtype=jnp.int32), step, x)


def _padded(x: Array, before: int, after: int) -> Array:
    """Rows of zeros on both sides; a negative number cuts."""
    flat = [(0, 0, 0)] * (x.ndim - 2)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (before, after, 0), *flat])
