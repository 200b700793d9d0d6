"""Progress of long work: a bar with rate and ETA on a terminal, a line per 10 % in a log."""

import logging
import sys
import time
from types import TracebackType

from tqdm.auto import tqdm

logger = logging.getLogger("qsjax.progress")


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
        enabled: False shows nothing.
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
                elapsed = time.perf_counter() - self._start
                rate = (self._done - self._initial) / max(elapsed, 1e-9)
                left = (self._total - self._done) / max(rate, 1e-9)
                extra = "".join(f", {key} {value}" for key, value in figures.items())
                logger.info(
                    "%s: %d %% (%.4g %s/s, %.0f s left%s)",
                    self._label, min(100, 10 * tenth), rate, self._unit, left, extra,
                )  # fmt: skip

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
