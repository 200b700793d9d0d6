"""How often functions are compiled. The size of a jitted function's cache does not tell: in a long run old entries leave it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@contextmanager
def compilations() -> Iterator[Counter[str]]:
    """Count programs by the name of the jitted function while the context lasts, those read from a disk included."""
    counts: Counter[str] = Counter()

    def listen(event: str, _: float, **facts: Any) -> None:
        if event == LOWERED:
            counts[facts["fun_name"].removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
