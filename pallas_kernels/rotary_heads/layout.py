"""Where attention wants the rows of every head, so that nothing is padded, cut or permuted afterwards."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from pallas_kernels.frame_order import reordered


@dataclass(frozen=True)
class HeadLayout:
    """Rows of queries, keys and values: the video's tokens first, the text's from a row of their own on, zeros elsewhere.

    The video's tokens are those that are rotated.

    Attributes:
        queries: rows of q.
        keys: rows of k and v.
        text: row of k and v where the text begins.
        apart: the text's queries are an array of their own; else they begin at row `text` of q.
        frames: of the video, for heads with the second order of tokens (`pallas_kernels.frame_order`); 0 if none has it.
    """

    queries: int
    keys: int
    text: int
    apart: bool = False
    frames: int = 0

    @classmethod
    def plain(cls, tokens: int, video: int) -> "HeadLayout":
        """One token after the other."""
        return cls(tokens, tokens, video)


class ArrangedHeads(NamedTuple):
    """Queries, keys and values in a `HeadLayout`.

    Attributes:
        q, k, v: head by head.
        text: queries of the text if they are apart, else None.
    """

    q: Float[Array, "B H Q D"]
    k: Float[Array, "B H K D"]
    v: Float[Array, "B H K D"]
    text: Float[Array, "B H U D"] | None = None


def arranged(
    q: Float[Array, "B H L D"],
    k: Float[Array, "B H L D"],
    v: Float[Array, "B H L D"],
    video: int,
    layout: HeadLayout,
    second: Bool[Array, "B H"] | None,
) -> ArrangedHeads:
    """Heads with one token after the other, `video` tokens first, in a layout."""
    if layout.frames:
        assert second is not None  # `api` checks it
        q, k, v = (
            jnp.concatenate([reordered(x[:, :, :video], second, layout.frames), x[:, :, video:]], 2)
            for x in (q, k, v)
        )
    text = None
    if layout.apart:
        q, text = placed(q[:, :, :video], video, video, layout.queries), q[:, :, video:]
    else:
        q = placed(q, video, layout.text, layout.queries)
    k, v = (placed(x, video, layout.text, layout.keys) for x in (k, v))
    return ArrangedHeads(q, k, v, text)


def placed(
    x: Shaped[Array, "B H L D"], first: int, start: int, rows: int
) -> Shaped[Array, "B H S D"]:
    """The first rows, and the others from row `start` on; zeros between and after them, up to `rows`."""
    if x.shape[2] == rows:
        return x
    pieces = ((x[:, :, :first], start), (x[:, :, first:], rows - start))
    padded = [
        jnp.pad(piece, ((0, 0), (0, 0), (0, length - piece.shape[2]), (0, 0)))
        for piece, length in pieces
    ]
    return jnp.concatenate(padded, axis=2)
