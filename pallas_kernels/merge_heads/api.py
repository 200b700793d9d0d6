"""The operation: shapes and checks, and the choice of an implementation."""

from jaxtyping import Array, Bool, Float

from pallas_kernels.dispatch import AUTO, Implementation, Operation
from pallas_kernels.frame_order import strips_of
from pallas_kernels.merge_heads import reference, tpu


def merge_heads(
    video: Float[Array, "B H S D"],
    text: Float[Array, "B H U D"],
    second: Bool[Array, "B H"] | None = None,
    *,
    lengths: tuple[int, ...],
    frames: int = 0,
    implementation: str = AUTO,
) -> tuple[Float[Array, "B _ C"], ...]:
    """Attention's output as the next layer reads it: tokens in the model's order, the channels of all heads side by side.

    Args:
        video: head by head, the video's tokens from row 0; rows after them are not read.
        text: the text's.
        second: heads whose video tokens are in the second order (`pallas_kernels.frame_order`); needed with `frames`.
        lengths: tokens of each result, of which there are as many as projections; the video's and then the text's in all.
        frames: of the video; 0 if no head has the second order.
        implementation: "auto" or a name of `MERGE_HEADS.implementations`.

    Returns:
        [B, L, H D] for each length, in the input's dtype. All implementations are differentiable.

    Raises:
        ValueError: shapes that do not go together.
        UnsupportedError: the implementation cannot serve this call; the message says why.
    """
    count = sum(lengths) - text.shape[2]
    if not 0 <= count <= video.shape[2] or (frames and count % frames):
        raise ValueError(
            f"results of {lengths} tokens, of which {text.shape[2]} are text: {video.shape[2]} rows do not have the others"
            f" in {max(frames, 1)} equal frames"
        )
    if frames and (second is None or second.shape != video.shape[:2]):
        found = None if second is None else second.shape
        raise ValueError(f"`second` has shape {found}, expected {video.shape[:2]}")
    serve = MERGE_HEADS.serve(
        implementation,
        dtype=video.dtype,
        head_dim=video.shape[3],
        lengths=lengths,
        video=count,
        strips=strips_of(count, frames),
    )
    return serve(video, text, second, lengths=lengths, frames=frames)


def _always(**_: object) -> None:
    return None


MERGE_HEADS = Operation(
    "merge_heads",
    {
        "tpu": Implementation(tpu.merge_heads, tpu.objection, tiled=True),
        "reference": Implementation(reference.merge_heads, _always),
    },
)
