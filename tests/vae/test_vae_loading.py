"""A VAE out of a checkpoint directory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from vae_pairs import CONFIGS, latent, pair, video

from qsjax.checkpoint import CheckpointWriter
from qsjax.config import to_mapping
from qsjax.errors import CheckpointError, InputError
from qsjax.params import parameters
from qsjax.vae import load_vae

NAME = "three levels, 4x4x4"
CONFIG = CONFIGS[NAME]


@pytest.fixture
def vae():
    return pair(NAME)[1]


def write(directory, vae, config):
    leaves = {name: np.asarray(leaf) for name, leaf in parameters(vae).items()}
    writer = CheckpointWriter(directory, identity="vae")
    writer.write_item("vae", "all", leaves)
    writer.finish({"components": {"vae": {"config": config}}}, {"vae": ["all"]})


def test_loads_what_was_written(tmp_path, vae):
    write(tmp_path / "ckpt", vae, to_mapping(CONFIG))
    loaded = load_vae(tmp_path / "ckpt")
    assert loaded.config == CONFIG
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(loaded)), jax.tree.leaves(nnx.state(vae)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_runs_in_bfloat16(tmp_path, vae):
    """Under strict promotion a dtype that does not fit is found by tracing alone."""
    write(tmp_path / "ckpt", vae, to_mapping(CONFIG))
    half = load_vae(tmp_path / "ckpt", dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(nnx.state(half))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}
    frames = jax.eval_shape(lambda vae, z: vae.decode(z), half, latent(CONFIG, 2, 3, 4))
    moments = jax.eval_shape(lambda vae, x: vae.encode(x), half, video(CONFIG, 2, 3, 4))
    assert (frames.shape, frames.dtype) == ((1, 3, 5, 12, 16), jnp.float32)
    assert (moments.mean.shape, moments.mean.dtype) == ((1, 4, 2, 3, 4), jnp.float32)


def test_another_config_is_refused(tmp_path, vae):
    write(tmp_path / "one", vae, to_mapping(CONFIG) | {"latent_channels": 5})
    with pytest.raises(CheckpointError, match="does not fit its own configuration"):
        load_vae(tmp_path / "one")
    write(tmp_path / "two", vae, to_mapping(CONFIG) | {"layers": 2})
    with pytest.raises(InputError, match=r"two: vae config: unknown key 'layers'"):
        load_vae(tmp_path / "two")
