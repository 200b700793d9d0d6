"""Estimated device memory of each stage: text encoders, transformer and autoencoder."""

from collections.abc import Iterable
from functools import lru_cache

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels import targets
from pallas_kernels.targets import Target
from qsjax.budget.models import PlannedModel
from qsjax.budget.sampling import sampling_bytes
from qsjax.budget.size import Size
from qsjax.sample import SamplingPlan
from qsjax.sample.cache_size import cache_bytes
from qsjax.text.clip import Clip
from qsjax.text.config import ClipConfig, LlamaConfig
from qsjax.text.int8 import store_int8
from qsjax.text.llama import Llama
from qsjax.vae import Tiling, VAEConfig, abstract_vae

_STORED = jnp.dtype(jnp.bfloat16)
MAPS = 4
"""Feature maps of the autoencoder that are alive at its peak: the v5e compiler counts 8.6 GB for a tile of 65 x 256 x 256 pixels,
which is 3.97 maps."""


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
    """Bytes of the denoising steps by purpose, with modulation weights released.

    Args:
        model: the model that is planned.
        resident: bytes of the transformer's weights on a device.
        size: size of the video.
        latents: frames, height and width of the latents.
        plan: the sampling plan.
        kinds: kinds of the steps; the one that takes most counts.
        backend: backend whose compiler lays out the steps.
        chips: number of chips that share the tokens; the result is for one of them.
    """
    evaluations = plan.steps * (2 if plan.uses_negative else 1)
    parts = sampling_bytes(model.dit, resident, size, evaluations, kinds, backend, chips)
    if plan.sparse is not None and plan.sparse.residual.place == "device":
        with targets.assumed(Target(backend, backend)):
            cached = cache_bytes(model.dit, plan, (1, 0, *latents), size.text_tokens)
        parts["lists_and_residual_cache"] = -(-cached // chips)
    return parts


@lru_cache(maxsize=8)
def text_bytes(llama: LlamaConfig, clip: ClipConfig, storage: str | None) -> dict[str, int]:
    """Bytes of both text encoders by purpose. Activations of a few hundred tokens are small and not counted; a layer that is
    widened from 8 bits is.

    Args:
        llama, clip: sizes of the text encoders.
        storage: "int8", or None for bfloat16.
    """

    def build() -> tuple[Llama, Clip]:
        models = (
            Llama(llama, dtype=_STORED, rngs=nnx.Rngs(0)),
            Clip(clip, dtype=_STORED, rngs=nnx.Rngs(0)),
        )
        del models[0].embed  # stays on the host
        return models if storage is None else (store_int8(models[0]), store_int8(models[1]))

    sizes = [_bytes(nnx.state(model)) for model in nnx.eval_shape(build)]
    parts = {"text_weights": sum(sizes)}
    if storage is not None:
        layer = 3 * llama.hidden_size * llama.intermediate_size
        parts["a_widened_layer"] = layer * _STORED.itemsize
    return parts


def decoder_bytes(
    config: VAEConfig, latents: tuple[int, int, int], tiling: Tiling
) -> dict[str, int]:
    """Bytes of the autoencoder's weights and of a tile at its peak: after the last upsampling, with the channels before it.

    Args:
        config: sizes of the autoencoder.
        latents: frames, height and width of the latents.
        tiling: the tiles in which they are decoded.
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
    # Of the dtype that a run on a CPU has, too: it needs these shapes anyway.
    whole = abstract_vae(config, jnp.dtype(jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(whole))) * _STORED.itemsize


def tile_sides(config: VAEConfig, tiling: Tiling) -> tuple[int | None, int | None, int | None]:
    """Latent frames, height and width of a tile; None for an axis that is not tiled."""
    side = None if tiling.pixels is None else tiling.pixels // config.spatial_compression_ratio
    frames = (
        None if tiling.frames is None else tiling.frames // config.temporal_compression_ratio + 1
    )
    return frames, side, side


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
