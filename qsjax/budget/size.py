"""The size of a video in pixels and in tokens."""

from dataclasses import asdict, dataclass

from qsjax.dit import DiTConfig
from qsjax.errors import InputError
from qsjax.settings.video import TEXT_TOKENS, check_size
from qsjax.vae.config import VAEConfig


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a video and its prompt.

    Attributes:
        frames: number of video frames, 4k + 1.
        height, width: pixels.
        video_tokens: latent frames x height x width, divided by the patch size.
        text_tokens: tokens of the prompt, padding included.
    """

    frames: int
    height: int
    width: int
    video_tokens: int
    text_tokens: int

    @classmethod
    def of(
        cls,
        dit: DiTConfig,
        vae: VAEConfig,
        *,
        frames: int,
        height: int,
        width: int,
        text_tokens: int = TEXT_TOKENS,
    ) -> "Size":
        """Count the tokens of a video.

        Args:
            dit: gives the patch size.
            vae: gives the compression.
            frames, height, width: size of the video.
            text_tokens: tokens of the prompt.

        Raises:
            InputError: a size that the model cannot make (the message names the nearest one), or a prompt without tokens.
        """
        check_size(
            frames,
            height,
            width,
            temporal=vae.temporal_compression_ratio * dit.patch_size[0],
            spatial=vae.spatial_compression_ratio * dit.patch_size[1],
        )
        if text_tokens < 1:
            raise InputError(f"text tokens {text_tokens}: a prompt has at least 1")
        tokens = 1
        latent = vae.latent_shape(frames, height, width)
        for cells, patch in zip(latent, dit.patch_size, strict=True):
            tokens *= cells // patch
        return cls(
            frames=frames, height=height, width=width, video_tokens=tokens, text_tokens=text_tokens
        )

    @property
    def tokens(self) -> int:
        """Video and text tokens together: the sequence length of attention."""
        return self.video_tokens + self.text_tokens

    def data(self) -> dict[str, int]:
        """All counts, for a report."""
        return {**asdict(self), "tokens": self.tokens}

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"
