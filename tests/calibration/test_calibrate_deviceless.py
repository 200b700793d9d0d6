"""A training step of a real block, compiled for a v5e that is not there: it fits, and the plan knows how well."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pallas_kernels.deviceless import compile_for, missing
from pallas_kernels.targets import TARGETS
from qsjax.budget import CalibrationPlan
from qsjax.budget.size import Size
from qsjax.calibration import METHODS
from qsjax.calibration.blocks import KINDS, Tokens
from qsjax.calibration.programs import Programs, Sample, Shared
from qsjax.calibration.variables import effective_recipe, initial, start_rotations, used_transforms
from qsjax.dit import DiTConfig
from qsjax.params import parameters
from qsjax.quant import SITES, Recipe
from qsjax.quant.sites import channels

CONFIG = DiTConfig.preset("hunyuan-video-13b")
MEMORY = 16e9
VIDEO, TEXT = 8192, 256


def spec(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def step_of(kind):
    """`Programs.step` with everything fixed that is static, and its abstract arguments."""
    method = METHODS["msad"].sized(VIDEO)
    recipe = effective_recipe(Recipe.load("w4a8"), method)
    programs, width = Programs(kind, recipe, method, CONFIG, 300, 16), CONFIG.hidden_size
    block = nnx.eval_shape(
        lambda: KINDS[kind](CONFIG, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    )
    leaves = {name: spec(*leaf.shape) for name, leaf in parameters(block).items()}
    outputs = {site.layer: leaves[f"{site.linear}.kernel"].shape[1] for site in SITES[kind]}
    inputs = {site.transform: channels(site, width, CONFIG.mlp_size) for site in SITES[kind]}

    ones = {name: jnp.ones(inputs[name]) for name in used_transforms(kind, recipe)}
    variables = initial(kind, recipe, method, CONFIG, ones, outputs)
    tokens = Tokens(spec(1, VIDEO, width), spec(1, TEXT, width))
    mask, rows = spec(1, TEXT, dtype=bool), spec(1, method.local_rows, dtype=jnp.int32)
    tables = Shared(*2 * [spec(VIDEO, CONFIG.head_dim, dtype=jnp.float32)])
    return lambda *given: Programs.step.__wrapped__(programs, *given), (
        variables,
        jax.eval_shape(programs.optimizer.init, variables),
        leaves,
        start_rotations(kind, recipe, CONFIG),
        Sample(tokens, tokens, spec(1, width), mask, rows, tokens),
        tables,
        spec(3, dtype=jnp.float32),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_real_block_has_consistent_shapes_and_dtypes(kind):
    """Bfloat16 activations, float32 transforms, more tokens than are taken at once."""
    function, (variables, *rest) = step_of(kind)
    updated, _, figures = jax.eval_shape(function, variables, *rest)
    assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, variables)
    assert {figure.dtype for figure in figures} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.skipif(missing(TARGETS["v5e"]) is not None, reason="libtpu is not installed")
def test_a_single_block_fits_a_v5e_as_planned():
    function, arguments = step_of("single_blocks")
    memory = compile_for(TARGETS["v5e"], function, *arguments).memory_analysis()
    found = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert found < MEMORY
    size = Size(frames=61, height=256, width=512, video_tokens=VIDEO, text_tokens=TEXT)
    planned = sum(CalibrationPlan(dit=CONFIG, size=size).step_bytes("single_blocks").values())
    assert 0.75 < planned / found < 1.25, (planned, found)
