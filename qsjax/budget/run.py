"""A sampling run and the device memory of its stages: text encoders, transformer, autoencoder, one after the other."""

from dataclasses import dataclass
from typing import NamedTuple

from qsjax.budget.models import PlannedModel
from qsjax.budget.size import Size
from qsjax.budget.stages import decoder_bytes, text_bytes, transformer_bytes
from qsjax.budget.weights import Weights
from qsjax.settings import ModulationWeights, Settings
from qsjax.settings.video import TEXT_TOKENS
from qsjax.vae import Tiling


class Stage(NamedTuple):
    """The device memory of a stage.

    Attributes:
        name: name for messages and tables.
        parts: bytes by purpose.
    """

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of the whole stage; only one stage is on the device at a time."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything of a run that its memory depends on.

    Attributes:
        model: the model that is sampled.
        weights: bytes of its transformer's weights.
        settings: size and sampling plan.
        text_tokens: largest number of tokens of the prompt, padding included.
        text_storage: storage of the text encoders, "int8" or None for bfloat16.
        modulation: "released" drops the modulation weights from the device before the first step.
        tiling: tiling of the autoencoder; None is the default.
        encodes: whether the run encodes its prompt, and so needs the text encoders.
        backend: backend of the device: "tpu", "gpu" or "cpu".
        chips: number of chips that share the transformer's tokens.
        shard_weights: whether the weights of the blocks are sharded over the chips, too.
    """

    model: PlannedModel
    weights: Weights
    settings: Settings
    text_tokens: int = TEXT_TOKENS
    text_storage: str | None = None
    modulation: ModulationWeights = "released"
    tiling: Tiling | None = None
    encodes: bool = True
    backend: str = "tpu"
    chips: int = 1
    shard_weights: bool = False

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
        """Frames, height and width of the latents."""
        settings = self.settings
        return self.model.vae.latent_shape(settings.frames, settings.height, settings.width)

    @property
    def resident(self) -> int:
        """Bytes of the transformer's weights on a device, modulation released."""
        return self.weights.resident_on(self._weight_shards)

    @property
    def _weight_shards(self) -> int:
        return self.chips if self.shard_weights else 1

    def stages(self) -> list[Stage]:
        """The estimated memory of each stage."""
        model = self.model
        stages = []
        if self.encodes and model.llama is not None and model.clip is not None:
            storage = self.text_storage or model.text_storage
            stages.append(Stage("text encoders", text_bytes(model.llama, model.clip, storage)))
        plan, latents = self.settings.plan(), self.latents
        parts = transformer_bytes(
            model, self.resident, self.size, latents, plan, plan.kinds, self.backend, self.chips
        )
        if self.modulation == "resident":
            parts["modulation_weights"] = self.weights.share("modulation", self._weight_shards)
        stages.append(Stage("transformer", parts))
        tile = decoder_bytes(model.vae, latents, self.tiling or Tiling())
        return [*stages, Stage("autoencoder", tile)]

    def largest(self) -> Stage:
        """The stage that takes the most memory."""
        return max(self.stages(), key=lambda stage: stage.total)
