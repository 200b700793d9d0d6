"""How a model is best sampled when the caller does not say: stored with its checkpoint."""

from dataclasses import dataclass

from qsjax.checkpoint import Manifest
from qsjax.config import from_mapping
from qsjax.errors import InputError
from qsjax.sample.plan import SamplingPlan
from qsjax.sample.skip import Skip
from qsjax.sample.sparse import SparsePlan

FILE = "qsjax.json"
"""Name of the JSON file with these settings beside a PyTorch pipeline's model_index.json."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size and sampling settings; the defaults are HunyuanVideo's.

    Attributes:
        frames: video frames, 4k + 1.
        height: pixels.
        width: pixels.
        fps: frames a second of a written file.
        steps: Euler steps.
        shift: of the noise schedule.
        guidance: scale given to the guidance embedder.
        true_cfg: scale of classifier-free guidance with `negative_prompt`; 1 is off.
        negative_prompt: what true guidance moves away from.
        sparse: sparse attention; None is dense.
        skip: steps that are left out while little changes; None leaves out none.
    """

    frames: int = 129
    height: int = 720
    width: int = 1280
    fps: int = 24
    steps: int = 50
    shift: float = 7.0
    guidance: float = 6.0
    true_cfg: float = 1.0
    negative_prompt: str = ""
    sparse: SparsePlan | None = None
    skip: Skip | None = None

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> "Settings":
        """The settings in a checkpoint's manifest; what it does not say is HunyuanVideo's."""
        return from_mapping(cls, manifest.generation, source="manifest: generation")

    def plan(self) -> SamplingPlan:
        """The sampling plan of these settings."""
        return SamplingPlan(
            steps=self.steps,
            shift=self.shift,
            guidance=self.guidance,
            true_cfg=self.true_cfg,
            sparse=self.sparse,
            skip=self.skip,
        )


def check_size(frames: int, height: int, width: int, *, temporal: int, spatial: int) -> None:
    """Refuse a video size that the model cannot make.

    Args:
        frames, height, width: of the video.
        temporal: frames a latent frame holds after the first.
        spatial: pixels a token holds along each side.

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
