"""The operation: shapes and checks, and the choice of an implementation."""

from collections.abc import Sequence

from jaxtyping import Array, Bool, Float

from pallas_kernels.dispatch import AUTO, Implementation, Operation
from pallas_kernels.frame_order import strips_of
from pallas_kernels.rotary_heads import reference, tpu, xla
from pallas_kernels.rotary_heads.layout import ArrangedHeads, HeadLayout
from pallas_kernels.rotary_heads.reference import Projection

Heads = tuple[Float[Array, "B H L D"], Float[Array, "B H L D"], Float[Array, "B H L D"]]


def rotary_heads(
    projections: Sequence[Projection],
    cos: Float[Array, "N D"],
    sin: Float[Array, "N D"],
    *,
    heads: int,
    epsilon: float = 1e-6,
    implementation: str = AUTO,
) -> Heads:
    """Queries and keys after RMSNorm and rotary embedding, and values, head-major.

    Channels 2i and 2i + 1 of a head, normed to (a, b), become (a cos - b sin, b cos + a sin): adjacent pairs, as in
    RoFormer (section 3.2) and HunyuanVideo; LLaMA pairs the halves of a head. The norm's statistics and the rotation are
    float32; in between, x / rms(x) and its product with the scale are rounded to the input's dtype, as in HunyuanVideo.

    Args:
        projections: of tokens that follow one another, such as video and text, which have layers of their own.
        cos, sin: float32, of the first N tokens of all; the others, the text, are not rotated. Both columns of a pair are equal.
        heads: H.
        epsilon: added to the mean square.
        implementation: "auto" or a name of `ROTARY_HEADS.implementations`.

    Returns:
        q, k, v of all tokens, [B, H, L, D] each, in the input's dtype. All implementations are differentiable.

    Raises:
        ValueError: shapes that do not go together.
        UnsupportedError: the implementation cannot serve this call; the message says why.
    """
    projections = tuple(projections)
    _check(projections, cos, sin, heads)
    length = sum(projected.shape[1] for projected, _, _ in projections)
    layout = HeadLayout.plain(length, len(cos))
    q, k, v, _ = _serve(projections, cos, sin, layout, None, heads, epsilon, implementation)
    return q, k, v


def arranged_heads(
    projections: Sequence[Projection],
    cos: Float[Array, "N D"],
    sin: Float[Array, "N D"],
    layout: HeadLayout,
    second: Bool[Array, "B H"] | None = None,
    *,
    heads: int,
    epsilon: float = 1e-6,
    implementation: str = AUTO,
) -> ArrangedHeads:
    """The same in the rows and in the order that attention reads: what it would pad, cut and permute costs more than this.

    Args:
        projections, cos, sin, heads, epsilon, implementation: as in `rotary_heads`; the video are the N rotated tokens.
        layout: rows of the result.
        second: which heads have the second order of tokens; needed if the layout has `frames`.

    Raises:
        ValueError, UnsupportedError: as in `rotary_heads`.
    """
    projections = tuple(projections)
    _check(projections, cos, sin, heads)
    _check_layout(projections, len(cos), layout, second, heads)
    return _serve(projections, cos, sin, layout, second, heads, epsilon, implementation)


def _serve(
    projections: tuple[Projection, ...],
    cos: Array,
    sin: Array,
    layout: HeadLayout,
    second: Array | None,
    heads: int,
    epsilon: float,
    implementation: str,
) -> ArrangedHeads:
    first = projections[0]
    serve = ROTARY_HEADS.serve(
        implementation,
        dtype=first.projected.dtype,
        head_dim=first.q_scale.shape[0],
        strips=strips_of(len(cos), layout.frames),
    )
    return serve(projections, cos, sin, second, heads=heads, epsilon=epsilon, layout=layout)


def _check_layout(
    projections: tuple[Projection, ...],
    video: int,
    layout: HeadLayout,
    second: Array | None,
    heads: int,
) -> None:
    text = sum(projected.shape[1] for projected, _, _ in projections) - video
    queries = video if layout.apart else layout.text + text
    if layout.text < video or layout.queries < queries or layout.keys < layout.text + text:
        raise ValueError(f"{layout} has no room for {video} tokens of video and {text} of text")
    samples, whole, _ = projections[0].projected.shape
    if not layout.frames:
        return
    if whole < video or video % layout.frames:
        raise ValueError(
            f"{video} tokens are not {layout.frames} frames in the first of the projections"
        )
    if second is None or second.shape != (samples, heads):
        found = None if second is None else second.shape
        raise ValueError(f"`second` has shape {found}, expected {(samples, heads)}")


def _check(projections: tuple[Projection, ...], cos: Array, sin: Array, heads: int) -> None:
    size = projections[0].q_scale.shape[0]
    if size % 2:
        raise ValueError(f"heads of {size} channels have no pairs to rotate")
    samples, _, _ = projections[0].projected.shape
    for projected, q_scale, k_scale in projections:
        if projected.shape[0] != samples or projected.shape[2] < 3 * heads * size:
            raise ValueError(
                f"a projection has shape {projected.shape}, expected {samples} samples, and q, k, v of {heads} heads of {size}"
            )
        if not q_scale.shape == k_scale.shape == (size,):
            raise ValueError(
                f"q_scale and k_scale have shapes {q_scale.shape} and {k_scale.shape}, expected ({size},)"
            )
    length = sum(projected.shape[1] for projected, _, _ in projections)
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
