"""Loading the VAE of a checkpoint directory."""

import os

import jax.numpy as jnp
from flax import nnx

from qsjax.checkpoint import Manifest, restore
from qsjax.config import from_mapping
from qsjax.vae.config import VAEConfig
from qsjax.vae.model import VAE


def load_vae(
    directory: str | os.PathLike[str],
    *,
    dtype: jnp.dtype | type | None = None,
    progress: bool = False,
) -> VAE:
    """The autoencoder of a checkpoint that `qsjax convert` wrote.

    Args:
        directory: the checkpoint.
        dtype: parameters and convolutions; None means float32, as the weights are released.
        progress: show a bar in bytes.

    Raises:
        CheckpointError: not a checkpoint, without a VAE, or one that does not fit its configuration.
    """
    manifest = Manifest.read(directory)
    config = from_mapping(VAEConfig, manifest.config("vae"), source=f"{directory}: vae config")
    chosen = jnp.dtype(jnp.float32 if dtype is None else dtype)
    return restore(manifest, "vae", abstract_vae(config, chosen), dtype=chosen, progress=progress)


def abstract_vae(config: VAEConfig, dtype: jnp.dtype) -> VAE:
    """An autoencoder whose parameters are `jax.ShapeDtypeStruct`s: loading fills it, and programs are compiled for it."""
    return nnx.eval_shape(lambda: VAE(config, dtype=dtype, rngs=nnx.Rngs(0)))
