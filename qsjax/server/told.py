"""What a client is told: records of videos, and errors, as JSON."""

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from qsjax.provenance import Provenance
from qsjax.server.asked import NAMES
from qsjax.serving import Task, VideoRecord

_SETTING = re.compile(r"\b(" + "|".join(NAMES.values()) + r")(?==)")
_FIELD = {setting: field for field, setting in NAMES.items()}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Answer(JSONResponse):
    """JSON in ASCII, which any text of a stranger's file fits into."""

    def render(self, content: Any) -> bytes:
        """The bytes of an answer."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode()


def refused(message: str, status: int, headers: Mapping[str, str] | None = None) -> Answer:
    """An error: one sentence, in the names of this API.

    Args:
        message: the sentence.
        status: of HTTP.
        headers: of the answer.
    """
    text = _SETTING.sub(lambda found: _FIELD[found[1]], message.replace("`", ""))
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return Answer({"error": {"message": text, "type": kind, "code": status}}, status, headers)


def of_task(task: Task, model: str) -> dict[str, Any]:
    """The record of a video that was asked for in this process."""
    state = "failed" if task.state == "cancelled" else task.state
    record = _record(task.id, task.job.made, model)
    record |= {
        "status": state,
        "progress": task.percent,
        "created_at": int(task.created),
        "completed_at": None if task.finished is None else int(task.finished),
    }
    if state == "failed":
        record["error"] = {"code": task.state, "message": task.error or "it was cancelled"}
    if task.outcome is not None:
        seconds = dict(task.outcome.seconds)
        record["inference_time_s"] = seconds.pop("all", None)
        record["stage_durations"] = seconds
    return record


def of_file(video: VideoRecord, model: str) -> dict[str, Any]:
    """The record of a video on the disk, which another process may have made."""
    return _record(video.id, video.made, video.made.model or model) | {
        "status": "completed",
        "progress": 100,
        "created_at": int(video.created),
        "completed_at": int(video.created),
    }


def _record(name: str, made: Provenance, model: str) -> dict[str, Any]:
    settings = made.settings
    return {
        "id": name,
        "object": "video",
        "model": model,
        "prompt": made.prompt,
        "size": f"{settings.width}x{settings.height}",
        "seconds": str(max(1, round(settings.frames / settings.fps))),
        "num_frames": settings.frames,
        "fps": settings.fps,
        "num_inference_steps": settings.steps,
        "seed": made.seed,
        "recipe": made.recipe or None,
        "media_type": "video/mp4",
        "file_name": f"{name}.mp4",
        "error": None,
        "inference_time_s": None,
        "stage_durations": {},
    }
