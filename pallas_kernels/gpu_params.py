"""What all Pallas Triton kernels share: who can run them, and the loads and stores at the edge of an array."""

import importlib.util
import operator
from functools import reduce
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.targets import Target

_TRITON = "jax.experimental.pallas.triton"


def needs_gpu(backend: str) -> str | None:
    """The objection of every Triton kernel to another backend, or to a jax that has dropped Triton."""
    if backend not in ("gpu", "interpret"):
        return f"needs a GPU, this is {backend}"
    return None if importlib.util.find_spec(_TRITON) else "this jax has no Pallas Triton backend"


def triton_options(target: Target, *, warps: int, stages: int) -> dict[str, Any]:
    """Keywords of `pallas_call`: compile with so many warps and pipeline stages, or interpret.

    Triton has no limit on what a kernel's blocks cover, so that the interpreter needs none of a chip's memories.
    """
    from jax.experimental.pallas import triton

    params = triton.CompilerParams(num_warps=warps, num_stages=stages)
    return {"compiler_params": params, "interpret": target.backend == "interpret"}


def inside(start: Any, size: int, length: int) -> Array | None:
    """Which of `size` places from `start` lie in an array of `length`; None where all tiles do.

    Triton reads and writes what a block covers, in the array or not.
    """
    return None if length % size == 0 else start + jnp.arange(size) < length


def load(ref: Any, *, rows: Array | None = None, columns: Array | None = None) -> Array:
    """Read a block of one or two dimensions; 0 where a mask, for the first or the last, is false."""
    from jax.experimental.pallas import triton

    mask = _joint(ref.shape, rows, columns)
    return triton.load(ref) if mask is None else triton.load(ref, mask=mask, other=0)


def store(
    ref: Any, values: Array, *, rows: Array | None = None, columns: Array | None = None
) -> None:
    """Write a block of one or two dimensions where the masks are true."""
    from jax.experimental.pallas import triton

    triton.store(ref, values.astype(ref.dtype), mask=_joint(ref.shape, rows, columns))


def _joint(shape: tuple[int, ...], rows: Array | None, columns: Array | None) -> Array | None:
    given = [None if rows is None else rows[:, None], columns]
    masks = [jnp.broadcast_to(mask, shape) for mask in given if mask is not None]
    return reduce(operator.and_, masks) if masks else None
