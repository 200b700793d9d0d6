"""What all Pallas Triton kernels share: which backends run them, and loads and stores at the edge of an array."""

import importlib.util
import operator
from functools import reduce
from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array, Bool

from pallas_kernels.refs import Index, Ref
from pallas_kernels.targets import Target

_TRITON = "jax.experimental.pallas.triton"


def needs_gpu(backend: str) -> str | None:
    """The objection of every Triton kernel to another backend, or to a jax that has dropped Triton."""
    if backend not in ("gpu", "interpret"):
        return f"needs a GPU, this is {backend}"
    return None if importlib.util.find_spec(_TRITON) else "this jax has no Pallas Triton backend"


def triton_options(target: Target, *, warps: int, stages: int) -> dict[str, Any]:
    """Keywords of `pallas_call`: compile with so many warps and pipeline stages, or interpret.

    Blocks of a Triton kernel lie in main memory, so the plain interpreter will do: no chip's memories to simulate.
    """
    from jax.experimental.pallas import triton

    params = triton.CompilerParams(num_warps=warps, num_stages=stages)
    return {"compiler_params": params, "interpret": target.backend == "interpret"}


def inside(start: Index, size: int, length: int) -> Bool[Array, " size"] | None:
    """Which of the `size` elements from `start` on lie in an array of `length`; None if tiles of that size fill it.

    Triton reads and writes all that a block covers, even outside the array.
    """
    return None if length % size == 0 else start + jnp.arange(size) < length


def load(
    ref: Ref, *, rows: Bool[Array, " M"] | None = None, columns: Bool[Array, " N"] | None = None
) -> Array:
    """Read a block [M, N], [N] or []; 0 where the mask of its rows or columns is false."""
    from jax.experimental.pallas import triton

    mask = _joint(ref.shape, rows, columns)
    traced = cast(Any, ref)  # Triton's annotation leaves out references that are being traced.
    return triton.load(traced) if mask is None else triton.load(traced, mask=mask, other=0)


def store(
    ref: Ref,
    values: Array,
    *,
    rows: Bool[Array, " M"] | None = None,
    columns: Bool[Array, " N"] | None = None,
) -> None:
    """Write a block [M, N] or [N] where the masks of its rows and columns are true."""
    from jax.experimental.pallas import triton

    values = values.astype(ref.dtype)
    triton.store(cast(Any, ref), values, mask=_joint(ref.shape, rows, columns))


def _joint(shape: tuple[int, ...], rows: Array | None, columns: Array | None) -> Array | None:
    by_dimension = (None if rows is None else rows[:, None], columns)
    masks = [jnp.broadcast_to(mask, shape) for mask in by_dimension if mask is not None]
    return reduce(operator.and_, masks) if masks else None
