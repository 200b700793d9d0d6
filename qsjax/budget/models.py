"""The model that a plan is for: sizes, recipe and default settings, read without loading any weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsjax.budget.size import Size
from qsjax.checkpoint import Manifest
from qsjax.config import configs_directory, from_mapping, nearest, preset
from qsjax.dit import DiTConfig
from qsjax.errors import InputError
from qsjax.quant import Recipe
from qsjax.settings import Settings
from qsjax.settings.video import FILE
from qsjax.text.config import ClipConfig, LlamaConfig
from qsjax.vae.config import VAEConfig

ALIASES = {"hunyuan-13b": "hunyuan-video-13b"}
TINY = "tiny"
DEFAULT_RECIPE = "w4a8"


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """What planning needs to know of a model.

    Attributes:
        name: name of the preset, "tiny", or the checkpoint's folder.
        dit: sizes of the transformer.
        vae: sizes of the autoencoder, which determine the number of tokens of a video.
        recipe: quantization recipe of the transformer.
        settings: default size and number of steps.
        clipped: whether quantized activations have a learned clip; calibration gives them one.
        text_storage: how a checkpoint stores its text encoders: "int8", or None for floating point.
        llama, clip: sizes of the text encoders; None where the checkpoint has none.
    """

    name: str
    dit: DiTConfig
    vae: VAEConfig
    recipe: Recipe
    settings: Settings
    clipped: bool = True
    text_storage: str | None = None
    llama: LlamaConfig | None = None
    clip: ClipConfig | None = None

    @classmethod
    def find(cls, name: str, recipe: str | None = None) -> "PlannedModel":
        """Find a model by name.

        Args:
            name: a preset of configs/models or its alias, "tiny" for the bundled model, or a checkpoint folder.
            recipe: a preset of configs/recipes or a TOML file; None is the checkpoint's own, else w4a8.

        Raises:
            InputError: no such model or recipe, or the checkpoint is quantized with another recipe.
            CheckpointError: the folder is not a checkpoint.
        """
        if name == TINY:
            return cls(name=name, recipe=Recipe.load(recipe or DEFAULT_RECIPE), **_bundled())
        presets = [path.stem for path in (configs_directory() / "models").glob("*.toml")]
        full = ALIASES.get(name, name)
        if full in presets:
            return cls(
                name=full,
                dit=DiTConfig.preset(full),
                vae=VAEConfig(),
                recipe=Recipe.load(recipe or DEFAULT_RECIPE),
                settings=Settings(),
                **_text_encoders(preset("models", full), f"model {full}"),
            )
        if not Path(name).is_dir():
            known = [*presets, *ALIASES, TINY]
            raise InputError(
                f"no model {name!r}: neither a checkpoint folder nor a preset; {nearest(name, known)}"
            )
        return cls.of_checkpoint(Manifest.read(name), recipe)

    @classmethod
    def of_checkpoint(cls, manifest: Manifest, asked: str | None = None) -> "PlannedModel":
        """The model of an opened checkpoint; arguments and errors as of `find`."""
        source, components = str(manifest.directory), manifest.components
        dit = from_mapping(DiTConfig, manifest.config("dit"), source=f"{source}: dit config")
        stored = manifest.component("dit").recipe
        if stored is None:
            recipe = Recipe.load(asked or DEFAULT_RECIPE)
        else:
            recipe = from_mapping(Recipe, stored, source=f"{source}: dit recipe")
            if asked is not None and Recipe.load(asked) != recipe:
                raise InputError(
                    f"recipe {asked} was asked for, but {source} is already quantized by a recipe of its own, {recipe.name};"
                    f" leave `weights` out, or give the checkpoint it was made from"
                )
        # A checkpoint of the transformer alone has no VAE config: assume HunyuanVideo's.
        vae = manifest.config("vae") if "vae" in components else {}
        return cls(
            name=source,
            dit=dit,
            vae=from_mapping(VAEConfig, vae, source=f"{source}: vae config"),
            recipe=recipe,
            settings=Settings.stored(manifest.generation),
            # A checkpoint that is not quantized yet is planned as calibration would make it, with clips.
            clipped=True if stored is None else components["dit"].clipped,
            text_storage=components["llama"].storage if "llama" in components else None,
            **_text_encoders(
                {name: manifest.config(name) for name in ("llama", "clip") if name in components},
                source,
            ),
        )

    def size(self, pixels: tuple[int, int, int], text_tokens: int) -> Size:
        """Tokens of a video of so many frames, of a height and a width in pixels.

        Raises:
            InputError: a size that the model cannot make.
        """
        frames, height, width = pixels
        return Size.of(
            self.dit, self.vae, frames=frames, height=height, width=width, text_tokens=text_tokens
        )


def _text_encoders(values: dict[str, Any], source: str) -> dict[str, Any]:
    kinds = {"llama": LlamaConfig, "clip": ClipConfig}
    return {
        name: from_mapping(kind, values[name], source=f"{source}: {name} config")
        for name, kind in kinds.items()
        if name in values
    }


def _bundled() -> dict[str, Any]:
    """The model in qsjax/assets/tiny, which is kept in PyTorch's layout."""
    import qsjax

    folder = Path(qsjax.__file__).resolve().parent / "assets" / "tiny"

    def read(*path: str) -> dict[str, Any]:
        return json.loads(folder.joinpath(*path).read_text(encoding="utf-8"))

    return {
        "dit": DiTConfig.from_diffusers(read("transformer", "config.json")),
        "vae": VAEConfig.from_diffusers(read("vae", "config.json")),
        "settings": from_mapping(Settings, read(FILE), source=FILE),
        "llama": LlamaConfig.from_transformers(read("text_encoder", "config.json")),
        "clip": ClipConfig.from_transformers(read("text_encoder_2", "config.json")),
    }
