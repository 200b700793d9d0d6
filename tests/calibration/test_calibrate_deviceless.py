"""The programs of calibration at real size, compiled for a v5e that is not there: they fit, and the plan knows how well."""

import jax
import jax.numpy as jnp
import pytest
from real_blocks import CONFIG, TEXT, program, rounding, tuning

from pallas_kernels.deviceless import compile_for, missing
from pallas_kernels.targets import TARGETS
from qsjax.budget import PlannedModel, Size
from qsjax.budget.calibration_memory import calibration_stages
from qsjax.calibration.blocks import KINDS

VIDEO = 10_240
"""Tokens of 61 x 320 x 512, the default."""
MEMORY = 15.5e9
needs_libtpu = pytest.mark.skipif(
    missing(TARGETS["v5e"]) is not None, reason="libtpu is not installed"
)


def compiled_bytes(function, arguments):
    found = compile_for(TARGETS["v5e"], function, *arguments).memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes
    return kept + found.temp_size_in_bytes - found.alias_size_in_bytes


@pytest.fixture(scope="module")
def planned():
    model = PlannedModel.find("hunyuan-13b")
    size = Size(frames=61, height=320, width=512, video_tokens=VIDEO, text_tokens=TEXT)
    found = calibration_stages(model, size, int(MEMORY))
    return {stage: sum(parts.values()) for stage, parts in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_real_block_has_consistent_shapes_and_dtypes(kind):
    """Bfloat16 activations, float32 transforms, more tokens than are taken at once."""
    function, (variables, *rest) = program("step", kind, VIDEO)
    updated, _, figures = jax.eval_shape(function, variables, *rest)
    assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, variables)
    assert {figure.dtype for figure in figures} == {jnp.dtype("float32")}


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("observe", "observing"),
        ("step", "training"),
        ("measure", "measuring"),
        ("compare_layers", "comparing layers"),
        ("grams3", "Gram matrices"),
    ],
)
def test_a_double_block_fits_a_v5e_as_planned(planned, name, stage):
    """The plan counts also what lies beside the program: weights that it does not read, sums of earlier samples."""
    found = compiled_bytes(*program(name, "double_blocks", VIDEO))
    assert found < MEMORY
    assert 0.5 * planned[stage] < found < 1.1 * planned[stage], (planned[stage], found)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(("name", "stage"), [("step", "training"), ("grams1", "Gram matrices")])
def test_a_single_block_takes_no_more(planned, name, stage):
    assert compiled_bytes(*program(name, "single_blocks", VIDEO)) < 1.1 * planned[stage]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(4 * CONFIG.hidden_size, CONFIG.hidden_size), (CONFIG.hidden_size, 7 * CONFIG.hidden_size)],
)
def test_rounding_the_largest_layers_fits_a_v5e(planned, rows, columns):
    """A layer alone; what else a block has on the device meanwhile is in the plan."""
    assert compiled_bytes(*rounding(rows, columns)) < planned["rounding"] < MEMORY


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_tuning_fits_a_v5e_as_planned(planned):
    found = compiled_bytes(*tuning((16, 40, 64), kept="inputs on the host"))
    assert found < MEMORY
    assert 0.75 < planned["tuning"] / found < 1.25, (planned["tuning"], found)
