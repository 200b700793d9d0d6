"""Tokens of a layer in the order of the lists, heads before tokens, and back.

One order serves all heads, or each head chooses between the model's own and a second one. On a TPU a slice or a padding alone is
a pass over the whole tensor; as operands of a select they are read where they are, and the select is one pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from pallas_kernels import HeadLayout
from qsjax.sparse.layout import Layout


@dataclass(frozen=True)
class Orders:
    """The orders of tokens that a pattern has.

    Attributes:
        layouts: one order; or two of as many slots, of which the first is the model's own. Methods then need `second`, which heads
            use the second order.
    """

    layouts: tuple[Layout, ...]

    def queries(
        self, q: Shaped[Array, "B H L D"], second: Bool[Array, "B H"] | None = None
    ) -> Shaped[Array, "B H S D"]:
        """The video's queries in the order of each head, in whole blocks; the text after them is left out."""
        first = self.layouts[0]
        flat = q.reshape(-1, *q.shape[2:])
        video = first.arrange(flat[:, : first.tokens])
        video = self._reordered(video, second)
        return video.reshape(*q.shape[:2], *video.shape[1:])

    def keys(
        self, k: Shaped[Array, "B H L D"], second: Bool[Array, "B H"] | None = None
    ) -> Shaped[Array, "B H K D"]:
        """The video's keys, or values, in the order of each head, in whole blocks, and the text after them."""
        first = self.layouts[0]
        flat, tokens = k.reshape(-1, *k.shape[2:]), first.tokens
        if first.tile != (1, 1, 1):
            video = first.arrange(flat[:, :tokens], first.kv_slots)
            flat = jnp.concatenate([video, flat[:, tokens:]], axis=1)
        elif first.kv_slots != tokens:
            flat = followed(flat, tokens, flat[:, tokens:], first.kv_slots)
        flat = self._reordered(flat, second)
        return flat.reshape(*k.shape[:2], *flat.shape[1:])

    def valid(self, kv_valid: Bool[Array, "B L"]) -> Bool[Array, "B K"]:
        """Which keys are valid, in the order of `keys`."""
        layout = self.layouts[0]
        video = layout.arrange(kv_valid[:, : layout.tokens], layout.kv_slots)
        return jnp.concatenate([video, kv_valid[:, layout.tokens :]], axis=1)

    def restore(
        self,
        out: Shaped[Array, "B H S D"],
        text: Shaped[Array, "B H T D"],
        second: Bool[Array, "B H"] | None = None,
    ) -> Shaped[Array, "B H L D"]:
        """The inverse of `queries` for the video's output, and the text's after it."""
        first = self.layouts[0]
        flat, rest = (x.reshape(-1, *x.shape[2:]) for x in (out, text))
        flat = self._reordered(flat, second, back=True)
        if first.tile != (1, 1, 1):
            flat = first.restore(flat)
        flat = followed(flat, first.tokens, rest, first.tokens)
        return flat.reshape(*out.shape[:2], *flat.shape[1:])

    def head_layout(self, text: int) -> HeadLayout | None:
        """The rows of `queries` and `keys` for kernels that write them; None if their orders are none that those know."""
        first, *others = self.layouts
        known = [(first.grid[0], 1, 1)] if others else []
        if first.tile != (1, 1, 1) or [one.tile for one in others] != known:
            return None
        return HeadLayout(
            queries=first.slots,
            keys=first.kv_slots + -(-text // first.block_kv) * first.block_kv,
            text=first.kv_slots,
            apart=True,
            frames=first.grid[0] if others else 0,
        )

    def _reordered(
        self,
        x: Shaped[Array, "N L D"],
        second: Bool[Array, "B H"] | None,
        *,
        back: bool = False,
    ) -> Shaped[Array, "N L D"]:
        if len(self.layouts) == 1:
            return x
        assert second is not None  # `Pattern.choose` decides it for patterns of two orders
        layout = self.layouts[1]
        permutation = layout.restore if back else partial(layout.arrange, slots=layout.tokens)
        return permuted(x, second.reshape(-1), permutation, layout.tokens)


def followed(
    x: Shaped[Array, "B S *C"], count: int, rest: Shaped[Array, "B T *C"], start: int
) -> Shaped[Array, "B L *C"]:
    """The first `count` rows of x; zeros up to row `start`; the rest."""
    length = start + rest.shape[1]
    first = (jnp.arange(length) < count).reshape(1, -1, *(1,) * (x.ndim - 2))
    return jnp.where(first, _padded(x, 0, length - x.shape[1]), _padded(rest, start, 0))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def permuted(
    x: Shaped[Array, "N L D"],
    wanted: Bool[Array, " N"],
    permutation: Callable[[Array], Array],
    tokens: int,
) -> Shaped[Array, "N L D"]:
    """Permute the first tokens of the heads that want it; differentiable in x.

    The others are not touched: the loop is as long as the number of heads that want it, and writes in place. JAX cannot
    differentiate a loop of traced length, so the backward pass is a loop of its own, with the inverse permutation.

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


def _permuted_forward(
    x: Array, wanted: Array, permutation: Callable[[Array], Array], tokens: int
) -> tuple[Array, Array]:
    return permuted(x, wanted, permutation, tokens), wanted


def _permuted_backward(
    permutation: Callable[[Array], Array], tokens: int, wanted: Array, cotangent: Array
) -> tuple[Array, np.ndarray]:
    head = jax.ShapeDtypeStruct((1, tokens, cotangent.shape[-1]), cotangent.dtype)
    transposed = jax.linear_transpose(permutation, head)
    dx = permuted(cotangent, wanted, lambda y: transposed(y)[0], tokens)
    return dx, np.zeros(wanted.shape, jax.dtypes.float0)


permuted.defvjp(_permuted_forward, _permuted_backward)


def _padded(x: Array, before: int, after: int) -> Array:
    """Rows of zeros on both sides; a negative number cuts."""
    flat = [(0, 0, 0)] * (x.ndim - 2)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (before, after, 0), *flat])
