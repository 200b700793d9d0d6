"""The operation: shapes and checks, and the choice of an implementation."""

from jaxtyping import Array, Float

from pallas_kernels.dispatch import AUTO, Implementation, Operation
from pallas_kernels.rotary_heads import reference, tpu, xla


def rotary_heads(
    projected: Float[Array, "B L C"],
    q_scale: Float[Array, " D"],
    k_scale: Float[Array, " D"],
    cos: Float[Array, "N D"],
    sin: Float[Array, "N D"],
    *,
    heads: int,
    epsilon: float = 1e-6,
    implementation: str = AUTO,
) -> tuple[Float[Array, "B H L D"], Float[Array, "B H L D"], Float[Array, "B H L D"]]:
    """Queries and keys after RMSNorm and rotary embedding, and values, head-major.

    Channels 2i and 2i + 1 of a head, normed to (a, b), become (a cos - b sin, b cos + a sin): adjacent pairs, as in
    RoFormer (section 3.2) and HunyuanVideo; LLaMA pairs the halves of a head. The norm's statistics and the rotation are
    float32; in between, x / rms(x) and its product with the scale are rounded to the input's dtype, as in HunyuanVideo.

    Args:
        projected: q, k and v, H D channels each, head by head. Channels after these 3 H D are not read, so that the output of
            a wider layer is passed whole.
        q_scale, k_scale: weights of the two norms.
        cos, sin: float32, of the first N tokens; the others, the text, are not rotated. Both columns of a pair are equal.
        heads: H.
        epsilon: added to the mean square.
        implementation: "auto" or a name of `ROTARY_HEADS.implementations`.

    Returns:
        q, k, v in the input's dtype. All implementations are differentiable.

    Raises:
        ValueError: shapes that do not go together.
        UnsupportedError: the implementation cannot serve this call; the message says why.
    """
    _check(projected, q_scale, k_scale, cos, sin, heads)
    serve = ROTARY_HEADS.serve(implementation, dtype=projected.dtype, head_dim=q_scale.shape[0])
    return serve(projected, q_scale, k_scale, cos, sin, heads=heads, epsilon=epsilon)


def _check(
    projected: Array, q_scale: Array, k_scale: Array, cos: Array, sin: Array, heads: int
) -> None:
    _, length, channels = projected.shape
    size = q_scale.shape[0]
    if size % 2:
        raise ValueError(f"heads of {size} channels have no pairs to rotate")
    if k_scale.shape != q_scale.shape:
        raise ValueError(f"k_scale has shape {k_scale.shape}, q_scale {q_scale.shape}")
    if channels < 3 * heads * size:
        raise ValueError(f"{channels} channels are fewer than q, k, v of {heads} heads of {size}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (len(cos), size) or len(table) > length:
            raise ValueError(
                f"{name} has shape {table.shape}, expected (N, {size}) with the same N in both, up to {length} tokens"
            )


def _always(**_: object) -> None:
    return None


ROTARY_HEADS = Operation(
    "rotary_heads",
    {
        "tpu": Implementation(tpu.rotary_heads, tpu.objection, tiled=True),
        "xla": Implementation(xla.rotary_heads, _always),
        "reference": Implementation(reference.rotary_heads, _always),
    },
)
