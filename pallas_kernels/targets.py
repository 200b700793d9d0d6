"""The devices that kernels are built for: their peaks, and how to recognize them.

A target is what a call runs on, or is compiled for: "tpu@v5e" builds the TPU kernel for a v5e on any machine, and
"tpu@interpret" computes the kernel's numbers without a TPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        name: short name, as in `implementation="tpu@v5e"`.
        backend: "cpu", "gpu", "tpu", or "interpret", which every kernel accepts.
        kinds: prefixes of the names that jax gives to such devices.
        bfloat16_flops: peak, a second; 0 if it is not known.
        int8_ops: peak, a second; 0 if there is no unit for them.
        bandwidth: of the main memory, bytes a second.
        topology: the name that its compiler has for it, to compile without a device.
        clock: cycles a second, to turn a compiler's estimate into time.
        capability: CUDA's compute capability, times ten.
    """

    name: str
    backend: str
    kinds: tuple[str, ...] = ()
    bfloat16_flops: float = 0.0
    int8_ops: float = 0.0
    bandwidth: float = 0.0
    topology: str | None = None
    clock: float = 0.0
    capability: int | None = None


# Peaks are the vendors'. Clocks: 1.5 GHz makes the four 128 x 128 units of a v5e its 197 TFLOP/s; likewise for the others.
TARGETS = {
    target.name: target
    for target in (
        Target("v5e", "tpu", ("TPU v5 lite", "TPU v5e"), 197e12, 394e12, 819e9, "v5e:2x2", 1.5e9),
        Target("v5p", "tpu", ("TPU v5p", "TPU v5"), 459e12, 918e12, 2765e9, "v5p:2x2x1", 1.75e9),
        Target(
            "v6e", "tpu", ("TPU v6 lite", "TPU v6e"), 918e12, 1836e12, 1640e9, "v6e:2x2", 1.75e9
        ),
        Target("h100", "gpu", ("NVIDIA H100",), 989e12, 1979e12, 3352e9, "1x1x1", 1.98e9, 90),
        Target("h200", "gpu", ("NVIDIA H200",), 989e12, 1979e12, 4800e9, "1x1x1", 1.98e9, 90),
        Target("cpu", "cpu", ("cpu",)),
        Target("interpret", "interpret"),
    )
}

_ASSUMED: ContextVar[Target | None] = ContextVar("assumed target", default=None)


@contextmanager
def assumed(target: Target) -> Iterator[None]:
    """Trace as if the default device were another: for compiling whole programs ahead of time.

    jax does not trace a function again that it has traced before: jit a new function inside.
    """
    token = _ASSUMED.set(target)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def current() -> Target:
    """The assumed target, or that of the default device; a target without peaks if the device is not in the table."""
    if (target := _ASSUMED.get()) is not None:
        return target
    kind = jax.devices()[0].device_kind
    matches = {
        prefix: target
        for target in TARGETS.values()
        for prefix in target.kinds
        if kind.startswith(prefix)
    }
    if matches:
        return matches[max(matches, key=len)]  # "TPU v5 lite" is not a "TPU v5"
    return Target(kind, jax.default_backend())
