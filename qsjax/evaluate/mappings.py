"""Compiled programs and memory mappings: on a CPU a program has some hundred, and Linux allows a process 65,530."""

import gc
import logging
from pathlib import Path

import jax

logger = logging.getLogger(__name__)

MOST = 40_000
"""Mappings; a row of a grid may add some thousand."""


def forget_programs(most: int = MOST) -> bool:
    """Drop all compiled programs if this process has more mappings than `most`; return whether they were dropped.

    A program is compiled again when it is called again. Where the system does not tell mappings, nothing is dropped.
    """
    try:
        with Path("/proc/self/maps").open("rb") as lines:
            count = sum(1 for _ in lines)
    except OSError:
        return False
    if count <= most:
        return False
    logger.info("%d mappings of memory: compiled programs are dropped", count)
    jax.clear_caches()
    gc.collect()
    return True
