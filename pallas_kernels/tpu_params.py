"""How a Pallas TPU kernel is run where there is no TPU: in the strict interpreter."""

from typing import Any

from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.targets import Target


def interpret_params(target: Target) -> Any:
    """False for a real chip. Else the interpreter that simulates its memories and semaphores, at its strictest.

    Memory starts as NaN, reads out of bounds raise, copies land when they are waited for, and accesses that race
    with them are found.
    """
    if target.backend != "interpret":
        return False
    return pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )
