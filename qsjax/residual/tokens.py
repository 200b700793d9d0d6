"""What attention over lists reads, in the order of the lists, and how its output gets back.

Queries, keys and values are there already, tokens first; or they are made where the kernel reads them (`qsjax.dit.heads`).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from pallas_kernels import HeadLayout
from pallas_kernels.block_sparse_attention import BLOCK_SPARSE_ATTENTION
from pallas_kernels.dispatch import parse
from qsjax.dit.heads import HeadSource
from qsjax.sparse import Choice, Pattern

Out_co = TypeVar("Out_co", covariant=True)


class Arranged(NamedTuple):
    """Tokens in the order of the lists; the text, which follows the video, keeps its order.

    Attributes:
        video: queries of the video.
        keys, values: of video and text.
        valid: keys that may be seen.
        text: queries of the text.
    """

    video: Float[Array, "B S H D"]
    keys: Float[Array, "B K H D"]
    values: Float[Array, "B K H D"]
    valid: Bool[Array, "B K"]
    text: Float[Array, "B T H D"]


@runtime_checkable
class Heads(Protocol[Out_co]):
    """One layer's queries, keys and values, however they come."""

    def choose(self, pattern: Pattern) -> Choice:
        """New lists or orders."""
        ...

    def arranged(self, pattern: Pattern, choice: Choice) -> Arranged:
        """In the order of the lists."""
        ...

    def restored(
        self,
        pattern: Pattern,
        choice: Choice,
        video: Float[Array, "B S H D"],
        text: Float[Array, "B T H D"],
    ) -> Out_co:
        """The output of the video's queries back in the model's order, followed by the text's."""
        ...


@dataclass(frozen=True)
class Made:
    """Queries, keys and values with tokens first, video before text in the model's order; outputs are like them."""

    q: Float[Array, "B L H D"]
    k: Float[Array, "B L H D"]
    v: Float[Array, "B L H D"]
    kv_valid: Bool[Array, "B L"]

    def choose(self, pattern: Pattern) -> Choice:
        """See `Heads`."""
        return pattern.choose(self.q, self.k, self.v, self.kv_valid)

    def arranged(self, pattern: Pattern, choice: Choice) -> Arranged:
        """Orders are made with heads before tokens, as kernels want them: the kernel's first transposition undoes the last one here,
        and the compiler leaves out both."""
        orders, second = pattern.orders, choice.second
        video = orders.queries(self.q.swapaxes(1, 2), second)
        keys, values = (orders.keys(x.swapaxes(1, 2), second) for x in (self.k, self.v))
        video, keys, values = (x.swapaxes(1, 2) for x in (video, keys, values))
        text = self.q[:, pattern.layouts[0].tokens :]
        return Arranged(video, keys, values, orders.valid(self.kv_valid), text)

    def restored(
        self,
        pattern: Pattern,
        choice: Choice,
        video: Float[Array, "B S H D"],
        text: Float[Array, "B T H D"],
    ) -> Float[Array, "B L H D"]:
        """See `Heads`."""
        video, text = (x.swapaxes(1, 2) for x in (video, text))
        return pattern.orders.restore(video, text, choice.second).swapaxes(1, 2)


@dataclass(frozen=True)
class ToMake:
    """Queries, keys and values that kernels make in the order and in the rows of the lists; outputs are as the next layers read them.

    Attributes:
        source: makes them.
        layout: of the lists.
        kv_valid: keys that may be seen, video before text.
        made: what `arranged` returns, if it is made already.
    """

    source: HeadSource
    layout: HeadLayout
    kv_valid: Bool[Array, "B L"]
    made: Arranged | None = None

    def choose(self, pattern: Pattern) -> Choice:
        """From heads in the model's order. They are made again in the order that this chooses: that costs less than to move them."""
        return pattern.choose(*self.source.plain(), self.kv_valid)

    def arranged(self, pattern: Pattern, choice: Choice) -> Arranged:
        """See `Heads`."""
        if self.made is not None:
            return self.made
        heads = self.source.arranged(self.layout, choice.second)
        assert heads.text is not None  # the layout has the text apart
        video, keys, values, text = (
            x.swapaxes(1, 2) for x in (heads.q, heads.k, heads.v, heads.text)
        )
        valid = pattern.orders.valid(self.kv_valid)
        valid = jnp.pad(valid, ((0, 0), (0, self.layout.keys - valid.shape[1])))
        return Arranged(video, keys, values, valid, text)

    def restored(
        self,
        pattern: Pattern,
        choice: Choice,
        video: Float[Array, "B S H D"],
        text: Float[Array, "B T H D"],
    ) -> tuple[Float[Array, "B _ C"], ...]:
        """See `Heads`."""
        del pattern
        video, text = (x.swapaxes(1, 2) for x in (video, text))
        return self.source.merged(video, text, choice.second, self.layout.frames)

    def ready(self, pattern: Pattern, choice: Choice) -> "ToMake":
        """The same, made: for those who look at heads besides attention."""
        return replace(self, made=self.arranged(pattern, choice))

    def queries(
        self, pattern: Pattern, choice: Choice, rows: np.ndarray
    ) -> Float[Array, "B R H D"]:
        """Queries of some of the video's tokens, given by their places in the model's order."""
        video, frames = self.arranged(pattern, choice).video, self.layout.frames
        few = picked(video, rows)
        if not frames:
            return few
        assert choice.second is not None  # the layout has two orders
        frame, position = np.divmod(rows, self.source.video // frames)
        other = picked(video, position * frames + frame)
        return jnp.where(choice.second[:, None, :, None], other, few)


def picked(x: Shaped[Array, "B L *C"], rows: np.ndarray) -> Shaped[Array, "B R *C"]:
    """Some rows, cut one by one: indexing with all of them would bring the whole array to another layout of memory first."""
    return jnp.concatenate([x[:, row : row + 1] for row in rows.tolist()], axis=1)


def to_make(
    pattern: Pattern, source: HeadSource, kv_valid: Bool[Array, "B L"], implementation: str
) -> ToMake | None:
    """Heads that kernels make for the lists of a pattern; None where not all of it is a kernel, or an order is none of theirs.

    Args:
        pattern: the sparsity pattern.
        source: the layer's heads before they are made.
        kv_valid: keys that may be seen.
        implementation: of `pallas_kernels.block_sparse_attention`.
    """
    layout = pattern.orders.head_layout(source.text)
    if layout is None or not source.arranges(layout.frames):
        return None
    name, target = parse(implementation)
    first = source.projections[0]
    chosen = BLOCK_SPARSE_ATTENTION.choose(
        name,
        backend=target.backend,
        dtype=first.projected.dtype,
        head_dim=first.q_scale.shape[0],
        block_q=pattern.config.block_q,
        block_kv=pattern.config.block_kv,
    )
    return ToMake(source, layout, kv_valid) if chosen == "tpu" else None
