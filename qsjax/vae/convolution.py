"""The causal 3-D convolution, in the form that is fast on the backend."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import targets


def convolve(
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "kT kH kW C O"],
    stride: tuple[int, int, int] = (1, 1, 1),
) -> Float[Array, "B T2 H2 W2 O"]:
    """Convolve with replicated borders: kH//2 and kW//2 pixels on each side, kT-1 frames before the first.

    XLA's 3-D convolution is several times slower than its 2-D one on a CPU, and by a TPU compiler's estimate half as slow
    again, so there the temporal taps are 2-D convolutions with the frames as batch; on a GPU it is one 3-D convolution.
    """
    depth, height, width = kernel.shape[:3]
    sides = ((0, 0), (depth - 1, 0), (height // 2, height // 2), (width // 2, width // 2), (0, 0))
    backend = targets.current().backend
    pad, form = (gathered if backend == "cpu" else copied), (whole if backend == "gpu" else taps)
    return form(pad(x, sides), kernel, stride)


Sides = tuple[tuple[int, int], ...]
"""Elements to add before and after, for each axis."""


def copied(x: Array, sides: Sides) -> Array:
    """Pad with copies of the first and the last element of each axis: two slices and a concatenation a side."""
    return jnp.pad(x, sides, mode="edge")


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(x: Array, sides: Sides) -> Array:
    """The same by one gather an axis, which a CPU's compiler takes a quarter less time for; a TPU is slow at gathers.

    The gradient is that of `copied`: a gather's own, a scatter, is slow everywhere.
    """
    for axis, (before, after) in enumerate(sides):
        if before or after:
            length = x.shape[axis]
            nearest = np.clip(np.arange(-before, length + after, dtype=np.int32), 0, length - 1)
            x = jnp.take(x, nearest, axis=axis, mode="clip")
    return x


def _forward(x: Array, sides: Sides) -> tuple[Array, None]:
    return gathered(x, sides), None


def _backward(sides: Sides, _: None, gradient: Array) -> tuple[Array]:
    shape = tuple(n - sum(side) for n, side in zip(gradient.shape, sides, strict=True))
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    return tuple(jax.linear_transpose(partial(copied, sides=sides), x)(gradient))


gathered.defvjp(_forward, _backward)


def whole(x: Array, kernel: Array, stride: tuple[int, int, int]) -> Array:
    """One 3-D convolution without padding."""
    return lax.conv_general_dilated(
        x, kernel, stride, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def taps(x: Array, kernel: Array, stride: tuple[int, int, int]) -> Array:
    """The sum over temporal taps of 2-D convolutions without padding, each in x's dtype."""
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
