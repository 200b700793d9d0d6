"""Compiled programs as mappings of memory: on a CPU each is some hundred, and Linux gives a process 65,530."""

import gc
import logging
from pathlib import Path

import jax

logger = logging.getLogger(__name__)

MOST = 40_000
"""Mappings; a row of a grid may add some thousand."""


def forget_programs(most: int = MOST) -> bool:
    """Let go of all compiled programs if this process has more mappings than `most`; say whether that was so.

    They are compiled again when they are called again. Where the system does not tell mappings, nothing is let go.
    """
    try:
        with Path("/proc/self/maps").open("rb") as lines:
            count = sum(1 for _ in lines)
    except OSError:
        return False
    if count <= most:
        return False
    logger.info("%d mappings of memory: compiled programs are let go", count)
    jax.clear_caches()
    gc.collect()
    return True
