"""The bundled model from PyTorch files to a quantized checkpoint, loaded, sampled, and counted in bytes."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quant_models import distance

import qsjax
from convert import Sources, convert
from convert.bundled import tiny_model_directory
from qsjax.checkpoint import Manifest
from qsjax.dit import load_dit
from qsjax.errors import CheckpointError, InputError
from qsjax.quant import QuantizedLinear, device_bytes
from qsjax.text import EncodedPrompt

SIZE = {"frames": 5, "height": 16, "width": 24, "steps": 2}


RECIPE = """
rotation = "block"
[blocks]
weights = 8
activations = 8
[modulation]
weights = 6
[refiner]
weights = 4
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What samples, quantized with rotations to 8, 6 and 4 bits."""
    folder, source = tmp_path_factory.mktemp("quantized"), tiny_model_directory()
    (folder / "mixed.toml").write_text(RECIPE)
    parts = Sources(transformer=source / "transformer", vae=source / "vae")
    convert(parts, folder / "quarot", quantize=f"quarot-{folder / 'mixed.toml'}", progress=False)
    return folder / "quarot"


@pytest.fixture(scope="module")
def encoded():
    random = np.random.default_rng(1)
    text, pooled = (
        jnp.asarray(random.standard_normal(s), jnp.float32) for s in ((1, 9, 64), (1, 64))
    )
    return EncodedPrompt(text, jnp.ones((1, 9), bool), pooled)


# Compiling is all the time there is.
@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def velocity(dit, latents, prompt):
    one = latents.shape[0]
    return dit(
        latents,
        jnp.full(one, 800.0),
        prompt.text,
        prompt.mask,
        prompt.pooled,
        jnp.full(one, 6000.0),
    )


def test_velocity_is_near_that_of_the_float_model(checkpoint, tiny_checkpoint, encoded):
    shape = (1, 16, 3, 8, 8)
    latents = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    found, expected = (
        velocity(load_dit(path, dtype=jnp.float32), latents, encoded)
        for path in (checkpoint, tiny_checkpoint)
    )
    # 0.15 for this prompt of noise, most of it from the refiner's 4 bits; a rotation left out gives 0.35 and more.
    assert 0.01 < distance(found, expected) < 0.25


def test_samples_without_its_modulation_weights_in_memory(checkpoint, encoded):
    pipeline = qsjax.Pipeline.from_checkpoint(checkpoint, modulation="released", progress=False)
    latents = pipeline.sample(encoded, settings=pipeline.resolve(**SIZE, true_cfg=1.0))
    assert np.isfinite(latents).all()
    assert latents.std() > 0.1
    assert not hasattr(pipeline.dit.single_blocks, "modulation")


def test_bytes_on_disk_are_in_the_manifest(checkpoint):
    manifest = Manifest.read(checkpoint)
    component = manifest.data["components"]["dit"]
    specifications = {leaf: spec for _, leaf, spec in manifest.leaves("dit")}
    sizes = {
        leaf: int(np.prod(spec["shape"])) * jnp.dtype(spec["dtype"]).itemsize
        for leaf, spec in specifications.items()
    }
    assert component["bytes"] == sum(sizes.values())
    packed = {leaf: size for leaf, size in sizes.items() if leaf.endswith(".packed")}
    assert {spec["dtype"] for leaf, spec in specifications.items() if leaf in packed} == {"int8"}
    assert sizes["double_blocks.1.img.qkv.packed"] == 128 * 384
    assert sizes["single_blocks.0.linear2.mlp.packed"] == 512 * 128
    assert sizes["refiner.blocks.0.qkv.packed"] == 128 * 384 // 2  # 4 bits
    modulation = [sizes[f"single_blocks.0.modulation.{name}"] for name in ("packed", "low_bits")]
    assert sum(modulation) == 128 * 384 * 3 // 4  # 6 bits


def test_bytes_in_memory_are_those_on_disk_and_what_stays_in_floats(checkpoint):
    directory = checkpoint
    dit = load_dit(directory, dtype=jnp.bfloat16)
    manifest = Manifest.read(directory)
    # The source is bfloat16, so that nothing changes its size on the way.
    assert device_bytes(dit) == manifest.data["components"]["dit"]["bytes"]
    assert dit.dtype == jnp.bfloat16
    for _, linear in nnx.iter_modules(dit):
        if isinstance(linear, QuantizedLinear):
            assert linear.dtype == jnp.bfloat16
            assert linear.scale.get_value().dtype == jnp.float32
            assert linear.packed.get_value().dtype == jnp.int8


def test_halves_are_the_whole(checkpoint):
    def leaves(part):
        state = nnx.state(load_dit(checkpoint, dtype=jnp.float32, part=part))
        return {path: value.get_value() for path, value in nnx.to_flat_state(state)}

    whole, modulation, steps = map(leaves, ("whole", "modulation", "steps"))
    assert not modulation.keys() & steps.keys()
    assert whole.keys() == modulation.keys() | steps.keys()
    for path, value in (modulation | steps).items():
        np.testing.assert_array_equal(value, whole[path])
    assert ("double_blocks", "img", "modulation", "packed") in modulation
    assert ("refiner", "time_embed", "fc1", "packed") in steps


def test_refusals(checkpoint, tmp_path):
    with pytest.raises(InputError, match="no part 'step'; did you mean 'steps'"):
        load_dit(checkpoint, part="step")
    with pytest.raises(InputError, match="no modulation 'release'; did you mean 'released'"):
        qsjax.Pipeline.from_checkpoint(checkpoint, modulation="release")
    manifest = Manifest.read(checkpoint)
    recipe = manifest.data["components"]["dit"]["recipe"]
    for changed, message in (
        (recipe | {"rotation": "none"}, r"surplus double_blocks\.0\.img\.qkv\.rotation"),
        (recipe | {"rotation": "spiral"}, "no rotation 'spiral'"),
    ):
        manifest.data["components"]["dit"]["recipe"] = changed
        (tmp_path / "manifest.json").write_text(json.dumps(manifest.data))
        with pytest.raises(CheckpointError, match=message):
            load_dit(tmp_path)
