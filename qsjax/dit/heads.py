"""A layer's queries, keys and values before they are made: attention says where it wants to read them.

On a TPU every padding, cut or permutation of a whole tensor is a pass over memory of its own. Attention that runs as a Pallas
kernel asks for whole blocks in its own order of tokens, and gives its output back head by head.
"""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Bool, Float

from pallas_kernels import ArrangedHeads, HeadLayout, Projection, arranged_heads, merge_heads
from pallas_kernels.dispatch import AUTO, parse
from pallas_kernels.frame_order import strips_of
from pallas_kernels.merge_heads import MERGE_HEADS
from pallas_kernels.rotary_heads import ROTARY_HEADS, rotary_heads
from qsjax.dit.norms import EPSILON


@dataclass(frozen=True)
class HeadSource:
    """What `pallas_kernels.rotary_heads` makes heads of.

    Attributes:
        projections: of the video's tokens and then the text's, together or apart.
        cos, sin: rotary tables of the video's tokens, [N, D].
        heads: H.
        rotary: the implementation of `rotary_heads`, and of its inverse.
    """

    projections: tuple[Projection, ...]
    cos: Array
    sin: Array
    heads: int
    rotary: str = AUTO

    @property
    def video(self) -> int:
        """Tokens of the video, N."""
        return len(self.cos)

    @property
    def text(self) -> int:
        """Tokens of the text."""
        return sum(self.lengths) - self.video

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each projection."""
        return tuple(one.projected.shape[1] for one in self.projections)

    def arranges(self, frames: int = 0) -> bool:
        """Whether kernels serve a layout, and its inverse; without them it costs more than it saves.

        Args:
            frames: of a second order of tokens; 0 if there is none.
        """
        name, target = parse(self.rotary)
        first = self.projections[0]
        facts = {
            "backend": target.backend,
            "dtype": first.projected.dtype,
            "head_dim": first.q_scale.shape[0],
            "strips": strips_of(self.video, frames),
            "lengths": self.lengths,
            "video": self.video,
        }
        operations = (ROTARY_HEADS, MERGE_HEADS)
        return name in (AUTO, "tpu") and all(
            operation.objections(**facts)["tpu"] is None for operation in operations
        )

    @jax.named_scope("heads")
    def plain(
        self,
    ) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H D"], Float[Array, "B L H D"]]:
        """Queries, keys and values, tokens first.

        A kernel that wants heads first begins with the inverse transposition, and both vanish.
        """
        q, k, v = rotary_heads(
            self.projections,
            self.cos,
            self.sin,
            heads=self.heads,
            epsilon=EPSILON,
            implementation=self.rotary,
        )
        return q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)

    @jax.named_scope("heads")
    def arranged(
        self, layout: HeadLayout, second: Bool[Array, "B H"] | None = None
    ) -> ArrangedHeads:
        """Queries, keys and values in a layout, heads first; `second` are the heads with the second order of tokens."""
        return arranged_heads(
            self.projections,
            self.cos,
            self.sin,
            layout,
            second,
            heads=self.heads,
            epsilon=EPSILON,
            implementation=self.rotary,
        )

    @jax.named_scope("tokens")
    def merged(
        self,
        video: Float[Array, "B H S D"],
        text: Float[Array, "B H U D"],
        second: Bool[Array, "B H"] | None = None,
        frames: int = 0,
    ) -> tuple[Float[Array, "B _ C"], ...]:
        """Attention's output for the tokens of each projection, in the model's order, [B, L, H D] each."""
        return merge_heads(
            video, text, second, lengths=self.lengths, frames=frames, implementation=self.rotary
        )

    def divided(self, out: Float[Array, "B L H D"]) -> tuple[Float[Array, "B _ C"], ...]:
        """The same of an output with tokens first."""
        out, parts, start = out.reshape(*out.shape[:2], -1), [], 0
        for length in self.lengths:
            parts.append(out[:, start : start + length])
            start += length
        return tuple(parts)
