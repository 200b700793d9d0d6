"""What all Pallas TPU kernels share: sizes of the chip, which backends run them, and an interpreter for machines without a TPU."""

from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.targets import Target

LANES = 128
VMEM_LIMIT = 64 * 2**20
"""Vector memory a kernel may ask for: more than the compiler's default, half of what a v5e or v6e has."""


def needs_tpu(backend: str) -> str | None:
    """The objection of every TPU kernel to another backend."""
    return None if backend in ("tpu", "interpret") else f"needs a TPU, this is {backend}"


def interpret_params(target: Target) -> pltpu.InterpretParams | bool:
    """False for a real chip. Else the interpreter that simulates a TPU's memories and semaphores, with all its checks.

    Memory starts as NaN, reads out of bounds raise an error, a copy arrives only when the kernel waits for it, and
    accesses that race with a copy are reported.
    """
    if target.backend != "interpret":
        return False
    return pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )
