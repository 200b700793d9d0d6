"""One block: what is packed computes what was trained, and without quantization what the float block computes."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calibration.calibration_models import CONFIG, random_dit
from flax import nnx
from tolerances import FLOAT32_NETWORK

from qsjax.calibration import METHODS
from qsjax.calibration.attention import attention
from qsjax.calibration.blocks import (
    KINDS,
    Tokens,
    float_block,
    float_queries_and_keys,
    frame_divergence,
    modulation_rows,
    run_block,
    squared_error,
)
from qsjax.calibration.boundary import Boundary
from qsjax.calibration.inputs import Inputs, observe
from qsjax.calibration.measure import measure
from qsjax.calibration.module import ModuleSource, filled
from qsjax.calibration.packed import quantized_leaves
from qsjax.calibration.programs import Programs, Sample, Shared
from qsjax.calibration.rounding import round_block
from qsjax.calibration.variables import effective_recipe, initial, start_rotations
from qsjax.dit import DiT
from qsjax.dit.blocks import Context
from qsjax.dit.rope import rope_tables
from qsjax.quant import SITES, Precision, Recipe, with_quantized_layers

W4A8 = Recipe.load("w4a8")
FLOATING = Precision(weights=16)
# Each compiles programs of its own, so that some have two of the properties.
RECIPES = {
    "w4a8": W4A8,
    "w6a6": Recipe.load("w6a6"),
    "w4a16 and groups": replace(Recipe.load("w4a16"), modulation=Precision(weights=4, group=12)),
    "w3a8 and kronecker": replace(
        W4A8,
        blocks=Precision(weights=3, activations=8),
        rotation="kronecker",
        rotation_size=12,
    ),
}


@pytest.fixture(scope="module")
def dit():
    return random_dit()


@pytest.fixture(scope="module")
def given():
    """A sample of 4 x 3 x 4 video tokens and 5 text tokens, the last two of them padding."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    width = CONFIG.hidden_size
    tokens = Tokens(normal(1, 48, width), normal(1, 5, width))
    mask = jnp.asarray(np.arange(5)[None] < 3)
    rows = jnp.asarray([[1, 7, 30]], jnp.int32)
    sample = Sample(tokens, tokens, normal(1, width), mask, rows)
    return sample, Shared(*map(jnp.asarray, rope_tables(CONFIG, (4, 3, 4))))


def perturbed(learned):
    """Variables as after training: no smoothing at 1, no rotation at its Hadamard, no clip at its start."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(
            np.asarray(leaf) + 0.3 * random.standard_normal(leaf.shape), jnp.float32
        ),
        learned,
    )


def prepared(kind, recipe, method, dit):
    recipe = effective_recipe(recipe, method)
    leaves = {name: jnp.asarray(leaf) for name, leaf in ModuleSource(dit).leaves(kind, 0).items()}
    outputs = {site.layer: leaves[f"{site.linear}.kernel"].shape[1] for site in SITES[kind]}
    mlp = {"gelu": CONFIG.mlp_size}
    ones = {
        site.transform: jnp.ones(mlp.get(site.source, CONFIG.hidden_size)) for site in SITES[kind]
    }
    learned = initial(kind, recipe, method, CONFIG, ones if recipe.smoothing else None, outputs)
    programs = Programs(kind, recipe, method.sized(48), CONFIG, 10, 4)
    return programs, leaves, perturbed(learned), start_rotations(kind, recipe, CONFIG)


@cache
def abstract_dit(recipe, clipped):
    """The shapes of a quantized DiT; both kinds of block are taken from it."""
    return nnx.eval_shape(
        lambda: with_quantized_layers(DiT(CONFIG, rngs=nnx.Rngs(0)), recipe, clipped=clipped)
    )


def packed_block(programs, leaves, dit, method):
    kind = programs.kind
    blocks = filled(
        getattr(abstract_dit(programs.recipe, method.learn_clips), kind),
        getattr(dit, kind),
        {name: np.stack([leaf] * 2) for name, leaf in leaves.items()},
    )
    graph, state = nnx.split(blocks)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], state))


def moved(ours, theirs):
    """Which tokens differ in more than a hundredth of their values, [B, L]."""
    close = np.abs(np.asarray(ours - theirs)) < FLOAT32_NETWORK * np.abs(theirs).max()
    return close.mean(axis=-1) < 0.99


def alone(sample, shared):
    """One sample as the inputs of a block."""
    boundary = Boundary([np.asarray(part).view(np.uint32) for part in sample.tokens], np.float32)
    outputs = Boundary([np.zeros_like(part) for part in boundary.parts], np.float32)
    active = sample.active
    return Inputs(boundary, boundary, active, active, sample.mask, shared, outputs)


# Bits, groups and kinds of rotation know nothing of the kind of block: the smaller one is enough for them.
@pytest.mark.parametrize(
    ("name", "method", "rounding", "kind"),
    [
        *(("w4a8", "msad", "gptq", kind) for kind in KINDS),
        ("w4a8", "msad", "nearest", "single_blocks"),
        ("w4a8", "qvdit", "nearest", "single_blocks"),
        *(
            pytest.param("w4a8", method, "nearest", "double_blocks", marks=pytest.mark.whole)
            for method in ("msad", "qvdit")
        ),
        *((name, "msad", "nearest", "single_blocks") for name in RECIPES if name != "w4a8"),
        ("w4a16 and groups", "gptq", "gptq", "single_blocks"),
    ],
)
def test_packed_integers_compute_what_was_trained(kind, name, method, rounding, dit, given):
    method, (sample, shared) = replace(METHODS[method], rounding=rounding), given
    programs, leaves, learned, starts = prepared(kind, RECIPES[name], method, dit)
    rounded, kernels = round_block(programs, leaves, learned, alone(sample, shared))
    expected = programs.run_quantized(learned, leaves, starts, sample, shared, kernels)
    packed = quantized_leaves(programs, leaves, learned, rounded)
    block = packed_block(programs, packed, dit, method)

    @jax.jit
    def run(block, sample):
        video = jnp.ones((1, 48), bool)
        context = Context(*shared, jnp.concatenate([video, sample.mask], axis=1), attention)
        rows = modulation_rows(block, sample.active)
        return run_block(block, sample.tokens, rows, context)[0]

    def nudged(seed):
        random = np.random.default_rng(seed)
        given = jax.tree.map(
            lambda x: x * jnp.asarray(1 + 3e-7 * random.standard_normal(x.shape), jnp.float32),
            sample.student_tokens,
        )
        return programs.run_quantized(
            learned, leaves, starts, sample._replace(student_tokens=given), shared, kernels
        )

    for part, (ours, theirs) in enumerate(zip(run(block, sample), expected, strict=True)):
        np.testing.assert_allclose(ours, theirs, atol=0.02 * float(np.abs(theirs).max()))
        # A value halfway between two integers may be rounded to either, and moves all of its token by a step of the grid;
        # a key or value that does moves every token a little. Such tokens move when their own input is nudged by
        # rounding errors; no other may differ.
        if (differs := moved(ours, theirs)).any():
            assert differs.mean() < 0.5
            tied = [moved(nudged(seed)[part], theirs) for seed in range(6)]
            assert not (differs & ~np.any(tied, axis=0)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_keep_the_function(kind, dit, given):
    """All transforms at work, 16 bits everywhere but nominally in the weights, which are float32 here."""
    sample, shared = given
    method = replace(METHODS["msad"], learn_clips=False)
    programs, leaves, learned, starts = prepared(kind, W4A8, method, dit)

    class Unrounded(Recipe):
        """Quantized on paper, so that transforms are used; floating in every layer."""

        def precision(self, path):
            return FLOATING

    floating = Unrounded(**{name: getattr(W4A8, name) for name in W4A8.__dataclass_fields__})
    programs = Programs(kind, floating, programs.method, CONFIG, 10, 4)
    found = programs.run_quantized(learned, leaves, starts, sample, shared)
    context = Context(
        *shared, jnp.concatenate([jnp.ones((1, 48), bool), sample.mask], axis=1), attention
    )

    @jax.jit
    def run(leaves):
        block = float_block(kind, leaves, CONFIG)
        rows = modulation_rows(block, sample.active)
        return run_block(block, sample.tokens, rows, context)[0]

    for ours, theirs in zip(found, run(leaves), strict=True):
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=FLOAT32_NETWORK)


def test_frame_divergence_is_zero_for_equal_frames_and_positive_otherwise():
    random = np.random.default_rng(0)
    one, other = (jnp.asarray(random.standard_normal((1, 12, 5)), jnp.float32) for _ in range(2))
    assert float(frame_divergence(one, one, 4)) == 0
    assert float(frame_divergence(one, other, 4)) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gram_matrices_are_of_what_the_matmul_gets_without_padded_text(kind, dit, given):
    sample, shared = given
    programs, leaves, learned, starts = prepared(kind, W4A8, METHODS["msad"], dit)
    layers = tuple(site.layer for site in SITES[kind])
    found = programs.grams(layers, learned, leaves, starts, sample, shared, {})
    txt = sample.tokens.txt.at[:, 3:].multiply(-7)
    padding = sample._replace(student_tokens=sample.tokens._replace(txt=txt))
    other = programs.grams(layers, learned, leaves, starts, padding, shared, {})
    counts = {"img": 48, "txt": 3}
    for site in SITES[kind]:
        gram = np.asarray(found[site.layer])
        np.testing.assert_allclose(gram, other[site.layer], rtol=1e-3, atol=1e-3 * gram.max())
        rank = np.linalg.matrix_rank(gram.astype(np.float64), tol=1e-4 * gram.max())
        assert 0 < rank <= counts.get(site.layer.split(".")[0], 51)


def test_error_feedback_is_nearer_to_the_float_block(dit, given):
    """Of a double block, whose layers are more."""
    kind, (sample, shared) = "double_blocks", given
    method = replace(METHODS["gptq"], search_clips=False)
    programs, leaves, _, starts = prepared(kind, W4A8, method, dit)
    sample = sample._replace(target=programs.observe(leaves, sample, shared)[0])
    outputs = {site.layer: leaves[f"{site.linear}.kernel"].shape[1] for site in SITES[kind]}
    ones = {
        site.transform: jnp.ones(CONFIG.mlp_size if site.source == "gelu" else CONFIG.hidden_size)
        for site in SITES[kind]
    }
    learned = initial(kind, programs.recipe, method, CONFIG, ones, outputs)
    inputs = alone(sample, shared)
    observe(programs, leaves, inputs, 0)
    sample = inputs.sample(0, np.asarray(sample.rows))
    _, kernels = round_block(programs, leaves, learned, inputs)
    nearest = programs.measure(learned, leaves, starts, sample, shared, {})
    found = programs.measure(learned, leaves, starts, sample, shared, kernels)
    assert float(found.output) < 0.7 * float(nearest.output)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_and_keys_are_those_of_the_whole_block(kind, dit, given):
    sample, shared = given
    leaves = {name: jnp.asarray(leaf) for name, leaf in ModuleSource(dit).leaves(kind, 0).items()}
    valid = jnp.concatenate([jnp.ones((1, 48), bool), sample.mask], axis=1)
    context = Context(*shared, valid, attention)
    rows = modulation_rows(float_block(kind, leaves, CONFIG), sample.active)

    @jax.jit
    def both(tokens):
        block = float_block(kind, leaves, CONFIG)
        return (
            float_queries_and_keys(kind, leaves, CONFIG, tokens, rows, context),
            run_block(block, tokens, rows, context)[1],
        )

    found, expected = both(sample.tokens)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=FLOAT32_NETWORK)


def test_a_step_reports_the_terms_of_its_loss_as_they_are_measured(dit, given):
    sample, shared = given
    programs, leaves, learned, starts = prepared("single_blocks", W4A8, METHODS["local"], dit)
    sample = sample._replace(target=sample.tokens)
    state, ones = programs.optimizer.init(learned), jnp.ones(3, jnp.float32)
    found = programs.step(learned, state, leaves, starts, sample, shared, ones)[2]
    measured = programs.measure(learned, leaves, starts, sample, shared, {})
    assert min(measured) > 0
    np.testing.assert_allclose(found.output, measured.output, rtol=1e-4)
    np.testing.assert_allclose(found.rows, measured.rows, rtol=1e-4)
    assert found.pooled == found.shift == 0


def test_the_block_is_compared_with_the_output_that_was_observed(dit, given):
    sample, shared = given
    programs, leaves, learned, starts = prepared("single_blocks", W4A8, METHODS["local"], dit)
    inputs = alone(sample, shared)
    observe(programs, leaves, inputs, 0)
    found = inputs.sample(0, np.zeros((1, 1), np.int32)).target
    assert inputs.sample(0, None).target is None
    out = programs.run_quantized(learned, leaves, starts, sample, shared)
    expected = squared_error(out, found, sample.mask)
    measured = measure(programs, learned, starts, leaves, inputs, np.zeros((1, 1), np.int32))
    np.testing.assert_allclose(measured.output, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="has no target"):
        programs.measure(learned, leaves, starts, sample, shared, {})


def test_rows_are_of_video_tokens_even_where_text_gets_more_attention(dit, given, monkeypatch):
    sample, shared = given
    method = replace(METHODS["msad"], name="attention grows to the end", local_rows=4)
    programs, leaves, _, _ = prepared("single_blocks", W4A8, method, dit)
    monkeypatch.setattr(
        "qsjax.calibration.programs.saliency",
        lambda q, k, valid: jnp.arange(valid.shape[1], dtype=jnp.float32)[None],
    )
    _, rows = observe(programs, leaves, alone(sample, shared), 0)
    np.testing.assert_array_equal(rows, [[44, 45, 46, 47]])
