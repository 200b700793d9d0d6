"""HunyuanVideo's linear layers as cases for the benchmark.

Hidden size 3072, MLP 12288; a single block has one fused linear layer into queries, keys, values and MLP, and one out of
attention and MLP. The latter takes two inputs with scales of their own, and runs as two calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.quantized_matmul.api import quantized_matmul
from pallas_kernels.quantized_matmul.packing import PARTS, PackedWeight
from pallas_kernels.quantized_matmul.tiles import tpu_tiles
from pallas_kernels.roofline import Program, Work, random_like, spec
from pallas_kernels.targets import Target

_LAYOUTS = {
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
        label: which layer.
        m: tokens.
        inner: K of every input; a layer of two inputs is two calls, the second with the first as its residual.
        n: output channels.
        bits: of a weight; 16 is XLA's bfloat16 product, for comparison.
        implementation: name of the implementation.
        activation: "none" or "gelu_tanh".
        gated: the result is gated and added to a residual.
    """

    label: str
    m: int
    inner: tuple[int, ...]
    n: int
    bits: int
    implementation: str
    activation: str = "none"
    gated: bool = False

    @property
    def name(self) -> str:
        """Layer, bits and shape."""
        kind = "bfloat16" if self.bits == 16 else f"W{self.bits}A8"
        fused = ", gelu" if self.activation != "none" else ", gate, residual" if self.gated else ""
        return (
            f"{self.label} {kind} {self.m} x {' + '.join(map(str, self.inner))} x {self.n}{fused}"
        )

    @property
    def work(self) -> Work:
        """Products of all inputs; activations, weights and residual read, the result written; vectors are not counted."""
        k, width = sum(self.inner), 2 if self.bits == 16 else 1
        ends = 2 * self.m * self.n * (2 if self.gated else 1)
        moved = self.m * k * width + k * self.n * self.bits / 8 + ends
        return Work(2.0 * self.m * k * self.n, "bfloat16" if self.bits == 16 else "int8", moved)

    def _specs(self) -> tuple[Any, ...]:
        inputs: list[list[Any]] = []
        for k in self.inner:
            if self.bits == 16:
                inputs.append(
                    [spec(self.m, k, dtype=jnp.bfloat16), spec(k, self.n, dtype=jnp.bfloat16)]
                )
            else:
                weight = _weight(k, self.n, self.bits, _LAYOUTS[self.implementation])
                inputs.append([spec(self.m, k, dtype=jnp.int8), spec(self.m), weight, spec(self.n)])
        shared = [spec(self.n)]
        if self.gated:
            shared += [spec(1, self.n), spec(self.m, self.n, dtype=jnp.bfloat16)]
        return inputs, shared

    def operands(self) -> tuple[Any, ...]:
        """Random inputs with their weights, then bias, gate and residual."""
        return random_like(self._specs())

    def call(self, implementation: str) -> Callable[..., Any]:
        """The layer: one call for every input."""
        return partial(_dense if self.bits == 16 else self._layer, implementation=implementation)

    def _layer(self, inputs: Any, shared: Any, *, implementation: str) -> Any:
        bias, gate, residual = shared if self.gated else (*shared, None, None)
        for x, x_scale, weight, w_scale in inputs:
            residual = quantized_matmul(
                x, x_scale, weight, w_scale, bias, activation=self.activation, residual=residual,
                gate=gate, implementation=implementation,
            )  # fmt: skip
            bias = None
        return residual

    def program(self, target: Target) -> Program:
        """The whole layer."""
        call = self.call(f"{self.implementation}@{target.name}")
        return Program(call, self._specs(), self._traffic())

    def _traffic(self) -> float:
        """The TPU kernel reads weights once for every tile of rows, and activations once where they fit."""
        if self.implementation != "tpu":
            return self.work.bytes
        total = 0.0
        for k in self.inner:
            parts = PARTS[self.bits]
            tiles = tpu_tiles(self.m, self.n, k // parts, parts)
            rows = -(-self.m // tiles.m)
            columns = 1 if tiles.k == k // parts else -(-self.n // tiles.n)
            ends = 2 * self.m * self.n * (2 if self.gated else 1)
            total += self.m * k * columns + k * self.n * self.bits / 8 * rows + ends
        return total


def _dense(inputs: Any, shared: Any, *, implementation: str) -> jax.Array:
    """XLA's own product of bfloat16."""
    del implementation
    ((x, w),) = inputs
    y = jnp.matmul(x, w, preferred_element_type=jnp.float32)
    return (y + shared[0][None]).astype(jnp.bfloat16)


def _weight(k: int, n: int, bits: int, layout: str) -> PackedWeight:
    """The shapes that `pack` gives."""
    if layout == "int4":
        return PackedWeight((spec(k, n, dtype=jnp.int4),), bits, layout, k)
    heights = {4: (k // 2,), 6: (k // 2, k // 4), 8: (k,)}[bits]
    shapes = [(n, rows) if layout == "bytes_transposed" else (rows, n) for rows in heights]
    return PackedWeight(tuple(spec(*s, dtype=np.int8) for s in shapes), bits, layout, k)


def _tpu() -> tuple[MatmulCase, ...]:
    m, up = 4096, ("MLP up", 4096, (3072,), 12288)
    return (
        MatmulCase(*up, 4, "tpu"),
        # Once is enough: the profiler takes minutes and gigabytes over it.
        MatmulCase(*up, 4, "xla_int4"),
        MatmulCase(*up, 4, "tpu", activation="gelu_tanh"),
        MatmulCase(*up, 6, "tpu"),
        MatmulCase(*up, 8, "tpu"),
        MatmulCase("MLP down", m, (12288,), 3072, 4, "tpu", gated=True),
        MatmulCase("qkv", m, (3072,), 9216, 4, "tpu"),
        MatmulCase("projection", m, (3072,), 3072, 4, "tpu", gated=True),
        MatmulCase("linear1", m, (3072,), 21504, 4, "tpu"),
        MatmulCase("linear2", m, (3072, 12288), 3072, 4, "tpu", gated=True),
    )


def _gpu() -> tuple[MatmulCase, ...]:
    return tuple(
        MatmulCase("MLP up", m, (3072,), 12288, bits, implementation)
        for m in (4096, 25216, 119056)
        for bits, implementation in ((4, "gpu"), (4, "jax_triton"), (8, "gpu"), (16, "xla"))
    )


CASES = {
    "tpu": _tpu(),
    "gpu": _gpu(),
    "cpu": tuple(MatmulCase("small", 256, (768,), 3072, bits, "xla") for bits in (4, 6, 8)),
}
"""By backend; a CPU gets a quarter of the width."""
