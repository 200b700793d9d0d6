"""The decoder's levels one by one are the decoder."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.deviceless import missing
from pallas_kernels.targets import TARGETS
from qsjax.bench.vae_tile import LevelRequest, levels, respond
from qsjax.vae import VAEConfig, abstract_vae

SMALL = VAEConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=2)


def test_levels_one_after_the_other_decode_a_tile():
    def whole(vae, latents):
        return vae.decode_tile(latents)

    def level_by_level(vae, x):
        for level in levels(SMALL):
            x = level(vae, x)
        return x

    vae = abstract_vae(SMALL, jnp.dtype(jnp.bfloat16))
    latents = jax.ShapeDtypeStruct((1, SMALL.latent_channels, 2, 3, 4), jnp.float32)
    made, wanted = (jax.make_jaxpr(f)(vae, latents) for f in (level_by_level, whole))
    assert made.out_avals[0].shape == (1, 3, 5, 24, 32)
    assert str(made) == str(wanted)


@pytest.mark.skipif(missing(TARGETS["v5e"]) is not None, reason="libtpu is not installed")
@pytest.mark.compiled
@pytest.mark.usefixtures("optimized")
def test_the_compiler_has_a_cost_for_a_level():
    last = len(levels(SMALL)) - 1
    found = respond(LevelRequest(config=SMALL, target="v5e", tile=(1, 4, 4), level=last))
    assert found["cycles"] > 0
    assert found["cpu_seconds"] > 0
