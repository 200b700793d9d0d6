"""HunyuanVideo's linear layers as cases for the benchmark.

Hidden size 3072, MLP 12288. A single block has two fused linear layers: linear1, into queries, keys, values and MLP, and
linear2, out of attention and MLP. The two inputs of linear2 have scales of their own, so it runs as two calls, the second
with the result of the first as its residual. Their shapes are those of a double block's projection and MLP down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from pallas_kernels.activations import Activation
from pallas_kernels.quantized_matmul.api import quantized_matmul
from pallas_kernels.quantized_matmul.packing import PARTS, PackedWeight, WeightLayout
from pallas_kernels.quantized_matmul.tiles import tpu_tiles
from pallas_kernels.roofline import Program, Work, random_like, spec
from pallas_kernels.targets import Target

_LAYOUTS: dict[str, WeightLayout] = {
    "tpu": "bytes",
    "xla_int4": "int4",
    "gpu": "bytes_transposed",
    "jax_triton": "bytes_transposed",
    "xla": "bytes",
}


@dataclass(frozen=True)
class MatmulCase:
    """A linear layer on M tokens, its result in bfloat16, with a bias.

    Attributes:
        label: of the layer.
        m: tokens.
        k: input channels.
        n: output channels.
        bits: of a weight; 16 is a bfloat16 product by XLA, for comparison.
        implementation: name of the implementation.
        activation: "none" or "gelu_tanh".
        gated: the result is gated and added to a residual.
    """

    label: str
    m: int
    k: int
    n: int
    bits: int
    implementation: str
    activation: Activation = "none"
    gated: bool = False

    @property
    def name(self) -> str:
        """Layer, bits and shape."""
        kind = "bfloat16" if self.bits == 16 else f"W{self.bits}A8"
        fused = ", gelu" if self.activation != "none" else ", gate, residual" if self.gated else ""
        return f"{self.label} {kind} {self.m} x {self.k} x {self.n}{fused}"

    @property
    def work(self) -> Work:
        """Activations, weights and residual read, the result written; vectors are not counted."""
        width = 2 if self.bits == 16 else 1
        moved = self.m * self.k * width + self.k * self.n * self.bits / 8 + self._ends
        unit = "bfloat16" if self.bits == 16 else "int8"
        return Work(2.0 * self.m * self.k * self.n, unit, moved)

    @property
    def _ends(self) -> float:
        """Bytes of the result, and of a residual."""
        return 2.0 * self.m * self.n * (2 if self.gated else 1)

    def _specs(self) -> tuple[Any, ...]:
        if self.bits == 16:
            wide = jnp.bfloat16
            return spec(self.m, self.k, dtype=wide), spec(self.k, self.n, dtype=wide), spec(self.n)
        weight = _weight(self.k, self.n, self.bits, _LAYOUTS[self.implementation])
        x = spec(self.m, self.k, dtype=jnp.int8)
        shared = (x, spec(self.m), weight, spec(self.n), spec(self.n))
        gated = (spec(1, self.n), spec(self.m, self.n, dtype=jnp.bfloat16))
        return (*shared, *gated) if self.gated else shared

    def operands(self) -> tuple[Any, ...]:
        """Random tokens and weights, and the vectors and residual that are fused."""
        return random_like(self._specs())

    def call(self, implementation: str) -> Callable[..., Any]:
        """The layer."""
        return partial(_dense if self.bits == 16 else self._layer, implementation=implementation)

    def _layer(
        self,
        x: Int8[Array, "M K"],
        x_scale: Float[Array, " M"],
        weight: PackedWeight,
        w_scale: Float[Array, " N"],
        bias: Float[Array, " N"],
        gate: Float[Array, "G N"] | None = None,
        residual: Float[Array, "M N"] | None = None,
        *,
        implementation: str,
    ) -> Float[Array, "M N"]:
        return quantized_matmul(
            x, x_scale, weight, w_scale, bias, activation=self.activation, residual=residual,
            gate=gate, implementation=implementation,
        )  # fmt: skip

    def program(self, target: Target) -> Program:
        """The whole layer."""
        call = self.call(f"{self.implementation}@{target.name}")
        return Program(call, self._specs(), self._traffic(target))

    def _traffic(self, target: Target) -> float:
        """The TPU kernel reads weights once for every tile of rows, and activations once if K fits in one step."""
        if self.implementation != "tpu":
            return self.work.bytes
        parts = PARTS[self.bits]
        tiles = tpu_tiles(self.m, self.n, self.k // parts, parts, target.name)
        rows = -(-self.m // tiles.m)
        columns = 1 if tiles.k == self.k // parts else -(-self.n // tiles.n)
        return self.m * self.k * columns + self.k * self.n * self.bits / 8 * rows + self._ends


def _dense(
    x: Float[Array, "M K"], w: Float[Array, "K N"], bias: Float[Array, " N"], *, implementation: str
) -> Float[Array, "M N"]:
    """XLA's own product of bfloat16."""
    del implementation
    y = jnp.matmul(x, w, preferred_element_type=jnp.float32)
    return (y + bias[None]).astype(jnp.bfloat16)


def _weight(k: int, n: int, bits: int, layout: WeightLayout) -> PackedWeight:
    """A weight as `pack` makes it, without its values."""
    if layout == "int4":
        return PackedWeight((spec(k, n, dtype=jnp.int4),), bits, layout, k)
    heights = {4: (k // 2,), 6: (k // 2, k // 4), 8: (k,)}[bits]
    shapes = [(n, rows) if layout == "bytes_transposed" else (rows, n) for rows in heights]
    return PackedWeight(tuple(spec(*s, dtype=np.int8) for s in shapes), bits, layout, k)


def _tpu() -> tuple[MatmulCase, ...]:
    m, up = 4096, ("MLP up", 4096, 3072, 12288)
    return (
        MatmulCase(*up, 4, "tpu"),
        # Only this one: the profiler needs minutes and gigabytes for it.
        MatmulCase(*up, 4, "xla_int4"),
        MatmulCase(*up, 4, "tpu", activation="gelu_tanh"),
        MatmulCase(*up, 6, "tpu"),
        MatmulCase(*up, 8, "tpu"),
        MatmulCase("qkv", m, 3072, 9216, 4, "tpu"),
        MatmulCase("linear1", m, 3072, 21504, 4, "tpu"),
        MatmulCase("projection, linear2 of attention", m, 3072, 3072, 4, "tpu", gated=True),
        MatmulCase("MLP down, linear2 of MLP", m, 12288, 3072, 4, "tpu", gated=True),
    )


def _gpu() -> tuple[MatmulCase, ...]:
    return tuple(
        MatmulCase("MLP up", m, 3072, 12288, bits, implementation)
        for m in (4096, 25216, 119056)
        for bits, implementation in ((4, "gpu"), (4, "jax_triton"), (8, "gpu"), (16, "xla"))
    )


CASES = {
    "tpu": _tpu(),
    "gpu": _gpu(),
    "cpu": tuple(MatmulCase("small", 256, 768, 3072, bits, "xla") for bits in (4, 6, 8)),
}
"""By backend; a CPU gets a quarter of the width."""
