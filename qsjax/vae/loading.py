"""Loading the VAE of a checkpoint directory."""

import os
from functools import lru_cache

import jax.numpy as jnp
from flax import nnx

from qsjax.checkpoint import Manifest, restore
from qsjax.config import from_mapping
from qsjax.params import map_parameters
from qsjax.vae.config import VAEConfig
from qsjax.vae.model import VAE


def load_vae(
    directory: str | os.PathLike[str],
    *,
    dtype: jnp.dtype | type | None = None,
    progress: bool = False,
    verify: bool = True,
) -> VAE:
    """The autoencoder of a checkpoint that `qsjax convert` wrote.

    Args:
        directory: the checkpoint.
        dtype: parameters and convolutions; None means float32, as the weights are released.
        progress: show a bar in bytes.
        verify: compare each weight's bytes with their sha256 in the manifest, once a process.

    Raises:
        CheckpointError: not a checkpoint, without a VAE, or one that does not fit its configuration.
    """
    manifest = Manifest.read(directory)
    config = from_mapping(VAEConfig, manifest.config("vae"), source=f"{directory}: vae config")
    chosen = jnp.dtype(jnp.float32 if dtype is None else dtype)
    module = abstract_vae(config, chosen)
    return restore(manifest, "vae", module, dtype=chosen, progress=progress, verify=verify)


def abstract_vae(config: VAEConfig, dtype: jnp.dtype) -> VAE:
    """An autoencoder whose parameters are `jax.ShapeDtypeStruct`s: loading fills it, and programs are compiled for it."""
    return map_parameters(lambda _, leaf: leaf, _make(config, jnp.dtype(dtype)))


# Tracing takes a sixth of a second, and planning, compiling and loading all need the result.
@lru_cache(maxsize=8)
def _make(config: VAEConfig, dtype: jnp.dtype) -> VAE:
    return nnx.eval_shape(lambda: VAE(config, dtype=dtype, rngs=nnx.Rngs(0)))
