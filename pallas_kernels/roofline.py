"""The least work that a call can do, and how fast a device could do it: the floor that kernels are compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from pallas_kernels.targets import Target


@dataclass(frozen=True)
class Peaks:
    """The most a device does.

    Attributes:
        operations: a second, by the type that is multiplied: "int8", "bfloat16", "float32".
        bandwidth: of the main memory, bytes a second.
        source: where these figures come from.
    """

    operations: Mapping[str, float]
    bandwidth: float
    source: str

    @classmethod
    def of(cls, target: Target) -> "Peaks":
        """The vendor's peaks.

        Raises:
            ValueError: they are not in the table of targets.
        """
        if not target.bandwidth:
            raise ValueError(f"no peaks are known for {target.name}")
        operations = {"int8": target.int8_ops, "bfloat16": target.bfloat16_flops}
        return cls(operations, target.bandwidth, "vendor")


@dataclass(frozen=True)
class Work:
    """The least work that a call can do.

    Attributes:
        operations: multiplications and additions of its matrix products, two for each pair.
        unit: the type that is multiplied: "int8", "bfloat16" or "float32".
        bytes: of its operands and results in main memory, each read or written once.
    """

    operations: float
    unit: str
    bytes: float

    def bound(self, peaks: Peaks) -> str:
        """What limits the call: "compute" or "memory"."""
        by_compute = self._compute_seconds(peaks) >= self.bytes / peaks.bandwidth
        return "compute" if by_compute else "memory"

    def seconds(self, peaks: Peaks) -> float:
        """The floor: the operations at their peak or the bytes at theirs, whichever takes longer.

        Raises:
            ValueError: the device has no such unit.
        """
        return max(self._compute_seconds(peaks), self.bytes / peaks.bandwidth)

    def _compute_seconds(self, peaks: Peaks) -> float:
        if self.operations and not peaks.operations.get(self.unit):
            raise ValueError(f"no peak of {self.unit} operations is known")
        return self.operations / peaks.operations[self.unit] if self.operations else 0.0


@dataclass(frozen=True)
class Program:
    """What a compiler is asked to estimate for a case.

    Attributes:
        function: to compile.
        operands: pytrees of `jax.ShapeDtypeStruct`.
        repeats: cycles of the whole call over cycles of this program, which may be a part of it.
        traffic: bytes of main memory that the whole call moves: a kernel reads some operands more than once.
    """

    function: Callable[..., Any]
    operands: tuple[Any, ...]
    traffic: float
    repeats: float = 1.0


@runtime_checkable
class Case(Protocol):
    """One call of an operation: a frozen dataclass in the operation's `bench.py`, of plain values, so that it pickles."""

    @property
    def name(self) -> str:
        """Shape and settings, as the report prints them."""
        ...

    @property
    def implementation(self) -> str:
        """Name of the implementation, without a target."""
        ...

    @property
    def work(self) -> Work:
        """The least work that the call can do."""
        ...

    def operands(self) -> tuple[Any, ...]:
        """Arrays to call it with."""
        ...

    def call(self, implementation: str) -> Callable[..., Any]:
        """The call, a function of the operands; the name may carry a target."""
        ...

    def program(self, target: Target) -> Program:
        """What the target's compiler estimates."""
        ...


def spec(*shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array without its values."""
    return jax.ShapeDtypeStruct(shape, dtype)


def random_like(specs: PyTree[jax.ShapeDtypeStruct], seed: int = 0) -> PyTree[jax.Array]:
    """Arrays for a tree of shapes: normal floats, and integers over their whole range."""
    leaves, tree = jax.tree.flatten(specs)

    def draw(key: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.random.normal(key, leaf.shape, leaf.dtype)
        # int4 values are the lower halves of random bytes.
        wide = jax.random.randint(key, leaf.shape, -128, 128, jnp.int32)
        return wide.astype(jnp.int8).astype(leaf.dtype)

    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([draw(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])
