"""A model's default settings, which are stored with its checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from qsjax.config import from_mapping
from qsjax.errors import InputError
from qsjax.settings.plan import SHIFT, SamplingPlan
from qsjax.untrusted import Between
from qsjax.untrusted.bounds import Length

TEXT_TOKENS = 256
"""Length of HunyuanVideo's prompts, padding included."""
_SHIFTED_PIXELS = 544 * 960
"""Of a frame: the smallest size for which Tencent lists the model, and its shift."""
_FEW_STEPS = 8
"""Models of so many steps are distilled, with a shift of their own that does not follow the size."""
FILE = "qsjax.json"
"""Name of the JSON file with these settings beside a PyTorch pipeline's model_index.json."""


@dataclass(frozen=True, kw_only=True)
class Settings(SamplingPlan):
    """A sampling plan, and the size of the video; the defaults are HunyuanVideo's.

    Attributes:
        frames: video frames, 4k + 1.
        height: pixels.
        width: pixels.
        fps: frames per second of the file.
        negative_prompt: what true guidance moves away from.
    """

    frames: Length = 129
    height: Length = 720
    width: Length = 1280
    fps: Annotated[int, Between(1, 1000)] = 24
    negative_prompt: str = ""

    @property
    def shift_exceeds_size(self) -> bool:
        """Whether the shift is one for larger videos: of these, diffusers advises 2 to 5."""
        small = self.height * self.width < _SHIFTED_PIXELS
        return small and self.shift >= SHIFT and self.steps > _FEW_STEPS

    @classmethod
    def stored(cls, generation: Mapping[str, Any]) -> "Settings":
        """The settings of a checkpoint (`Manifest.generation`); fields that it does not set are HunyuanVideo's."""
        return from_mapping(cls, generation, source="manifest: generation")

    def plan(self) -> SamplingPlan:
        """Only the plan, without size and fps: what a compiled step depends on."""
        return SamplingPlan(
            **{field.name: getattr(self, field.name) for field in fields(SamplingPlan)}
        )


def check_size(frames: int, height: int, width: int, *, temporal: int, spatial: int) -> None:
    """Check that the model can make videos of a size.

    Args:
        frames, height, width: size of the video.
        temporal: video frames per latent frame, after the first.
        spatial: pixels per token along each side.

    Raises:
        InputError: frames are not `temporal` k + 1, or a side is no multiple of `spatial`; names the nearest size.
    """
    if frames < 1 or (frames - 1) % temporal:
        below = max(0, (frames - 1) // temporal) * temporal + 1
        above = below + temporal
        closest = below if frames - below < above - frames or frames < 1 else above
        raise InputError(
            f"frames={frames}: must be {temporal}k+1; the nearest valid number is {closest}"
        )
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % spatial:
            closest = max(1, (size + spatial // 2) // spatial) * spatial
            raise InputError(
                f"{name}={size}: must be a multiple of {spatial}; the nearest valid value is {closest}"
            )
