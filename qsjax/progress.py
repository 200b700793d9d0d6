"""Progress of long work: a bar with rate and ETA on a terminal or in a notebook, a line per 10 % in a log, and whoever listens.

All of them show the same `Reading`.
"""

import logging
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple

from tqdm.auto import tqdm

from qsjax.units import shown_rate, shown_seconds

logger = logging.getLogger("qsjax.progress")


class Reading(NamedTuple):
    """How far a piece of work is; `str` of it is a line for people.

    Attributes:
        label: what is being done.
        done, total: amount of work, in units.
        unit: name of one; "B" for bytes.
        rate: units a second, since this process began with it.
        seconds_left: at this rate.
        figures: of the work, as a loss.
    """

    label: str
    done: int
    total: int
    unit: str
    rate: float
    seconds_left: float
    figures: Mapping[str, object]

    def __str__(self) -> str:
        percent = min(100, 100 * self.done // max(self.total, 1))
        figures = "".join(f", {key} {value}" for key, value in self.figures.items())
        rate, left = shown_rate(self.rate, self.unit), shown_seconds(self.seconds_left)
        return f"{self.label}: {percent} % ({rate}, {left} left{figures})"


Listener = Callable[[Reading], None]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def listening(listener: Listener) -> Generator[None, None, None]:
    """Tell a function of all work that this thread begins within the context, also of work that shows no bar.

    >>> with listening(print):
    ...     pipeline("a red circle moves left")
    """
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


class Progress:
    """A bar on a terminal (or notebook), otherwise one log line per 10 %.

    >>> with Progress(total=50, label="denoise", unit="step") as bar:
    ...     for _ in range(50):
    ...         bar.advance(loss=0.1)

    Args:
        total: amount of work, in `unit`s; bytes when `unit` is "B", shown scaled.
        label: what is being done, in one or two words.
        unit: name of one piece of work, as "step".
        initial: units that were already done before, as by an interrupted run.
        enabled: False shows nothing; who listens is told all the same.
    """

    def __init__(
        self, total: int, label: str, *, unit: str = "it", initial: int = 0, enabled: bool = True
    ) -> None:
        self._total, self._label, self._unit, self._done = total, label, unit, initial
        self._start, self._initial = time.perf_counter(), initial
        self._reported = 10 * initial // max(total, 1)
        interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bar = (
            tqdm(
                total=total,
                desc=label,
                unit=unit,
                unit_scale=unit == "B",
                initial=initial,
                dynamic_ncols=True,
                file=sys.stderr if sys.stderr.isatty() else None,
            )
            if enabled and interactive
            else None
        )
        self._log = enabled and not interactive
        self._listeners = _listeners.get()

    def advance(self, amount: int = 1, **figures: object) -> None:
        """Report `amount` more units done; `figures` (loss, memory) are shown next to the bar."""
        self._done += amount
        if self._bar is not None:
            if figures:
                self._bar.set_postfix({k: str(v) for k, v in figures.items()}, refresh=False)
            self._bar.update(amount)
        elif self._log:
            tenth = 10 * self._done // max(self._total, 1)
            if tenth > self._reported:
                self._reported = tenth
                logger.info("%s", self.reading(figures))
        for listener in self._listeners:
            listener(self.reading(figures))

    def reading(self, figures: Mapping[str, object]) -> Reading:
        """How far it is now."""
        rate = (self._done - self._initial) / max(time.perf_counter() - self._start, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        return Reading(
            self._label, self._done, self._total, self._unit, rate, max(left, 0.0), figures
        )

    def close(self) -> None:
        """End the bar, leaving its last state on the screen."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
