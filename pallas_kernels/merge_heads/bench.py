"""Attention's output of a sparse step of HunyuanVideo as cases for the benchmark: one order for all heads, and two."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.merge_heads.api import merge_heads
from pallas_kernels.roofline import Program, Work, random_like, spec
from pallas_kernels.targets import Target


@dataclass(frozen=True)
class MergeCase:
    """bfloat16, one sample.

    Attributes:
        length: tokens of the video.
        text: of the text.
        heads: of `head_dim` channels each.
        head_dim: channels.
        frames: of a second order, which every other head has; 0 without.
        implementation: name of the implementation.
    """

    length: int
    text: int
    heads: int
    head_dim: int
    frames: int
    implementation: str

    @property
    def name(self) -> str:
        """The orders and the shape."""
        orders = f"two orders, {self.frames} frames" if self.frames else "one order"
        return f"{orders} {self.length} + {self.text} tokens, {self.heads} x {self.head_dim}"

    @property
    def work(self) -> Work:
        """All values are read and written."""
        values = (self.length + self.text) * self.heads * self.head_dim
        return Work(0.0, "bfloat16", 2.0 * 2 * values)

    def _specs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        rows = (
            spec(1, self.heads, length, self.head_dim, dtype=jnp.bfloat16)
            for length in (self.length, self.text)
        )
        return (*rows, spec(1, self.heads, dtype=jnp.bool_))

    def operands(self) -> tuple[Any, ...]:
        """Random numbers, and every other head in the second order."""
        second = jnp.arange(self.heads)[None] % 2 == 1
        return *random_like(self._specs()[:2]), second

    def call(self, implementation: str) -> Callable[..., Any]:
        """The operation."""

        def tokens(
            video: Float[Array, "B H S D"],
            text: Float[Array, "B H U D"],
            second: Bool[Array, "B H"],
        ) -> tuple[Array, ...]:
            return merge_heads(
                video,
                text,
                second,
                lengths=(self.length + self.text,),
                frames=self.frames,
                implementation=implementation,
            )

        return tokens

    def program(self, target: Target) -> Program:
        """The whole call."""
        call = self.call(f"{self.implementation}@{target.name}")
        return Program(call, self._specs(), self.work.bytes)


def _cases(
    implementation: str, length: int, text: int, heads: int, frames: tuple[int, ...] = (0, 16)
) -> tuple[MergeCase, ...]:
    return tuple(MergeCase(length, text, heads, 128, each, implementation) for each in frames)


CASES = {
    # Without text, and in one order: the compiler's profiler knows neither updates in place nor copies of strips.
    "tpu": _cases("tpu", 4096, 0, 24, frames=(0,)),
    "gpu": _cases("reference", 24960, 256, 24),
    "cpu": _cases("reference", 2048, 256, 6),
}
"""By backend; a CPU gets a quarter of the heads."""
