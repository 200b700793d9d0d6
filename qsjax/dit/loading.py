"""Loading the DiT of a checkpoint directory."""

import os

import jax.numpy as jnp
from flax import nnx

from qsjax.checkpoint import Manifest, restore
from qsjax.config import from_mapping
from qsjax.dit.config import DiTConfig
from qsjax.dit.model import DiT


def load_dit(
    directory: str | os.PathLike[str],
    *,
    dtype: jnp.dtype | type | None = None,
    progress: bool = False,
) -> DiT:
    """The diffusion transformer of a checkpoint that `qsjax convert` wrote.

    Args:
        directory: the checkpoint.
        dtype: parameters and matmuls; None means bfloat16, as the weights are released.
        progress: show a bar in bytes.

    Raises:
        CheckpointError: not a checkpoint, without a DiT, or one that does not fit its configuration.
    """
    manifest = Manifest.read(directory)
    config = from_mapping(DiTConfig, manifest.config("dit"), source=f"{directory}: dit config")
    chosen = jnp.dtype(jnp.bfloat16 if dtype is None else dtype)
    return restore(
        manifest,
        "dit",
        lambda: DiT(config, dtype=chosen, rngs=nnx.Rngs(0)),
        dtype=chosen,
        progress=progress,
    )
