"""What the page does, without Gradio: takes a form, shows what becomes of it, gives old settings back."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsjax.config import from_mapping
from qsjax.errors import InputError, QsjaxError
from qsjax.jobs import VideoRequest
from qsjax.provenance import LONGEST_PROMPT
from qsjax.serving import Task, TaskQueue, VideoMaker, VideoRecord
from qsjax.ui import html

FIELDS = (
    *("prompt", "negative_prompt", "frames", "height", "width", "steps", "seed", "fps"),
    *("shift", "guidance", "true_cfg", "recipe", "compare"),
)
"""Of the form, in the order in which the page sends them."""
_SHOWN = 60
"""Videos of the history."""
_DIGITS = 24


@dataclass(frozen=True)
class View:
    """What a page shows.

    Attributes:
        status: of the task that waits or runs, or of the last one if it has no video; HTML.
        result: the chosen video; HTML.
        history: HTML.
        busy: something is being made.
        chosen: id of the video that is shown large; "" if there is none.
    """

    status: str
    result: str
    history: str
    busy: bool
    chosen: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """Digests of the three parts, so that a page need not get again what it has."""
        digest = hashlib.sha256
        return (
            digest(self.status.encode()).hexdigest(),
            digest(self.result.encode()).hexdigest(),
            digest(self.history.encode()).hexdigest(),
        )


class Desk:
    """One queue that all open pages share.

    Args:
        maker: checks and makes videos.
        queue: of tasks.
    """

    def __init__(self, maker: VideoMaker, queue: TaskQueue) -> None:
        self._maker, self._queue = maker, queue
        self._preview: tuple[object, str] = (None, "")

    def generate(self, form: Mapping[str, object]) -> str:
        """Take a form; returns why it is refused, or "".

        Args:
            form: the fields of `FIELDS`, of any type: they come from a browser. Empty ones are the checkpoint's.
        """
        try:
            request, recipe, compare = _read(form)
            self._queue.submit(self._maker.plan(request, recipe=recipe, compare=compare))
        except QsjaxError as error:
            return str(error).replace("`", "").removeprefix(f"{_FORM}: ")
        return ""

    def cancel(self) -> None:
        """Cancel what runs and what waits."""
        for task in self._queue.unfinished:
            self._queue.cancel(task.id)

    def view(self, chosen: str, seen: str) -> tuple[View, str]:
        """What there is to see now.

        Args:
            chosen: id of the video that a page shows large.
            seen: id of the last task that this page has seen finished; a new one's video is shown at once.

        Returns:
            The view, and the id of the last finished task.
        """
        tasks = self._queue.tasks
        finished = next((task for task in reversed(tasks) if task.is_finished), None)
        last = "" if finished is None else finished.id
        if finished is not None and last != seen and finished.state == "completed":
            chosen = last
        records = self._maker.folder.newest(_SHOWN)
        record = self._find(chosen)
        if record is None and records:
            record = records[0]
        chosen = "" if record is None else record.id
        current = next((task for task in tasks if not task.is_finished), None)
        status = html.running(current, self._picture(current)) if current else "" if finished is None else html.ended(finished)  # fmt: skip
        if record is not None:
            shown = html.result(record, self._outcome(record.id))
        else:
            shown = "" if current else html.empty(not self._queue.ready)
        return View(status, shown, html.history(records, chosen), current is not None, chosen), last

    def settings_of(self, name: object) -> dict[str, Any] | None:
        """The form by which a video was made; None if it is not there.

        Args:
            name: its id, from a browser.
        """
        record = self._find(name)
        if record is None:
            return None
        made, settings = record.made, record.made.settings
        values = {name: getattr(settings, name) for name in FIELDS if hasattr(settings, name)}
        return values | {
            "prompt": made.prompt,
            "negative_prompt": settings.negative_prompt if settings.uses_negative else "",
            "seed": str(made.seed),
            "recipe": made.recipe if made.recipe in self._maker.recipes else "",
            "compare": record.reference is not None and self._maker.reference is not None,
        }

    def _picture(self, task: Task) -> str:
        """URL of the latest preview, encoded once for all pages."""
        frames = task.progress.preview
        if frames is None:
            return ""
        if self._preview[0] is not frames:
            self._preview = (frames, html.animated(frames))
        return self._preview[1]

    def _find(self, name: object) -> VideoRecord | None:
        try:
            return self._maker.folder.find(name) if isinstance(name, str) else None
        except InputError:
            return None

    def _outcome(self, name: str) -> Any:
        task: Task | None = self._queue.get(name)
        return None if task is None else task.outcome


_FORM = "the form"


def _read(form: Mapping[str, object]) -> tuple[VideoRequest, str, bool]:
    """Request, recipe and whether to compare."""
    values = {name: form.get(name) for name in FIELDS}
    recipe, compare = values.pop("recipe") or "", values.pop("compare") or False
    if not isinstance(recipe, str) or not isinstance(compare, bool):
        raise InputError("the form was not sent as the page has it; load the page again")
    for name in ("prompt", "negative_prompt"):
        text = values[name] or ""
        if isinstance(text, str) and len(text) > LONGEST_PROMPT:
            raise InputError(f"the text has {len(text)} characters; give at most {LONGEST_PROMPT}")
    seed = values["seed"]
    if isinstance(seed, str):
        text = seed.strip()
        if text and not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
            raise InputError("the seed is a whole number from 0 on; leave it empty to draw one")
        values["seed"] = int(text) if text else None
    given = {name: value for name, value in values.items() if value not in (None, "")}
    given.setdefault("prompt", "")
    return from_mapping(VideoRequest, given, source=_FORM), recipe, compare
