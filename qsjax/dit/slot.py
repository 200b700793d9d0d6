"""The linear slot: what a block asks of a layer besides calling it.

A plain `nnx.Linear` knows none of these methods and gets arrays. A layer that has them (a quantized one, which
fuses what stands in front of it into one pass over the tokens, and what comes after into the matmul's epilogue)
is asked, and may hand itself whatever it likes from one to the other.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qsjax.dit.norms import modulate


def modulated_input(
    layer: Any, x: Float[Array, "B L C"], shift: Float[Array, "B C"], scale: Float[Array, "B C"]
) -> Any:
    """What `layer` shall be called with: LN(x) * (1 + scale) + shift, in the form that the layer wants."""
    ask = getattr(layer, "modulated_input", None)
    return modulate(x, shift, scale) if ask is None else ask(x, shift, scale)


def activated_input(layer: Any, hidden: Float[Array, "B L C"]) -> Any:
    """The input of an MLP's second layer: GELU (tanh form) of the first one's output."""
    ask = getattr(layer, "activated_input", None)
    return gelu(hidden) if ask is None else ask(hidden)


def joined_input(layer: Any, attended: Float[Array, "B L C"], hidden: Float[Array, "B L F"]) -> Any:
    """The input of a single block's second layer: the attention's output beside GELU(hidden)."""
    ask = getattr(layer, "joined_input", None)
    if ask is None:
        return jnp.concatenate([attended, gelu(hidden)], axis=-1)
    return ask(attended, hidden)


def gated_sum(
    x: Float[Array, "B L N"], gate: Float[Array, "B N"], layer: Any, given: Any
) -> Float[Array, "B L N"]:
    """x + gate * layer(given), the gate the same for all tokens of a sample."""
    ask = getattr(layer, "gated_sum", None)
    return x + gate[:, None] * layer(given) if ask is None else ask(x, gate, given)


def gelu(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """The tanh form of GELU, as in the original."""
    return jax.nn.gelu(x, approximate=True)


def dtype_of(layer: Any) -> jnp.dtype:
    """The dtype that a layer computes in: its weights', or what it says where they are integers."""
    kernel = getattr(layer, "kernel", None)
    return layer.dtype if kernel is None else kernel.dtype
