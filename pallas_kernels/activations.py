"""The activations that an operation can fuse."""

from typing import Literal, get_args

import jax
from jaxtyping import Array, Float

Activation = Literal["none", "gelu_tanh"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def activate(x: Float[Array, "..."], activation: Activation) -> Float[Array, "..."]:
    """The activation of x; "gelu_tanh" is GELU by its tanh approximation."""
    return jax.nn.gelu(x, approximate=True) if activation == "gelu_tanh" else x
