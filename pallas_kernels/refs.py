"""The types of what a Pallas kernel works on: its arrays are references to memory, not values."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import ArrayLike
from jaxtyping import Array

Index = int | Array
"""The number of a step, block or program: static, or known only on the device."""

Span = pl.Slice | slice
"""A range of consecutive elements, from `pl.ds`."""

Operand = tuple[Array, pl.BlockSpec]
"""An array that is passed to a kernel, and the block of it that each program sees."""


@runtime_checkable
class Ref(Protocol):
    """A reference to an array, or to a part of one (`ref.at[...]`); jax has no public type for both."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it refers to."""
        ...

    @property
    def dtype(self) -> jnp.dtype:
        """Of the elements."""
        ...

    @property
    def at(self) -> "Parts":
        """References to its parts: `ref.at[index]`."""
        ...

    def __getitem__(self, index: object, /) -> Array:
        """Read."""
        ...

    def __setitem__(self, index: object, value: ArrayLike, /) -> None:
        """Write."""
        ...


class Parts(Protocol):
    """What `ref.at` is."""

    def __getitem__(self, index: object, /) -> Ref:
        """A reference to the part at an index."""
        ...


@runtime_checkable
class AsyncCopy(Protocol):
    """A copy between memories, from `make_async_copy`; jax has no public type for it."""

    def start(self) -> None:
        """Begin copying."""
        ...

    def wait(self) -> None:
        """Return when everything is copied."""
        ...
