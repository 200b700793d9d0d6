"""What a dense step keeps of the keys that later, sparse steps leave out, and how they add it to their output.

With S the listed keys, R the others and a = exp(lse_S - lse) the weight that S has in the full softmax,

    O = a O_S + (1 - a) O_R        and        O - O_S = (1 - a) (O_R - O_S).

`Additive` keeps the difference (QuantSparse, first-order residual). `Complement` keeps O_R and its log-sum-exp, and
weighs them against the current O_S. With a share f > 0 it keeps X = O_R - f O_S instead, which assumes that O_R changes by
f times the change of O_S. Either may be split into values and a product of low rank.

Their arrays are `Any`: jax puts shapes, shardings and placeholders in the same fields.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EMPTY = -1e30
"""Log-sum-exp of no keys: finite, so that nothing computed from it is infinite or NaN."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scale", "low_rank"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Additive:
    """out = O_S + D (+ U V).

    Attributes:
        values: D, floats or int8 [B, L, H, D].
        scale: of int8 values, float32 [B, H, L]; None for floats.
        low_rank: (U [B, R, L], V [B, H, R, D]), or None.
    """

    values: Any
    scale: Any = None
    low_rank: tuple[Any, Any] | None = None

    def apply(
        self, out: Float[Array, "B L H D"], lse: Float[Array, "B H L"]
    ) -> Float[Array, "B L H D"]:
        """The corrected output, float32; `lse` is not needed."""
        return out + expanded(self)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scale", "lse", "low_rank"],
    meta_fields=["follow"],
)
@dataclass(frozen=True)
class Complement:
    """out = a O_S + (1 - a) (X (+ U V) + f O_S), a = sigmoid(lse_S - lse_R).

    Attributes:
        values: X, floats or int8 [B, L, H, D]; O_R itself where f is 0.
        scale: of int8 values, float32 [B, H, L]; None for floats.
        lse: lse_R, float32 [B, H, L].
        low_rank: (U [B, R, L], V [B, H, R, D]), or None.
        follow: f, static.
    """

    values: Any
    scale: Any
    lse: Any
    low_rank: tuple[Any, Any] | None = None
    follow: float = 0.0

    def apply(
        self, out: Float[Array, "B L H D"], lse: Float[Array, "B H L"]
    ) -> Float[Array, "B L H D"]:
        """The merged output, float32."""
        return merge(out, lse, expanded(self) + self.follow * out, self.lse)[0]


Cache = Additive | Complement


def expanded(cache: Cache) -> Float[Array, "B L H D"]:
    """The cached tensor in float32: values times scale, plus the product of low rank."""
    values = cache.values.astype(jnp.float32)
    if cache.scale is not None:
        values = values * cache.scale.swapaxes(1, 2)[..., None]
    if cache.low_rank is not None:
        u, v = (factor.astype(jnp.float32) for factor in cache.low_rank)
        values = values + jnp.einsum("brl,bhrd->blhd", u, v)
    return values


def merge(
    listed: Float[Array, "B L H D"],
    listed_lse: Float[Array, "B H L"],
    others: Float[Array, "B L H D"],
    others_lse: Float[Array, "B H L"],
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
    """Attention over the union of two disjoint sets of keys, and the weight a of the first."""
    weight = jax.nn.sigmoid(listed_lse - others_lse).swapaxes(1, 2)
    return weight[..., None] * listed + (1 - weight[..., None]) * others, weight
