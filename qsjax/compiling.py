"""Programs that are compiled in threads while their caller does something else."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import CancelledError, Future, wait
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import jax
from jax.stages import Compiled, Lowered

THREADS = 2
"""Programs that are compiled at the same time in this process: the compiler takes gigabytes for a large one. On a GPU it is
one, since the compiler times kernels on the device."""

_running: set[Future[Any]] = set()
Made = TypeVar("Made")


class _Program(NamedTuple):
    """A program that is compiled, or will be; `results` are the shapes and dtypes that it returns."""

    compiled: Future[Compiled]
    results: Any


class Programs:
    """Compiled programs by key; each is compiled once.

    Args:
        add: called with "compile" and the time when tracing or waiting began, each time when the caller had to do so.
    """

    def __init__(self, add: Callable[[str, float], None]) -> None:
        self._add = add
        self._programs: dict[Hashable, _Program] = {}

    def __iter__(self) -> Iterator[Hashable]:
        """The keys, in the order in which they were started."""
        return iter(list(self._programs))

    def start(self, key: Hashable, lower: Callable[[], Lowered]) -> Any:
        """Have a program compiled in a thread, unless it was started before.

        Args:
            key: of the program.
            lower: traces it, here and now, so that the caller's configuration of JAX and its errors are the caller's.

        Returns:
            What the program returns, as shapes and dtypes.
        """
        if key not in self._programs:
            begin = time.perf_counter()
            lowered = lower()
            self._programs[key] = _Program(in_thread(lowered.compile), lowered.out_info)
            self._add("compile", begin)
        return self._programs[key].results

    def get(self, key: Hashable, lower: Callable[[], Lowered]) -> Compiled:
        """A program, when it is compiled; it is started if that has not been done.

        Raises:
            Exception: what tracing or compiling raised; the next call tries again.
        """
        self.start(key, lower)
        future = self._programs[key].compiled
        waits, begin = not future.done(), time.perf_counter()
        try:
            while not future.done():  # a Ctrl-C just before a wait is seen when the wait ends
                wait([future], timeout=1)
            return future.result()
        except BaseException:
            if future.done():  # Ctrl-C leaves a program that is still being compiled
                del self._programs[key]
            raise
        finally:
            if waits:
                self._add("compile", begin)


def in_thread(make: Callable[[], Made]) -> Future[Made]:
    """Call a function in a thread of its own, as soon as fewer than `THREADS` others are at work, in about the order of the calls.

    Its exception is raised where the result is asked for. When the process ends, what has not begun is cancelled.
    """
    future: Future[Made] = Future()
    turns = _turns()

    def run() -> None:
        with turns:
            if not threading.main_thread().is_alive():
                future.set_exception(CancelledError())
                return
            _running.add(future)
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
            finally:
                _running.discard(future)

    threading.Thread(target=run, name="compile").start()
    return future


@lru_cache(maxsize=1)
def _turns() -> threading.Semaphore:
    return threading.Semaphore(1 if jax.default_backend() == "gpu" else THREADS)


def busy() -> bool:
    """Whether something is being compiled in a thread. A process that ends waits for it."""
    return bool(_running)
