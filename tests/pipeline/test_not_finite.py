"""A NaN anywhere ends the run with one sentence; no video is made of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from qsjax.errors import InputError, NotFiniteError
from qsjax.params import map_parameters
from qsjax.pipeline import Pipeline
from qsjax.settings import Settings, SparsePlan
from qsjax.settings.sparsity import Sparsity


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.tiny(progress=False)


SIZE = {"frames": 5, "height": 32, "width": 32, "steps": 3}


def _broken(pipeline: Pipeline, parameter: str, layer: int) -> object:
    def change(name: str, value: jnp.ndarray) -> jnp.ndarray:
        return value.at[layer].set(jnp.nan) if name == parameter else value

    return map_parameters(change, pipeline.dit)


SPARSE = SparsePlan(sparsity=Sparsity(density=0.5))


@pytest.mark.parametrize(
    ("parameter", "layer", "sparse", "where"),
    [
        ("double_blocks.img.qkv.kernel", 1, False, "before its attention of double block 1"),
        ("single_blocks.linear2.kernel", 0, SPARSE, "before its attention of single block 1"),
        ("final.linear.kernel", 0, False, "after the last block's attention"),
    ],
)
def test_a_broken_weight_is_found_in_its_layer(
    pipeline, monkeypatch, parameter, layer, sparse, where
):
    broken = _broken(pipeline, parameter, layer)
    monkeypatch.setattr(type(pipeline._models), "dit", property(lambda _: broken))
    with pytest.raises(
        NotFiniteError, match=f"step 1 of 3 made numbers that are not finite.*{where}"
    ):
        pipeline("a red circle", sparse=sparse, **SIZE)


def test_noise_and_prompts_are_looked_at(pipeline):
    prompt = pipeline.encode("a red circle")
    settings = pipeline.resolve(**SIZE)
    noise = np.zeros(pipeline.latent_shape(settings), np.float32)
    noise[0, 0, 0, 0, 0] = np.inf
    with pytest.raises(NotFiniteError, match="the latents to start from hold 1 of"):
        pipeline.generate(prompt, latents=noise, **SIZE)
    with pytest.raises(NotFiniteError, match="the encoding of the prompt hold 1 of"):
        pipeline.generate(prompt._replace(pooled=prompt.pooled.at[0, 0].set(jnp.nan)), **SIZE)
    large = prompt._replace(text=jnp.full_like(prompt.text, 3e38))
    with pytest.raises(NotFiniteError, match="step 1 of 3"):
        pipeline.generate(large, **SIZE)
    with pytest.raises(NotFiniteError, match="the latents hold"):
        pipeline.decode(jnp.asarray(noise))


@pytest.mark.parametrize(
    "changes",
    [
        {"shift": np.inf}, {"shift": np.nan}, {"guidance": np.inf}, {"true_cfg": np.inf},
        {"steps": 10**9}, {"frames": 4 * 10**9 + 1}, {"height": 16 * 10**6}, {"fps": -5},
    ],
)  # fmt: skip
def test_settings_are_finite_and_bounded(pipeline, changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        pipeline.resolve(**changes)


def test_a_video_larger_than_the_machine_is_refused(pipeline):
    with pytest.raises(InputError, match="does not fit this machine with"):
        pipeline("a red circle", frames=60_001, height=4096, width=4096)


def test_lists_of_too_many_blocks_are_refused(pipeline):
    sparse = SparsePlan(sparsity=Sparsity(block_q=1, block_kv=1))
    with pytest.raises(InputError, match="take larger blocks"):
        pipeline("a red circle", frames=129, height=512, width=512, sparse=sparse)


def test_the_settings_of_a_checkpoint_are_bounded():
    with pytest.raises(InputError, match="fps is 0"):
        Settings.stored({"fps": 0})
