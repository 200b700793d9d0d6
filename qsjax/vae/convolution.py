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
    """Convolve with replicated borders: kH//2 and kW//2 pixels on each side, kT-1 frames in front.

    On the CPU backend XLA's 3-D convolution is several times slower than its 2-D one, so there the
    temporal taps are 2-D convolutions with the frames as batch; elsewhere it is one 3-D convolution.
    """
    return (taps if jax.default_backend() == "cpu" else whole)(x, kernel, stride)


def whole(x: Array, kernel: Array, stride: tuple[int, int, int]) -> Array:
    """One 3-D convolution."""
    return lax.conv_general_dilated(
        _pad(x, kernel), kernel, stride, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def taps(x: Array, kernel: Array, stride: tuple[int, int, int]) -> Array:
    """The sum over temporal taps of 2-D convolutions."""
    padded, batch = _pad(x, kernel), x.shape[0]
    frames = (x.shape[1] - 1) // stride[0] + 1
    total = None
    for tap in range(kernel.shape[0]):
        seen = padded[:, tap : tap + (frames - 1) * stride[0] + 1 : stride[0]]
        part = lax.conv_general_dilated(
            seen.reshape(batch * frames, *seen.shape[2:]),
            kernel[tap],
            stride[1:],
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        total = part if total is None else total + part
    return total.reshape(batch, frames, *total.shape[1:])


def _pad(x: Array, kernel: Array) -> Array:
    depth, height, width = kernel.shape[:3]
    sides = ((0, 0), (depth - 1, 0), (height // 2, height // 2), (width // 2, width // 2), (0, 0))
    return jnp.pad(x, sides, mode="edge")
