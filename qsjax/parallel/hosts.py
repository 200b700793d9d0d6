"""Runs on several hosts: one process on each, started by the same command, and one mesh over the devices of all hosts."""

import logging
import socket
import time
from collections.abc import Callable
from threading import Timer
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qsjax.errors import InputError

logger = logging.getLogger(__name__)

AUTOMATIC = "auto"
PATIENCE = 300
"""Seconds that a host waits for the others."""
_MARGIN = 30
"""JAX's own timeout is this many seconds longer, so that ours comes first, with a readable message."""


def join(
    coordinator: str,
    hosts: int | None = None,
    host: int | None = None,
    *,
    give_up: Callable[[InputError], None] | None = None,
) -> None:
    """Connect to the other hosts with `jax.distributed`. Call it before the first array is created.

    If the other hosts do not connect in time, JAX aborts the first host's process with a stack trace. Nothing can be raised then:
    the main thread waits inside JAX.

    Args:
        coordinator: address and port of the first host; "auto" on Cloud TPUs and under Slurm, which provide everything.
        hosts: number of hosts.
        host: number of this host, from 0.
        give_up: called on the first host `PATIENCE` seconds after the start if others are missing, in a thread of its own, with
            the error that says so. It should end the process; if it returns, JAX goes on waiting and aborts a little later.

    Raises:
        InputError: hosts and host do not fit together, or the first host cannot be reached.
    """
    options: dict[str, Any] = {}
    alarm: Timer | None = None
    if coordinator != AUTOMATIC:
        name, _, port = coordinator.rpartition(":")
        if not name or not port.isdecimal():
            raise InputError(
                f"`coordinator={coordinator!r}`: is no address; give HOST:PORT of the first host, or auto"
            )
        if hosts is None or host is None or not 0 <= host < hosts or hosts < 2:
            raise InputError(
                f"host {host} of {hosts}: of two or more hosts each has a number of its own, from 0; give both `hosts` and `host`"
            )
        if host > 0:
            _reach(coordinator)
        elif give_up is not None:
            alarm = Timer(PATIENCE, give_up, (_missing(coordinator, hosts),))
            alarm.daemon = True
            alarm.start()
        logger.info("host %d of %d, waiting up to %d s for the others", host, hosts, PATIENCE)
        options = {"coordinator_address": coordinator, "num_processes": hosts, "process_id": host}
    elif hosts is not None or host is not None:
        raise InputError("`coordinator='auto'` finds out `hosts` and `host`; leave them out")
    try:
        jax.distributed.initialize(**options, initialization_timeout=PATIENCE + _MARGIN)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"`coordinator={coordinator!r}`: the hosts do not meet ({str(error).splitlines()[0]}); "
            f"start the same program on every host, each with its own `host`"
        ) from error
    finally:
        if alarm is not None:
            alarm.cancel()


def _missing(coordinator: str, hosts: int) -> InputError:
    return InputError(
        f"`coordinator={coordinator!r}`: not all of {hosts} hosts came in {PATIENCE} s; start the same program on every host,"
        f" each with its own `host`"
    )


def _reach(address: str) -> None:
    """Wait until the first host listens: if JAX itself waits in vain, it ends without a readable message."""
    name, _, port = address.rpartition(":")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((name, int(port)), timeout=5).close()
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > deadline:
                raise InputError(
                    f"`coordinator={address!r}`: the first host cannot be reached ({error.strerror or error}); "
                    f"start the same program there with `host=0`, or correct the address"
                ) from error
            time.sleep(1)
        else:
            return


def is_first() -> bool:
    """Whether this is the first host's process, the one that writes files and prints."""
    return jax.process_index() == 0


def first_agrees(well: bool) -> bool:
    """Broadcast the first host's value of `well` to every host."""
    if jax.process_count() == 1:
        return well
    return bool(multihost_utils.broadcast_one_to_all(np.int32(well)))
