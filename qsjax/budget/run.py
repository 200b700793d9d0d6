"""A run of sampling, and what each of its stages holds on the device: text encoders, transformer, autoencoder, one after the other."""

from dataclasses import dataclass
from typing import NamedTuple

from qsjax.budget.models import PlannedModel
from qsjax.budget.size import Size
from qsjax.budget.stages import decoder_bytes, text_bytes, transformer_bytes
from qsjax.budget.weights import Weights
from qsjax.settings import Settings
from qsjax.settings.video import TEXT_TOKENS
from qsjax.vae import Tiling


class Stage(NamedTuple):
    """A stage.

    Attributes:
        name: for people.
        parts: bytes by what takes them.
    """

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All of it; stages are not on the device together."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, as far as its memory depends on it.

    Attributes:
        model: what is sampled.
        weights: of its transformer.
        settings: size and sampling plan.
        text_tokens: of the prompt, padding included; at most.
        text_storage: of the text encoders, "int8" or None.
        released: whether modulation weights leave the device before the first step.
        tiling: of the autoencoder; None is the default.
        encodes: whether text encoders take part; not with an encoded prompt.
        backend: of the device: "tpu", "gpu" or "cpu".
        chips: that share the transformer's tokens.
        cut: whether they share the weights of its blocks, too.
    """

    model: PlannedModel
    weights: Weights
    settings: Settings
    text_tokens: int = TEXT_TOKENS
    text_storage: str | None = None
    released: bool = True
    tiling: Tiling | None = None
    encodes: bool = True
    backend: str = "tpu"
    chips: int = 1
    cut: bool = False

    @property
    def size(self) -> Size:
        """Tokens of the video and the text."""
        settings, model = self.settings, self.model
        return Size.of(
            model.dit,
            model.vae,
            frames=settings.frames,
            height=settings.height,
            width=settings.width,
            text_tokens=self.text_tokens,
        )

    @property
    def latents(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        settings = self.settings
        return self.model.vae.latent_shape(settings.frames, settings.height, settings.width)

    @property
    def resident(self) -> int:
        """Bytes of the transformer's weights on a device, modulation released."""
        return self.weights.resident_on(self._sharing)

    @property
    def _sharing(self) -> int:
        return self.chips if self.cut else 1

    def stages(self) -> list[Stage]:
        """What each stage takes, estimated."""
        model = self.model
        found = []
        if self.encodes and model.llama is not None and model.clip is not None:
            found.append(
                Stage("text encoders", text_bytes(model.llama, model.clip, self.text_storage))
            )
        plan, latents = self.settings.plan(), self.latents
        parts = transformer_bytes(
            model, self.resident, self.size, latents, plan, plan.kinds, self.backend, self.chips
        )
        if not self.released:
            parts["modulation_weights"] = self.weights.share("modulation", self._sharing)
        found.append(Stage("transformer", parts))
        tile = decoder_bytes(model.vae, latents, self.tiling or Tiling())
        return [*found, Stage("autoencoder", tile)]

    def largest(self) -> Stage:
        """The stage that decides."""
        return max(self.stages(), key=lambda stage: stage.total)
