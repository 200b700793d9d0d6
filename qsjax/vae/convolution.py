"""The causal 3-D convolution, in the form that is fast on the backend."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "kT kH kW C O"],
    stride: tuple[int, int, int] = (1, 1, 1),
) -> Float[Array, "B T2 H2 W2 O"]:
    """Convolve with replicated borders: kH//2 and kW//2 pixels on each side, kT-1 frames before the first.

    On the CPU backend XLA's 3-D convolution is several times slower than its 2-D one, so there the
    temporal taps are 2-D convolutions with the frames as batch; elsewhere it is one 3-D convolution.
    """
    depth, height, width = kernel.shape[:3]
    sides = ((0, 0), (depth - 1, 0), (height // 2, height // 2), (width // 2, width // 2), (0, 0))
    padded = jnp.pad(x, sides, mode="edge")
    form = taps if jax.default_backend() == "cpu" else whole
    return form(padded, kernel, stride)


def whole(x: Array, kernel: Array, stride: tuple[int, int, int]) -> Array:
    """One 3-D convolution without padding."""
    return lax.conv_general_dilated(
        x, kernel, stride, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def taps(x: Array, kernel: Array, stride: tuple[int, int, int]) -> Array:
    """The sum over temporal taps of 2-D convolutions without padding."""
    depth, batch = kernel.shape[0], x.shape[0]
    frames = (x.shape[1] - depth) // stride[0] + 1
    parts = []
    for tap in range(depth):
        seen = x[:, tap : tap + (frames - 1) * stride[0] + 1 : stride[0]]
        part = lax.conv_general_dilated(
            seen.reshape(-1, *seen.shape[2:]),
            kernel[tap],
            stride[1:],
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        parts.append(part)
    total = sum(parts[1:], parts[0])
    return total.reshape(batch, frames, *total.shape[1:])
