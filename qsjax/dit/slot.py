"""The linear slot: what a block asks of a layer besides calling it.

A plain `nnx.Linear` has none of these methods and gets arrays. A layer that has them (a quantized one, which fuses the
operations before it into one pass over the tokens, and those after it into the matmul's epilogue) returns its input
prepared, in a form that only the layer itself has to understand.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qsjax.dit.norms import modulate

Prepared = TypeVar("Prepared")


@runtime_checkable
class HasKernel(Protocol):
    """A layer with a floating-point kernel."""

    kernel: nnx.Param


@runtime_checkable
class HasDtype(Protocol):
    """A layer whose weights do not tell the dtype of its output."""

    dtype: jnp.dtype


def modulated_input(
    layer: Callable[[Prepared | Array], Array],
    x: Float[Array, "B L C"],
    shift: Float[Array, "B C"],
    scale: Float[Array, "B C"],
) -> Prepared | Array:
    """What to call `layer` with: LN(x) * (1 + scale) + shift, in the form that the layer takes."""
    prepare = getattr(layer, "modulated_input", None)
    return modulate(x, shift, scale) if prepare is None else prepare(x, shift, scale)


def activated_input(
    layer: Callable[[Prepared | Array], Array], hidden: Float[Array, "B L C"]
) -> Prepared | Array:
    """The input of an MLP's second layer: GELU (tanh form) of the first one's output."""
    prepare = getattr(layer, "activated_input", None)
    return gelu(hidden) if prepare is None else prepare(hidden)


def joined_input(
    layer: Callable[[Prepared | Array], Array],
    attended: Float[Array, "B L C"],
    hidden: Float[Array, "B L F"],
) -> Prepared | Array:
    """The input of a single block's second layer: the attention's output beside GELU(hidden)."""
    prepare = getattr(layer, "joined_input", None)
    if prepare is None:
        return jnp.concatenate([attended, gelu(hidden)], axis=-1)
    return prepare(attended, hidden)


def split_output(
    layer: Callable[[Prepared | Array], Array], prepared: Prepared | Array, at: int
) -> tuple[Float[Array, "B L C"], Float[Array, "B L F"]]:
    """A layer's output in two: channels 0 to `at`, after which more may follow, and the channels from `at` on.

    Cutting an array costs a copy before a kernel, so a layer that can computes two arrays instead.
    """
    split = getattr(layer, "split_output", None)
    if split is not None:
        return split(prepared, at)
    whole = layer(prepared)
    return whole, whole[..., at:]


def gated_sum(
    x: Float[Array, "B L N"],
    gate: Float[Array, "B N"],
    layer: Callable[[Prepared | Array], Array],
    prepared: Prepared | Array,
) -> Float[Array, "B L N"]:
    """x + gate * layer(prepared), the gate the same for all tokens of a sample."""
    fused = getattr(layer, "gated_sum", None)
    if fused is None:
        return x + gate[:, None] * layer(prepared)
    return fused(x, gate, prepared)


def gelu(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """The tanh form of GELU, as in the original."""
    return jax.nn.gelu(x, approximate=True)


def dtype_of(layer: HasKernel | HasDtype) -> jnp.dtype:
    """The dtype that a layer computes in: its weights', or its `dtype` where they are integers."""
    return layer.kernel.dtype if isinstance(layer, HasKernel) else layer.dtype
