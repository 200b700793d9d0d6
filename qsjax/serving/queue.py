"""A bounded queue and the thread that works it off: first in, first out, one task at a time."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from pallas_kernels import UnsupportedError
from qsjax.crash import report_crash
from qsjax.errors import InputError, QsjaxError
from qsjax.serving.task import Outcome, Stopped, Task, TaskProgress

logger = logging.getLogger(__name__)

Report = Callable[[TaskProgress], None]
"""Says how far a task is; raises `Stopped` if it was cancelled."""
_REMEMBERED = 1000
"""Finished tasks that are remembered; their videos stay in the folder."""


class QueueFullError(InputError):
    """As many tasks wait as may wait; later there is room again."""


class TaskQueue:
    """Runs tasks in a thread of its own.

    >>> queue = TaskQueue(maker, limit=1)
    >>> queue.submit(maker.plan(VideoRequest(prompt="a red circle")))
    >>> queue.wait(task.id).state
    'completed'

    Args:
        make: makes the video of a task, saying how far it is; may raise `Stopped` and `QsjaxError`.
        limit: tasks that are not finished, at most.
        warm: done in the thread before the first task, as loading a model; an error fails the first task, not the queue.
    """

    def __init__(
        self,
        make: Callable[[Task, Report], Outcome],
        *,
        limit: int,
        warm: Callable[[], None] | None = None,
    ) -> None:
        self._make, self._limit, self._warm = make, limit, warm
        self._changed = threading.Condition()
        self._tasks: dict[str, Task] = {}
        self._stop: set[str] = set()
        self._version, self._closed, self._ready = 0, False, warm is None
        self._thread = threading.Thread(target=self._run, name="videos", daemon=True)
        self._thread.start()

    @property
    def version(self) -> int:
        """Grows with every change of any task, so that who polls knows whether to look."""
        return self._version

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and the thread is at work."""
        return self._ready and not self._closed and self._thread.is_alive()

    @property
    def tasks(self) -> list[Task]:
        """All that are remembered, in the order in which they came."""
        with self._changed:
            return list(self._tasks.values())

    @property
    def unfinished(self) -> list[Task]:
        """Those that run or wait, in their order."""
        return [task for task in self.tasks if not task.is_finished]

    def get(self, name: str) -> Task | None:
        """The task of this id, as it is now."""
        with self._changed:
            return self._tasks.get(name)

    def submit(self, task: Task) -> None:
        """Add a task at the end.

        Raises:
            QueueFullError: as many are waiting as may wait.
            InputError: the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise InputError("no more videos are made, this process ends; start it again")
            waiting = sum(not task.is_finished for task in self._tasks.values())
            if waiting >= self._limit:
                what = "a video is" if waiting == 1 else f"{waiting} videos are"
                raise QueueFullError(f"{what} being made; wait for it or cancel it")
            self._tasks[task.id] = task
            self._note()

    def cancel(self, name: str) -> Task | None:
        """Cancel a task: at once if it waits, else before its next step or stage; nothing if it is finished."""
        with self._changed:
            task = self._tasks.get(name)
            if task is None or task.is_finished:
                return task
            if task.state == "queued":
                self._tasks[name] = replace(task, state="cancelled", finished=time.time())
            else:
                self._stop.add(name)
            self._note()
            return self._tasks[name]

    def forget(self, name: str) -> None:
        """Forget a finished task."""
        with self._changed:
            if (task := self._tasks.get(name)) is not None and task.is_finished:
                del self._tasks[name]
                self._note()

    def wait(self, name: str, timeout: float | None = None) -> Task | None:
        """The task when it is finished, or when the time is over; None if it is not known (any more).

        Args:
            name: its id.
            timeout: seconds; None is no end.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (task := self._tasks.get(name)) is None or task.is_finished, timeout
            )
            return self._tasks.get(name)

    def close(self, timeout: float | None = None) -> None:
        """Cancel what waits and what runs, and wait for the end of the thread."""
        with self._changed:
            self._closed = True
            names = list(self._tasks)
        for name in names:
            self.cancel(name)
        with self._changed:
            self._note()
        self._thread.join(timeout)

    def _note(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _run(self) -> None:
        error = self._warmed()
        while (task := self._next()) is not None:
            changes = self._work(task) if error is None else error
            error = None
            with self._changed:
                self._stop.discard(task.id)
                self._tasks[task.id] = replace(
                    self._tasks[task.id], finished=time.time(), **changes
                )
                finished = [name for name, one in self._tasks.items() if one.is_finished]
                for name in finished[: max(0, len(finished) - _REMEMBERED)]:
                    del self._tasks[name]
                self._note()

    def _warmed(self) -> dict[str, Any] | None:
        """Load the model; what becomes of the first task if that fails."""
        try:
            if self._warm is not None:
                self._warm()
        except Exception as error:
            return {"state": "failed", "error": _sentence(error)}
        finally:
            with self._changed:
                self._ready = True
                self._note()
        return None

    def _next(self) -> Task | None:
        """The task whose turn it is, when there is one; None at the end."""
        with self._changed:
            while not self._closed:
                for task in self._tasks.values():
                    if task.state == "queued":
                        running = replace(task, state="in_progress", started=time.time())
                        self._tasks[task.id] = running
                        self._note()
                        return running
                self._changed.wait()
            return None

    def _work(self, task: Task) -> dict[str, Any]:
        """Make the video; the fields of the task that follow from it."""
        try:
            outcome = self._make(task, lambda progress: self._report(task.id, progress))
        except Stopped:
            return {"state": "cancelled"}
        except Exception as error:
            return {"state": "failed", "error": _sentence(error)}
        return {"state": "completed", "outcome": outcome}

    def _report(self, name: str, progress: TaskProgress) -> None:
        with self._changed:
            if name in self._stop:
                raise Stopped
            self._tasks[name] = replace(self._tasks[name], progress=progress)
            self._note()


def _sentence(error: Exception) -> str:
    """What is said of a task that failed; of what nobody foresaw, the traceback goes into a file."""
    if isinstance(error, QsjaxError | UnsupportedError):
        return str(error)
    if isinstance(error, jax.errors.JaxRuntimeError | MemoryError):
        first = str(error).strip().splitlines()[:1]
        return (
            f"the device refused ({''.join(first)[:200]}); ask for fewer frames or a smaller size"
        )
    told = report_crash(error)
    logger.error("%s", told)
    # Where the file is, is for who reads the log, not for who asked for the video.
    return f"{type(error).__name__}: this should not happen; the log of the server says more"
