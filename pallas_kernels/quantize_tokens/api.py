"""The operation: shapes, dtypes and checks, and the choice of an implementation."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.absmax import limit
from pallas_kernels.activations import ACTIVATIONS, Activation
from pallas_kernels.dispatch import AUTO, Implementation, Operation
from pallas_kernels.quantize_tokens import gpu, reference, tpu, xla
from pallas_kernels.quantize_tokens.reference import NORMS, Norm

BITS = (4, 6, 8)


def quantize_tokens(
    x: Float[Array, "M C"],
    *,
    norm: Norm = "none",
    activation: Activation = "none",
    shift: Float[Array, "*S C"] | None = None,
    scale: Float[Array, "*G C"] | None = None,
    smoothing: Float[Array, " C"] | None = None,
    rotation: Float[Array, "R R"] | None = None,
    bits: int = 8,
    clip: Float[Array, ""] | float = 1.0,
    epsilon: float = 1e-6,
    implementation: str = AUTO,
) -> tuple[Int8[Array, "M C"], Float[Array, " M"]]:
    """Integers and a scale for each token, of `rotate((norm(activation(x)) (1 + scale) + shift) / smoothing)`.

    With Q = 2^(bits-1) - 1 and a the largest absolute value of a row, its scale is clip a / Q and its integers are
    round(y / scale), to even, limited to -Q - 1 .. Q (dynamic per-token quantization; QuantSparse, section 3.1).
    Everything is float32, except the product with the rotation, whose operands take the rotation's dtype. A row of
    zeros gives zeros.

    Args:
        x: activations.
        norm: "layer" is LayerNorm without weights.
        activation: "gelu_tanh" for the input of an MLP's second matmul.
        shift, scale: modulation, [C], or [G, C] for G groups of M/G consecutive rows (one a sample).
        smoothing: divisor of each channel; the weights' rows are multiplied by it.
        rotation: orthogonal, applied to every run of R channels: y R.
        bits: 4, 6 or 8; the integers are int8 in any case.
        clip: shrinks the range that integers cover, for outliers.
        epsilon: added to the variance.
        implementation: "auto" or a name of `QUANTIZE_TOKENS.implementations`.

    Returns:
        Integers, and float32 scales.

    Raises:
        ValueError: shapes or settings that do not go together.
        UnsupportedError: the implementation cannot serve this call; the message says why.
    """
    _check(x, norm, activation, shift, scale, smoothing, rotation, bits)
    serve = QUANTIZE_TOKENS.serve(
        implementation,
        dtype=x.dtype,
        channels=x.shape[1],
        rotated=0 if rotation is None else rotation.shape[0],
    )
    gain, offset = _affine(x.shape[1], shift, scale, smoothing)
    clip = jnp.asarray(clip, jnp.float32)
    settings = {"norm": norm, "activation": activation, "limit": limit(bits), "epsilon": epsilon}
    return serve(x, gain, offset, rotation, clip, **settings)


def _affine(
    channels: int, shift: Array | None, scale: Array | None, smoothing: Array | None
) -> tuple[Array, Array]:
    """Modulation and smoothing as one gain and one offset, float32 [G, C]: they cost a kernel nothing extra."""
    ones = jnp.ones((1, channels), jnp.float32)
    gain = ones if scale is None else 1 + scale.reshape(-1, channels).astype(jnp.float32)
    offset = 0 * ones if shift is None else shift.reshape(-1, channels).astype(jnp.float32)
    if smoothing is not None:
        divisor = smoothing.astype(jnp.float32)[None]
        gain, offset = gain / divisor, offset / divisor
    shape = (max(len(gain), len(offset)), channels)
    return jnp.broadcast_to(gain, shape), jnp.broadcast_to(offset, shape)


def _check(
    x: Array,
    norm: str,
    activation: str,
    shift: Array | None,
    scale: Array | None,
    smoothing: Array | None,
    rotation: Array | None,
    bits: int,
) -> None:
    rows, channels = x.shape
    for value, known in ((norm, NORMS), (activation, ACTIVATIONS), (bits, BITS)):
        if value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(map(str, known))}")
    groups: set[int] = set()
    for name, array in (("shift", shift), ("scale", scale)):
        if array is None:
            continue
        if array.ndim > 2 or array.shape[-1] != channels:
            raise ValueError(
                f"{name} has shape {array.shape}, expected ({channels},) or (G, {channels})"
            )
        groups.add(array.size // channels)
    if len(groups - {1}) > 1 or any(rows % group for group in groups):
        raise ValueError(f"shift and scale for {sorted(groups)} groups do not divide {rows} rows")
    if smoothing is not None and smoothing.shape != (channels,):
        raise ValueError(f"smoothing has shape {smoothing.shape}, expected {(channels,)}")
    if rotation is not None and (
        rotation.ndim != 2 or rotation.shape[0] != rotation.shape[1] or channels % len(rotation)
    ):
        raise ValueError(
            f"a rotation of shape {rotation.shape} does not divide {channels} channels"
        )


def _always(**_: object) -> None:
    return None


QUANTIZE_TOKENS = Operation(
    "quantize_tokens",
    {
        "tpu": Implementation(tpu.quantize_tokens, tpu.objection, tiled=True),
        # XLA's is the faster of the two on an H200, by 2.6 to 5.8 times with GELU: docs/benchmarks.md.
        "xla": Implementation(xla.quantize_tokens, _always),
        "gpu": Implementation(gpu.quantize_tokens, gpu.objection, tiled=True),
        "reference": Implementation(reference.quantize_tokens, _always),
    },
)
