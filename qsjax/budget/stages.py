"""Bytes that text encoders, transformer and autoencoder hold on the device."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qsjax.budget.models import PlannedModel
from qsjax.budget.sampling import sampling_bytes
from qsjax.budget.size import Size
from qsjax.sample import SamplingPlan
from qsjax.sample.cache_size import cache_bytes
from qsjax.text.clip import Clip
from qsjax.text.config import ClipConfig, LlamaConfig
from qsjax.text.int8 import store_int8
from qsjax.text.llama import Llama
from qsjax.vae import VAE, Tiling, VAEConfig

_STORED = jnp.dtype(jnp.bfloat16)
MAPS = 4
"""Feature maps of the autoencoder that are alive at its widest moment: the v5e's compiler counts 8.6 GB of a tile of
65 x 256 x 256 pixels, 3.97 of them."""


def transformer_bytes(
    model: PlannedModel,
    resident: int,
    size: Size,
    latents: tuple[int, int, int],
    plan: SamplingPlan,
    kinds: Iterable[str],
    backend: str = "tpu",
    chips: int = 1,
) -> dict[str, int]:
    """Of steps of these kinds, the widest of which counts, with modulation weights released.

    Args:
        model: what is planned.
        resident: bytes of the transformer's weights on a device.
        size: of the video.
        latents: frames, height, width.
        plan: of the sampling run.
        kinds: of the steps.
        backend: whose compiler lays them out.
        chips: that share the tokens.
    """
    evaluations = plan.steps * (2 if plan.uses_negative else 1)
    parts = sampling_bytes(model.dit, resident, size, evaluations, kinds, backend, chips)
    if plan.sparse is not None and plan.sparse.residual.place == "device":
        cached = cache_bytes(model.dit, plan, (1, 0, *latents), size.text_tokens)
        parts["lists_and_residual_cache"] = -(-cached // chips)
    return parts


@lru_cache(maxsize=8)
def text_bytes(llama: LlamaConfig, clip: ClipConfig, storage: str | None) -> dict[str, int]:
    """Of both text encoders; what they compute for a few hundred tokens is small beside a layer that is widened from 8 bits.

    Args:
        llama, clip: their sizes.
        storage: "int8", or None for bfloat16.
    """

    def build() -> tuple[Llama, Clip]:
        models = (
            Llama(llama, dtype=_STORED, rngs=nnx.Rngs(0)),
            Clip(clip, dtype=_STORED, rngs=nnx.Rngs(0)),
        )
        return models if storage is None else (store_int8(models[0]), store_int8(models[1]))

    sizes = [_bytes(nnx.state(one)) for one in nnx.eval_shape(build)]
    parts = {"text_weights": sum(sizes)}
    if storage is not None:
        layer = 3 * llama.hidden_size * llama.intermediate_size
        parts["a_widened_layer"] = layer * _STORED.itemsize
    return parts


def decoder_bytes(
    config: VAEConfig, latents: tuple[int, int, int], tiling: Tiling
) -> dict[str, int]:
    """Of the autoencoder and the widest moment of a tile: after the last upsampling, with the channels of the level before.

    Args:
        config: its sizes.
        latents: frames, height, width.
        tiling: how they are cut.
    """
    frames, height, width = (
        size if side is None else min(size, side)
        for size, side in zip(latents, tile_sides(config, tiling), strict=True)
    )
    pixels = config.spatial_compression_ratio**2 * height * width
    values = (1 + config.temporal_compression_ratio * (frames - 1)) * pixels
    channels = config.block_out_channels[min(1, len(config.block_out_channels) - 1)]
    return {
        "autoencoder_weights": _autoencoder_bytes(config),
        "a_tile": MAPS * channels * values * _STORED.itemsize,
    }


@lru_cache(maxsize=8)
def _autoencoder_bytes(config: VAEConfig) -> int:
    whole = nnx.eval_shape(lambda: VAE(config, dtype=_STORED, rngs=nnx.Rngs(0)))
    return _bytes(nnx.state(whole))


def tile_sides(config: VAEConfig, tiling: Tiling) -> tuple[int | None, int | None, int | None]:
    """Latent frames, height and width of a tile; None where an axis is not cut."""
    side = None if tiling.pixels is None else tiling.pixels // config.spatial_compression_ratio
    frames = (
        None if tiling.frames is None else tiling.frames // config.temporal_compression_ratio + 1
    )
    return frames, side, side


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
