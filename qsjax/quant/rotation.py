"""Orthogonal rotations that spread outliers over channels: signed Hadamard, and that times a learned Cayley factor.

A rotation of K channels has one or two factors. The block-diagonal one rotates every run of R channels by the same [R, R]
matrix: it costs R / N of the matmul after it, fits the matrix unit, and is fused with the quantization. A second
factor [K/R, K/R] mixes the runs (Kronecker form, as FlatQuant's); with Hadamard factors both together are the full Hadamard
transform of QuaRot.

A Hadamard matrix has a column of equal entries, which gathers the mean of its input in one channel: an outlier where there
was none. Random signs of the input channels, D H in place of H, spread the mean like anything else (QuaRot, arXiv:2404.00456,
section 3).
"""

from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsjax.errors import InputError

KINDS = ("none", "block", "kronecker", "hadamard")


class Rotation(NamedTuple):
    """The factors of a rotation; a pytree.

    Attributes:
        runs: [R, R], applied to every run of R channels.
        mix: [K/R, K/R], applied across runs, or None.
    """

    runs: Array | np.ndarray
    mix: Array | np.ndarray | None = None


@lru_cache(maxsize=32)
def hadamard(size: int) -> Float[np.ndarray, "n n"]:
    """An orthogonal matrix whose entries are all +-1 / sqrt(size), float32.

    Sylvester's doubling of 1, or of Paley's first construction (order q + 1, q a prime, q mod 4 = 3). It covers the
    factors of HunyuanVideo's widths: 24, 96, 120 and 128.

    Raises:
        InputError: no such matrix is known here.
    """
    core, doublings = size, 0
    while core % 2 == 0 and not _has_paley(core):
        core, doublings = core // 2, doublings + 1
    if core == 1:
        matrix = np.ones((1, 1))
    elif _has_paley(core):
        matrix = _paley(core)
    else:
        raise InputError(f"no Hadamard matrix of order {size} is known; choose a power of two")
    for _ in range(doublings):
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    made = (matrix / np.sqrt(size)).astype(np.float32)
    made.setflags(write=False)  # all callers share it
    return made


def cayley(generator: Float[Array | np.ndarray, "R R"]) -> Float[Array, "R R"]:
    """(I - S/2)^-1 (I + S/2) with the skew S = tril(G) - tril(G)^T: orthogonal whatever G is, the identity at 0."""
    lower = jnp.tril(generator, -1)
    half = (lower - lower.T) / 2
    identity = jnp.eye(len(generator), dtype=generator.dtype)
    return jnp.linalg.solve(identity - half, identity + half)


def start(kind: str, channels: int, size: int, *, seed: int | None = None) -> Rotation | None:
    """The Hadamard rotation that a kind begins with; None for "none".

    Args:
        kind: one of `KINDS`.
        channels: K.
        size: R, the length of a run; the largest divisor of K that is not longer and has the Hadamard matrices is taken.
        seed: of the random signs of each factor's rows; None leaves them out. The signs of channel i R + j are those of row i
            of one factor times those of row j of the other.

    Raises:
        InputError: both factors are asked for, and K has no two such divisors.
    """
    if kind == "none":
        return None
    # The raw bits, since NumPy promises the same ones in every version.
    bits = None if seed is None else np.random.PCG64(seed)

    def factor(order: int) -> np.ndarray:
        matrix = hadamard(order)
        if bits is None:
            return matrix
        signs = 1 - 2 * (bits.random_raw(order) >> np.uint64(63)).astype(np.float32)
        return signs[:, None] * matrix

    for runs in range(min(size, channels), 0, -1):
        if channels % runs or not _known(runs):
            continue
        if kind == "block" or runs == channels:
            return Rotation(factor(runs))
        if _known(channels // runs):
            return Rotation(factor(runs), factor(channels // runs))
    raise InputError(
        f"no Hadamard matrices are known whose orders make {channels} channels; choose the rotation 'block'"
    )


def turned(rotation: Rotation, generators: Rotation) -> Rotation:
    """The rotation M Cayley(G) of every factor M."""

    def factor(matrix: Array | np.ndarray, generator: Array | np.ndarray) -> Array:
        return jnp.matmul(matrix, cayley(generator), precision="highest")

    runs = factor(rotation.runs, generators.runs)
    if rotation.mix is None or generators.mix is None:
        return Rotation(runs)
    return Rotation(runs, factor(rotation.mix, generators.mix))


def rotate(x: Float[Array, "*B K"], rotation: Rotation | None) -> Float[Array, "*B K"]:
    """x (mix (x) runs), the input of a rotated layer. The matmul's operands keep x's dtype."""
    if rotation is None:
        return x
    runs = jnp.asarray(rotation.runs, x.dtype)
    parts = x.reshape(*x.shape[:-1], -1, len(runs))
    if rotation.mix is not None:
        mix = jnp.asarray(rotation.mix, x.dtype)
        parts = jnp.einsum("...ir,ij->...jr", parts, mix, precision="highest")
    return jnp.matmul(parts, runs, precision="highest").reshape(x.shape)


def rotate_rows(kernel: Float[Array, "K N"], rotation: Rotation | None) -> Float[Array, "K N"]:
    """(mix (x) runs)^T W, the weights of a rotated layer: rotate(x) rotate_rows(W) = x W."""
    return rotate(kernel.T, rotation).T


def _has_paley(order: int) -> bool:
    q = order - 1
    return q % 4 == 3 and all(q % d for d in range(2, int(q**0.5) + 1))


def _known(order: int) -> bool:
    try:
        return hadamard(order).shape == (order, order)
    except InputError:
        return False


def _paley(order: int) -> np.ndarray:
    """I + S with the skew matrix of quadratic residues modulo order - 1, bordered by ones."""
    q = order - 1
    residues = {k * k % q for k in range(1, q)}
    character = np.array([0] + [1 if k in residues else -1 for k in range(1, q)])
    skew = np.zeros((order, order))
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = character[np.subtract.outer(np.arange(q), np.arange(q)) % q]
    return np.eye(order) + skew
