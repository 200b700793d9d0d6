"""Wall-clock times, and the peak rates of this machine's matrix unit and memory."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.roofline import Peaks

# Calls on an accelerator are queued: a sample of them has to be long against the time to queue one.
_SAMPLE_SECONDS = 0.2
_MATRIX = 2048
_UPDATED = 2**26  # float32 values, 256 MB: far more than any cache holds


def seconds(run: Callable[[], object]) -> float:
    """Wall seconds of one call, blocking on its result."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], *, samples: int) -> float:
    """Median wall seconds of a call after a warm-up; short calls are timed several at once."""
    seconds(run)
    calls = max(1, min(100, round(_SAMPLE_SECONDS / seconds(run))))

    def sample() -> object:
        for _ in range(calls - 1):
            run()
        return run()

    return statistics.median(seconds(sample) / calls for _ in range(samples))


def alternating(runs: dict[str, Callable[[], object]], *, pairs: int) -> dict[str, float]:
    """Median seconds of each; they take turns, so that a slow spell of the machine slows all of them."""
    for run in runs.values():
        seconds(run)
    times = [{name: seconds(run) for name, run in runs.items()} for _ in range(pairs)]
    return {name: statistics.median(turn[name] for turn in times) for name in runs}


def measured_peaks(*, samples: int = 5, size: int = _MATRIX, updated: int = _UPDATED) -> Peaks:
    """This machine's: its fastest dense float32 matmul, and its fastest pass that reads and writes memory.

    One rate serves all types. Integers of 8 bits run faster than that on a CPU with units for them, and may pass the
    floor.

    Args:
        samples: of each, of which the best counts.
        size: rows and columns of the matrices.
        updated: float32 values.
    """
    x = jax.random.normal(jax.random.key(0), (size, size))
    multiply = jax.jit(lambda x: jnp.matmul(x, x))
    # In place: mapping new memory takes longer than filling it.
    increment = jax.jit(lambda y: y + 1, donate_argnums=0)
    y = jnp.zeros(updated)

    def update() -> jax.Array:
        nonlocal y
        y = increment(y)
        return y

    seconds(lambda: multiply(x))
    seconds(update)
    rate = 2 * size**3 / min(seconds(lambda: multiply(x)) for _ in range(samples))
    bandwidth = 2 * y.nbytes / min(seconds(update) for _ in range(samples))
    operations = dict.fromkeys(("int8", "bfloat16", "float32"), rate)
    return Peaks(
        operations,
        bandwidth,
        f"measured, float32 matmul of {size} and update of {y.nbytes / 2**20:.0f} MiB",
    )
