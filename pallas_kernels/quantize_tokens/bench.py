"""The inputs of HunyuanVideo's linear layers as cases for the benchmark: LayerNorm with modulation, and GELU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.quantize_tokens.api import quantize_tokens
from pallas_kernels.quantize_tokens.reference import Norm
from pallas_kernels.roofline import Program, Work, random_like, spec
from pallas_kernels.targets import Target


@dataclass(frozen=True)
class TokensCase:
    """bfloat16 tokens to int8.

    Attributes:
        m: tokens.
        channels: of a token.
        rotation: channels that are rotated together; 0 is none.
        implementation: name of the implementation.
        norm: "layer" comes with modulation and smoothing; "none" with GELU.
    """

    m: int
    channels: int
    rotation: int
    implementation: str
    norm: Norm = "layer"

    @property
    def name(self) -> str:
        """What is fused, and the shape."""
        before = "LayerNorm, modulation, smoothing" if self.norm == "layer" else "gelu"
        rotated = f", rotation {self.rotation}" if self.rotation else ""
        return f"{before}{rotated} {self.m} x {self.channels}"

    @property
    def work(self) -> Work:
        """bfloat16 read, int8 and a float32 scale a token written; the rotation's products."""
        values = self.m * self.channels
        return Work(2.0 * values * self.rotation, "bfloat16", 3.0 * values + 4 * self.m)

    def _specs(self) -> tuple[Any, ...]:
        vector = spec(self.channels) if self.norm == "layer" else None
        rotation = spec(self.rotation, self.rotation, dtype=jnp.bfloat16) if self.rotation else None
        x = spec(self.m, self.channels, dtype=jnp.bfloat16)
        return x, vector, vector, vector, rotation

    def operands(self) -> tuple[Any, ...]:
        """Random tokens, shift, scale, smoothing and rotation, which need not be orthogonal to be timed."""
        return random_like(self._specs())

    def call(self, implementation: str) -> Callable[..., Any]:
        """The operation."""

        def quantize(
            x: Float[Array, "M C"],
            shift: Float[Array, " C"] | None,
            scale: Float[Array, " C"] | None,
            smoothing: Float[Array, " C"] | None,
            rotation: Float[Array, "R R"] | None,
        ) -> tuple[Int8[Array, "M C"], Float[Array, " M"]]:
            return quantize_tokens(
                x, norm=self.norm, activation="none" if self.norm == "layer" else "gelu_tanh",
                shift=shift, scale=scale, smoothing=smoothing, rotation=rotation,
                implementation=implementation,
            )  # fmt: skip

        return quantize

    def program(self, target: Target) -> Program:
        """The whole call."""
        call = self.call(f"{self.implementation}@{target.name}")
        return Program(call, self._specs(), self.work.bytes)


def _cases(implementation: str, tokens: int, width: int) -> tuple[TokensCase, ...]:
    return (
        TokensCase(tokens, width, 128, implementation),
        TokensCase(tokens, width, 0, implementation),
        TokensCase(tokens, 4 * width, 128, implementation, norm="none"),
    )


CASES = {
    "tpu": _cases("tpu", 4096, 3072),
    "gpu": (*_cases("gpu", 4096, 3072), *_cases("gpu", 25216, 3072)),
    "cpu": _cases("xla", 2048, 768),
}
"""By backend; a CPU gets a quarter of the width."""
