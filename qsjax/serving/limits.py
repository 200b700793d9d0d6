"""How large a video may be that a stranger asks for."""

from dataclasses import dataclass

from qsjax.errors import InputError
from qsjax.settings import Settings

MOST_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a request; whether the machine's memory holds it is another question.

    Attributes:
        pixels: of all frames together.
        steps: of denoising.
    """

    pixels: int
    steps: int = MOST_STEPS

    @classmethod
    def of(cls, stored: Settings, *, pixels: int | None = None, steps: int | None = None) -> "Limits":  # fmt: skip
        """The limits that were asked for, else twice the checkpoint's own video and 200 steps.

        Args:
            stored: the checkpoint's settings.
            pixels, steps: as of `Limits`; None is the default.
        """
        return cls(
            pixels=2 * pixels_of(stored) if pixels is None else pixels,
            steps=max(MOST_STEPS, stored.steps) if steps is None else steps,
        )

    def check(self, settings: Settings) -> None:
        """Refuse a video that is too large.

        Raises:
            InputError: names the limit.
        """
        if settings.steps > self.steps:
            raise InputError(f"steps={settings.steps}: at most {self.steps} are made here; ask for fewer")  # fmt: skip
        if (pixels := pixels_of(settings)) > self.pixels:
            raise InputError(
                f"frames={settings.frames}, height={settings.height}, width={settings.width}: {pixels:,} pixels, at most"
                f" {self.pixels:,} are made here; ask for fewer frames or a smaller size"
            )


def pixels_of(settings: Settings) -> int:
    """Pixels of all frames of a video."""
    return settings.frames * settings.height * settings.width
