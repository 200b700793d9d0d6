"""The two kinds of block of HunyuanVideo as cases for the benchmark: a projection alone, and one with the MLP's half after it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.roofline import Program, Work, random_like, spec
from pallas_kernels.rotary_heads.api import Heads, rotary_heads
from pallas_kernels.rotary_heads.reference import Projection
from pallas_kernels.targets import Target


@dataclass(frozen=True)
class RotaryCase:
    """bfloat16, one sample.

    Attributes:
        length: tokens.
        text: how many of them, at the end, are not rotated.
        heads: of `head_dim` channels each.
        head_dim: even.
        more: channels after q, k and v, which are not read.
        implementation: name of the implementation.
    """

    length: int
    text: int
    heads: int
    head_dim: int
    more: int
    implementation: str

    @property
    def name(self) -> str:
        """What is read, and the shape."""
        before = "linear1" if self.more else "qkv"
        return f"{before} {self.length} tokens, {self.heads} x {self.head_dim}"

    @property
    def work(self) -> Work:
        """q, k, v read and written, float32 tables read."""
        values = 3 * self.length * self.heads * self.head_dim
        tables = 2 * (self.length - self.text) * self.head_dim
        return Work(0.0, "bfloat16", 2.0 * 2 * values + 4 * tables)

    def _specs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        channels = 3 * self.heads * self.head_dim + self.more
        scale = spec(self.head_dim, dtype=jnp.bfloat16)
        table = spec(self.length - self.text, self.head_dim)
        return spec(1, self.length, channels, dtype=jnp.bfloat16), scale, scale, table, table

    def operands(self) -> tuple[Any, ...]:
        """Random numbers; the tables need not be angles to be timed."""
        return random_like(self._specs())

    def call(self, implementation: str) -> Callable[..., Any]:
        """The operation."""

        def heads(
            projected: Float[Array, "B L C"],
            q_scale: Float[Array, " D"],
            k_scale: Float[Array, " D"],
            cos: Float[Array, "N D"],
            sin: Float[Array, "N D"],
        ) -> Heads:
            projections = [Projection(projected, q_scale, k_scale)]
            return rotary_heads(
                projections, cos, sin, heads=self.heads, implementation=implementation
            )

        return heads

    def program(self, target: Target) -> Program:
        """The whole call."""
        call = self.call(f"{self.implementation}@{target.name}")
        return Program(call, self._specs(), self.work.bytes)


def _cases(implementation: str, length: int, heads: int, text: int = 256) -> tuple[RotaryCase, ...]:
    return (
        RotaryCase(length, 0, heads, 128, 0, implementation),
        RotaryCase(length, text, heads, 128, 4 * heads * 128, implementation),
    )


CASES = {
    # Without text: its rows are added by an update in place, which the compiler's profiler does not know.
    "tpu": _cases("tpu", 4096, 24, text=0),
    "gpu": _cases("xla", 25216, 24),
    "cpu": _cases("xla", 2048, 6),
}
"""By backend; a CPU gets a quarter of the heads."""
