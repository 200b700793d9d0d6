"""The last stage of a run: latents to frames, tile by tile."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered
from jaxtyping import Array, Float

from qsjax.compiling import Programs
from qsjax.models import Models
from qsjax.sample.finite import require_finite
from qsjax.vae import VAE, Tiling, VAEConfig


class LatentDecoder:
    """Decodes latents; the program of each shape of tile is compiled once.

    Args:
        models: the checkpoint's models.
        config: sizes of the autoencoder.
        mesh: mesh of devices, which decode tiles in turns; None is the default device.
        progress: show a progress bar.
        add: called with the name of each finished stage and the time when it began.

    Attributes:
        programs: compiled programs by shape and dtype of the tile, unless several devices take turns.
    """

    def __init__(
        self,
        models: Models,
        config: VAEConfig,
        mesh: Mesh | None,
        *,
        progress: bool,
        add: Callable[[str, float], None],
    ) -> None:
        self._models, self._config, self._progress, self._add = models, config, progress, add
        self._devices = () if mesh is None else tuple(mesh.local_devices)
        self.programs = Programs(add)

    def ahead(self, shape: tuple[int, ...], tiling: Tiling | None) -> None:
        """Begin to compile what decoding latents of this shape needs, before the autoencoder is loaded."""
        if not self._devices:
            vae = self._models.abstract_vae
            for tile in self._tiles(shape, tiling):
                self.programs.start(*self._program(vae, tile, np.dtype(np.float32)))

    def __call__(
        self, latents: Float[Array | np.ndarray, "B C T H W"], tiling: Tiling | None
    ) -> Float[np.ndarray, "B F Y X 3"]:
        """Decode to float32 frames in [0, 1].

        Args:
            latents: as the transformer sees them, multiplied by the scaling factor.
            tiling: the tiles; None decodes in one pass.

        Raises:
            NotFiniteError: the latents or the frames hold a NaN or an infinity.
        """
        vae = self._models.vae
        # On the host, where tiles are cut, and where a division need not be compiled.
        z = np.asarray(latents) / np.float32(self._config.scaling_factor)
        require_finite(z, "the latents", "sample them again")
        decode = None if self._devices else self._compiled(vae, z, tiling)
        start = time.perf_counter()
        if tiling is None:
            frames = np.asarray(vae.decode(z) if decode is None else decode(vae, z))
        else:  # the whole video is never on the device
            pieces = vae.decode_pieces(z, tiling, self._progress, self._devices, decode)
            frames = np.concatenate(list(pieces), axis=2)
        require_finite(frames, "the decoded frames", "verify the checkpoint by `qsjax convert`")
        array = np.clip(frames / 2 + 0.5, 0, 1)
        self._add("decode", start)
        return np.moveaxis(array, 1, -1)

    def _compiled(
        self, vae: VAE, z: Array | np.ndarray, tiling: Tiling | None
    ) -> Callable[[VAE, Array | np.ndarray], Array]:
        """Decodes one tile, by a program for its shape; all of them are compiled when this returns."""
        wanted = [self._program(vae, tile, z.dtype) for tile in self._tiles(z.shape, tiling)]
        for program in wanted:
            self.programs.start(*program)
        compiled = {key: self.programs.get(key, lower) for key, lower in wanted}
        return lambda vae, tile: compiled[tile.shape, tile.dtype](vae, tile)

    def _program(
        self, vae: VAE, tile: tuple[int, ...], dtype: np.dtype
    ) -> tuple[tuple[Any, ...], Callable[[], Lowered]]:
        """Key of the program for a shape of tile, and how it is traced."""
        shape = jax.ShapeDtypeStruct(tile, dtype)
        return (tile, jnp.dtype(dtype)), partial(vae.lower_tile, shape)

    def _tiles(self, shape: tuple[int, ...], tiling: Tiling | None) -> Sequence[tuple[int, ...]]:
        return [shape] if tiling is None else tiling.decode_plan(self._config).shapes(shape)
