"""The three models of a checkpoint, read when they are first needed and dropped if they do not fit together."""

import gc
import os
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from pallas_kernels import Kernels
from qsjax.checkpoint import Manifest, stored_bytes
from qsjax.config import from_mapping
from qsjax.dit import DiT, DiTConfig, load_dit
from qsjax.dit.abstract import abstract_dit
from qsjax.dit.halves import keep
from qsjax.dit.kernels import use_kernels
from qsjax.dit.loading import stored_recipe
from qsjax.parallel import weight_placement
from qsjax.quant import arrange
from qsjax.settings import ModulationWeights
from qsjax.text import TextEncoder
from qsjax.vae import VAE, VAEConfig, abstract_vae, load_vae

_ROOM = 0.6
"""With `staged=None`, all models stay loaded if their weights take at most this share of the device's memory."""

Loaded = TypeVar("Loaded")


class Models:
    """Text encoders, transformer and autoencoder.

    Args:
        manifest: the checkpoint's manifest.
        dtype: dtype of weights and matmuls.
        text_storage: storage of the text encoders, "int8" or None for `dtype`.
        modulation: "released" loads the transformer without its modulation weights.
        staged: keep one model in memory at a time; None decides by the device's memory.
        mesh: mesh of devices that run the transformer; None is the default device.
        shard_weights: shard the weights of the transformer's blocks over the mesh; False replicates them.
        kernels: implementations that the transformer runs.
        progress: show progress bars.
        verify: compare weights with their sha256 in the manifest when they are read.
        add: called with the stage "load" and the time when it began, after each model is read.

    Attributes:
        staged: whether reading a model drops the others.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        dtype: jnp.dtype,
        text_storage: str | None,
        modulation: ModulationWeights,
        staged: bool | None,
        mesh: Mesh | None,
        shard_weights: bool,
        kernels: Kernels,
        progress: bool,
        verify: bool,
        add: Callable[[str, float], None],
    ) -> None:
        self._manifest, self._dtype, self._text_storage = manifest, dtype, text_storage
        self._released = modulation == "released"
        self._progress, self._verify, self._add = progress, verify, add
        self._place = None if mesh is None else weight_placement(mesh, shard_weights)
        self._kernels = kernels
        self._loaded: dict[str, Any] = {}
        self.staged = not self._fits() if staged is None else staged

    @property
    def dit(self) -> DiT:
        """The transformer that steps run."""
        return self._cached("dit", lambda: self._read_dit("steps" if self._released else "whole"))

    @property
    def modulation(self) -> DiT:
        """The model that computes a prompt's modulation vectors; if released, it is read anew each time and not kept."""
        if not self._released:
            return self.dit
        if self.staged and self._loaded.keys() - {"dit"}:
            self.release()  # text encoders would lie beside it
        return self._read_dit("modulation")

    @property
    def vae(self) -> VAE:
        """The video autoencoder."""
        return self._cached("vae", lambda: self._read(load_vae))

    @property
    def text_encoder(self) -> TextEncoder:
        """Both text encoders with their tokenizers."""
        load = partial(TextEncoder.load, storage=self._text_storage)
        return self._cached("text", lambda: self._read(load))

    @cached_property
    def abstract_dit(self) -> DiT:
        """Shapes and dtypes of `dit`."""
        return self._abstract_dit("steps" if self._released else "whole")

    @cached_property
    def abstract_modulation(self) -> DiT:
        """Shapes and dtypes of `modulation`."""
        return self._abstract_dit("modulation") if self._released else self.abstract_dit

    @cached_property
    def abstract_vae(self) -> VAE:
        """Shapes and dtypes of `vae`."""
        source = f"{self._manifest.directory}: vae config"
        config = from_mapping(VAEConfig, self._manifest.config("vae"), source=source)
        return abstract_vae(config, self._dtype)

    def release(self) -> None:
        """Drop all loaded models."""
        self._loaded.clear()
        gc.collect()  # modules refer to themselves

    def _cached(self, name: str, read: Callable[[], Loaded]) -> Loaded:
        if name not in self._loaded:
            if self.staged and self._loaded:
                self.release()
            self._loaded[name] = read()
        return self._loaded[name]

    def _read_dit(self, part: str) -> DiT:
        load = partial(load_dit, part=part, place=self._place, kernels=self._kernels)
        return self._read(partial(load, progress=self._progress))

    def _abstract_dit(self, part: str) -> DiT:
        """What `_read_dit` returns, without values; on a mesh, as on a single device."""
        source = f"{self._manifest.directory}: dit config"
        stored = abstract_dit(
            from_mapping(DiTConfig, self._manifest.config("dit"), source=source),
            dtype=self._dtype,
            recipe=stored_recipe(self._manifest),
            clipped=self._manifest.component("dit").clipped,
        )
        kept = use_kernels(keep(stored, part), self._kernels)
        return nnx.eval_shape(partial(arrange, matmul=self._kernels.matmul), kept)

    def _read(self, load: Callable[..., Loaded]) -> Loaded:
        start = time.perf_counter()
        loaded = load(self._manifest.directory, dtype=self._dtype, verify=self._verify)
        self._add("load", start)
        return loaded

    def _fits(self) -> bool:
        """Whether all weights, as stored, take a small part of the device's memory; True if its size is unknown."""
        room = device_room()
        return room is None or stored_bytes(self._manifest) <= _ROOM * room


def device_room() -> int | None:
    """Bytes of the default device that a program may use; None if the backend does not report them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def host_memory() -> int | None:
    """Bytes of the machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
