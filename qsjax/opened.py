"""A checkpoint opened for sampling: its models, its settings, and the devices it runs on."""

import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from pallas_kernels import KernelsLike
from qsjax.budget import PlannedModel, Weights
from qsjax.budget.fit import require_room
from qsjax.budget.run import Run
from qsjax.checkpoint import Manifest
from qsjax.config import from_mapping, nearest
from qsjax.dit import DiT, DiTConfig
from qsjax.dit.kernels import checked_kernels
from qsjax.errors import CheckpointError, InputError
from qsjax.models import Models, device_room, host_memory
from qsjax.parallel import make_mesh
from qsjax.provenance import Provenance
from qsjax.settings import MODULATION_WEIGHTS, ModulationWeights, Settings
from qsjax.text import TextEncoder
from qsjax.untrusted import shown
from qsjax.vae import VAE, Tiling, VAEConfig

Opened = TypeVar("Opened", bound="OpenCheckpoint")


class OpenCheckpoint:
    """Three models, each loaded when it is first needed.

    Attributes:
        dit_config, vae_config: sizes of the transformer and the autoencoder.
        settings: defaults of every call: size, steps, shift, guidance.
        tiling: tiles in which the VAE decodes; None decodes in one pass.
        mesh: mesh of the devices that share the transformer's tokens; None is the default device alone.
        timings: seconds of the last call by stage ("load", "encode", "compile", "denoise", "decode").
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        dtype: jnp.dtype,
        text_storage: str | None = None,
        modulation: str = "resident",
        staged: bool | None = None,
        devices: int = 1,
        shard_weights: bool = False,
        kernels: KernelsLike | None = None,
        progress: bool = True,
        verify: bool = True,
    ) -> None:
        if modulation not in MODULATION_WEIGHTS:
            raise InputError(
                f"no modulation {modulation!r}; {nearest(modulation, MODULATION_WEIGHTS)}"
            )
        self._manifest, self._dtype, self._text_storage = manifest, dtype, text_storage
        self._modulation: ModulationWeights = "released" if modulation == "released" else "resident"
        self._progress = progress
        source = str(manifest.directory)
        self.dit_config = from_mapping(
            DiTConfig, manifest.config("dit"), source=f"{source}: dit config"
        )
        self.vae_config = from_mapping(
            VAEConfig, manifest.config("vae"), source=f"{source}: vae config"
        )
        _require_agreement(manifest, self.dit_config)
        if shard_weights and devices == 1:
            raise InputError(
                "`shard_weights=True` is for several devices, and there is one; ask for more with `devices`, or leave it out"
            )
        self.mesh = make_mesh(devices) if devices != 1 else None
        self._shard_weights = shard_weights
        self._kernels = checked_kernels(kernels)
        self.settings = Settings.stored(manifest.generation)
        self.tiling: Tiling | None = from_mapping(
            Tiling, manifest.tiling, source=f"{source}: tiling"
        )
        self._models = Models(
            manifest,
            dtype=dtype,
            text_storage=text_storage,
            modulation=self._modulation,
            staged=staged,
            mesh=self.mesh,
            shard_weights=shard_weights,
            kernels=self._kernels,
            progress=progress,
            verify=verify,
            add=self._add,
        )
        self.timings: dict[str, float] = {}

    @classmethod
    def from_checkpoint(
        cls: type[Opened],
        directory: str | os.PathLike[str],
        *,
        dtype: jnp.dtype | type | str | None = None,
        text_storage: str | None = None,
        modulation: str = "resident",
        staged: bool | None = None,
        devices: int = 1,
        shard_weights: bool = False,
        kernels: KernelsLike | None = None,
        progress: bool = True,
        verify: bool = True,
    ) -> Opened:
        """Open a checkpoint that `qsjax convert` or `qsjax calibrate` wrote.

        Args:
            directory: folder of the checkpoint.
            dtype: dtype of weights and matmuls; None is bfloat16 on TPU and GPU, float32 on CPU.
            text_storage: "int8" halves the memory of the text encoders.
            modulation: "released" reads the modulation weights (a quarter of HunyuanVideo's) anew for each prompt and drops them
                before the first step; "resident" keeps them in memory. The video is the same.
            staged: True keeps only one of text encoders, transformer and autoencoder in memory at a time, and reads each again for
                the next call; False keeps all that was loaded; None keeps all if the three take a small part of the device's
                memory, or if its size is unknown.
            devices: number of devices that share the transformer's tokens and heads, and decode the autoencoder's tiles in turns.
                Text encoders run on the first.
            shard_weights: shard the transformer's weights over the devices too, and gather each layer's just before it runs; False
                replicates them.
            kernels: implementation names by operation, as {"attention": "xla_chunked", "matmul": "xla"}. Operations are attention,
                sparse_attention, matmul and quantize; `qsjax doctor` lists the names. None is "auto" for all.
            progress: show progress bars (on a terminal or in a notebook; in a log, a line per 10 %).
            verify: compare the weights with their sha256 in the manifest when they are read, once a process; False leaves that out.

        Raises:
            CheckpointError: not a checkpoint, or one without a DiT or VAE.
            InputError: an unknown modulation or implementation, or more devices than there are.
        """
        if dtype is None:
            dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return cls(
            Manifest.read(directory),
            dtype=jnp.dtype(dtype),
            text_storage=text_storage,
            modulation=modulation,
            staged=staged,
            devices=devices,
            shard_weights=shard_weights,
            kernels=kernels,
            progress=progress,
            verify=verify,
        )

    @classmethod
    def tiny(cls: type[Opened], **options: Any) -> Opened:
        """The bundled tiny model, converted to a checkpoint in the user's cache at first use."""
        from convert.bundled import converted_tiny_model

        return cls.from_checkpoint(converted_tiny_model(), **options)

    @property
    def directory(self) -> Path:
        """Folder of the checkpoint."""
        return self._manifest.directory

    @property
    def weights(self) -> str | None:
        """Name of the DiT's quantization recipe; None in full precision."""
        recipe = self._manifest.component("dit").recipe
        return None if recipe is None else recipe.get("name")

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of weights and matmuls."""
        return self._dtype

    @property
    def staged(self) -> bool:
        """Whether only one of text encoders, transformer and autoencoder is in memory at a time."""
        return self._models.staged

    @property
    def dit(self) -> DiT:
        """The diffusion transformer; with `modulation="released"`, without its modulation weights."""
        return self._models.dit

    @property
    def vae(self) -> VAE:
        """The video autoencoder."""
        return self._models.vae

    @property
    def text_encoder(self) -> TextEncoder:
        """Both text encoders with their tokenizers."""
        return self._models.text_encoder

    def release(self) -> None:
        """Drop every loaded model; each is read again when it is needed. Compiled programs are kept."""
        self._models.release()

    def latent_shape(self, settings: Settings, batch: int = 1) -> tuple[int, int, int, int, int]:
        """Shape [B, C, T, H, W] of a video's latents."""
        latents = self.vae_config.latent_shape(settings.frames, settings.height, settings.width)
        return (batch, self.dit_config.in_channels, *latents)

    @cached_property
    def content_digest(self) -> str:
        """sha256 of what the models compute with (`Manifest.content_digest`)."""
        return self._manifest.content_digest

    def provenance(
        self, prompt: str, settings: Settings, *, seed: int, recipe: str = "", encoded: bool = False
    ) -> Provenance:
        """What makes a video of this checkpoint again; its `to_json()` is the comment of a file.

        >>> result = pipeline.generate("a red circle moves left", seed=3)
        >>> made = pipeline.provenance("a red circle moves left", result.settings, seed=3)
        >>> qsjax.write_video(result.frames, "out.mp4", comment=made.to_json())

        Args:
            prompt: the text.
            settings: of the run, with its negative prompt.
            seed: of the noise.
            recipe: name of the sampling recipe, for people.
            encoded: the prompt came encoded.
        """
        return Provenance(
            prompt=prompt,
            seed=seed,
            settings=settings,
            recipe=recipe,
            model=self.directory.resolve().name,
            checkpoint=self.content_digest,
            dtype=self._dtype.name,
            text_storage=self._text_storage,
            encoded=encoded,
            devices=1 if self.mesh is None else self.mesh.size,
            device=jax.local_devices()[0].device_kind,
            kernels=self._kernels,
        )

    def _require_room(self, settings: Settings, *, encodes: bool) -> None:
        """Raise `InputError` if the run cannot fit the device; skip the check if the device's memory is unknown.

        A CPU's is the machine's.
        """
        room, where = device_room(), f"this {jax.local_devices()[0].device_kind}"
        if room is None and jax.default_backend() == "cpu":
            room, where = host_memory(), "this machine"
        if room is None:
            return
        model = PlannedModel.of_checkpoint(self._manifest)
        run = Run(
            model=model,
            weights=Weights.count(model.dit, model.recipe, clipped=model.clipped),
            settings=settings,
            text_storage=self._text_storage,
            modulation=self._modulation,
            tiling=self.tiling,
            encodes=encodes,
            backend=jax.default_backend(),
            chips=1 if self.mesh is None else self.mesh.size,
            shard_weights=self._shard_weights,
        )
        require_room(run, room, where=where)

    def _add(self, stage: str, start: float) -> None:
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start


def _require_agreement(manifest: Manifest, dit: DiTConfig) -> None:
    """Refuse text encoders of other widths than the transformer reads, before minutes of loading."""
    for name, needed in (("llama", dit.text_dim), ("clip", dit.pooled_dim)):
        width = manifest.config(name).get("hidden_size") if name in manifest.components else needed
        if width != needed:
            raise CheckpointError(
                f"{manifest.directory}: its {name} has a width of {shown(width)} and its transformer reads {needed}; convert"
                f" again with the text encoders of this transformer"
            )
