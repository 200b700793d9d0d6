"""One video that somebody asks for, in a file, on a page or by HTTP: checked before a model is asked."""

from dataclasses import dataclass
from typing import Any

from qsjax.errors import InputError
from qsjax.provenance import LONGEST_PROMPT
from qsjax.sample import check_seed


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """What a video shows, and settings; what is None is the checkpoint's, or that of all videos.

    Attributes:
        prompt: what it shows.
        seed: of the noise.
        negative_prompt: what true guidance moves away from.
        frames, height, width, steps, shift, guidance, true_cfg, fps: as of `qsjax.settings.Settings`.
    """

    prompt: str
    seed: int | None = None
    negative_prompt: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    shift: float | None = None
    guidance: float | None = None
    true_cfg: float | None = None
    fps: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("the prompt is empty; describe the video in a few words")
        for text in (self.prompt, self.negative_prompt or ""):
            if len(text) > LONGEST_PROMPT:
                raise InputError(f"a prompt has {len(text)} characters; give at most {LONGEST_PROMPT}")  # fmt: skip
        if self.seed is not None:
            check_seed(self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `Pipeline.resolve`: those that were asked for."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}


SETTINGS = ("frames", "height", "width", "steps", "shift", "guidance", "true_cfg", "fps")
"""Fields that are settings of a run."""
