"""The causal 3-D convolution, in the form that is fast on the backend."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_FRAMES_AS_BATCH = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "kT kH kW C O"],
    stride: tuple[int, int, int] = (1, 1, 1),
) -> Float[Array, "B T2 H2 W2 O"]:
    """Convolve with replicated borders: kH//2 and kW//2 pixels on each side, kT-1 frames in front.

    On the CPU backend XLA's 3-D convolution is several times slower than its 2-D one, so there the
    temporal taps are 2-D convolutions with the frames as batch; elsewhere it is one 3-D convolution.
    """
    depth, height, width = kernel.shape[:3]
    sides = ((0, 0), (depth - 1, 0), (height // 2, height // 2), (width // 2, width // 2), (0, 0))
    padded = jnp.pad(x, sides, mode="edge")
    if jax.default_backend() != "cpu":
        return whole(padded, kernel, stride)
    return taps(padded, kernel) if stride == (1, 1, 1) else strided_taps(padded, kernel, stride)


def whole(x: Array, kernel: Array, stride: tuple[int, int, int]) -> Array:
    """One 3-D convolution without padding."""
    return lax.conv_general_dilated(
        x, kernel, stride, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def strided_taps(x: Array, kernel: Array, stride: tuple[int, int, int]) -> Array:
    """The sum over temporal taps of 2-D convolutions without padding."""
    depth, batch = kernel.shape[0], x.shape[0]
    frames = (x.shape[1] - depth) // stride[0] + 1
    parts = [
        lax.conv_general_dilated(
            _flat(x[:, tap : tap + (frames - 1) * stride[0] + 1 : stride[0]]),
            kernel[tap],
            stride[1:],
            "VALID",
            dimension_numbers=_FRAMES_AS_BATCH,
        )
        for tap in range(depth)
    ]
    total = sum(parts[1:], parts[0])
    return total.reshape(batch, frames, *total.shape[1:])


@jax.custom_vjp
def taps(x: Array, kernel: Array) -> Array:
    """`strided_taps` of stride 1, with a kernel gradient that XLA computes twice as fast on a CPU."""
    return strided_taps(x, kernel, (1, 1, 1))


def _taps_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return taps(x, kernel), (x, kernel)


def _taps_backward(residual: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residual
    frames = g.shape[1]
    # The gradient of a kernel is itself a convolution: channels are its batch, frames of all samples its
    # channels, and the cotangent its window.
    by_tap = [
        lax.conv_general_dilated(
            _flat(x[:, tap : tap + frames]),
            _flat(g),
            (1, 1),
            "VALID",
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
        )
        for tap in range(kernel.shape[0])
    ]
    # And that of the input is the convolution with the mirrored kernel, fully overhanging.
    sides = ((0, 0), *((size - 1, size - 1) for size in kernel.shape[:3]), (0, 0))
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4)
    return taps(jnp.pad(g, sides), mirrored), jnp.stack(by_tap)


taps.defvjp(_taps_forward, _taps_backward)


def _flat(x: Array) -> Array:
    """Frames as batch."""
    return x.reshape(-1, *x.shape[2:])
