"""The programs of calibration for a block of HunyuanVideo, with arguments that have shapes and no values."""

import jax
import jax.numpy as jnp
from flax import nnx

from qsjax.calibration import METHODS
from qsjax.calibration.blocks import KINDS, Tokens
from qsjax.calibration.programs import Programs, Sample, Shared
from qsjax.calibration.rounding import _stages
from qsjax.calibration.trajectories import Moments
from qsjax.calibration.tuning import BATCH, Tuned, Tuner
from qsjax.calibration.variables import effective_recipe, initial, start_rotations, used_transforms
from qsjax.dit import DiTConfig
from qsjax.dit.abstract import abstract_dit
from qsjax.params import parameters
from qsjax.quant import SITES, Recipe
from qsjax.quant.feedback import round_with_feedback
from qsjax.quant.sites import channels
from qsjax.quant.tuned import iterate_quantized, with_tuned_layers

CONFIG = DiTConfig.preset("hunyuan-video-13b")
TEXT = 256


def spec(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def program(name, kind, video):
    """A function with everything fixed that is static, and its abstract arguments.

    Args:
        name: a method of `Programs`, or "grams" and the number of a stage of layers.
        kind: of the block.
        video: number of video tokens.
    """
    method = METHODS["msad"].sized(video)
    recipe = effective_recipe(Recipe.load("w4a8"), method)
    programs, width = Programs(kind, recipe, method, CONFIG, 300, 16), CONFIG.hidden_size
    block = nnx.eval_shape(
        lambda: KINDS[kind](CONFIG, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    )
    leaves = {leaf: spec(*value.shape) for leaf, value in parameters(block).items()}
    outputs = {site.layer: leaves[f"{site.linear}.kernel"].shape[1] for site in SITES[kind]}
    inputs = {site.layer: channels(site, width, CONFIG.mlp_size) for site in SITES[kind]}
    of_transform = {site.transform: inputs[site.layer] for site in SITES[kind]}
    ones = {key: jnp.ones(of_transform[key]) for key in used_transforms(kind, recipe)}
    variables = initial(kind, recipe, method, CONFIG, ones, outputs)
    starts = start_rotations(kind, recipe, CONFIG)

    tokens = Tokens(spec(1, video, width), spec(1, TEXT, width))
    mask, rows = spec(1, TEXT, dtype=bool), spec(1, method.local_rows, dtype=jnp.int32)
    target = tokens if name in ("step", "measure") else None
    sample = Sample(tokens, tokens, spec(1, width), mask, rows, target)
    tables = Shared(*2 * [spec(video, CONFIG.head_dim, dtype=jnp.float32)])
    rounded = {
        leaf.removesuffix(".kernel"): spec(*value.shape, dtype=jnp.float32)
        for leaf, value in leaves.items()
        if leaf.endswith("modulation.kernel")
    } | {layer: spec(inputs[layer], outputs[layer], dtype=jnp.float32) for layer in inputs}

    function = getattr(Programs, name.rstrip("0123456789")).__wrapped__
    given = (variables, leaves, starts, sample, tables)
    if name == "observe":
        arguments = (leaves, sample, tables)
    elif name == "step":
        state = jax.eval_shape(programs.optimizer.init, variables)
        arguments = (variables, state, *given[1:], spec(3, dtype=jnp.float32))
    elif name.startswith("grams"):
        stages, number = _stages(kind), int(name.removeprefix("grams"))
        layers = tuple(site.layer for site in stages[number])
        later = {site.layer for stage in stages[number:] for site in stage}
        before = {layer: kernel for layer, kernel in rounded.items() if layer not in later}
        return lambda *a: function(programs, layers, *a), (*given, before)
    else:
        arguments = (*given, rounded)
    return lambda *a: function(programs, *a), arguments


def rounding(rows, columns):
    """`round_with_feedback` of a whole layer to 4 bits, and its abstract arguments."""
    shapes = ((rows, columns), (rows, rows), (1, columns))
    return lambda *a: round_with_feedback(*a, 4), [spec(*s, dtype=jnp.float32) for s in shapes]


def tuning(latents, kept="inputs"):
    """A step of tuning end to end in W4A8, and its abstract arguments.

    Args:
        latents: frames, height and width.
        kept: of the blocks, for the backward pass.
    """
    dit = abstract_dit(CONFIG, recipe=Recipe.load("w4a8"), clipped=True)
    layers = tuple(f"{path}." for path, *_ in iterate_quantized(dit))
    leaves = {n: v.shape for n, v in parameters(dit).items() if n.startswith(layers)}

    def every(part):
        found = {name: shape for name, shape in leaves.items() if name.endswith(f".{part}")}
        return {name: spec(*shape, dtype=jnp.float32) for name, shape in found.items()}

    tuner, tuned = Tuner(150, kept=kept), Tuned(every("scale"), every("bias"), every("clip"))
    moments = Moments(
        latents=spec(BATCH, CONFIG.in_channels, *latents, dtype=jnp.float32),
        timestep=spec(BATCH, dtype=jnp.float32),
        text=spec(BATCH, TEXT, CONFIG.text_dim),
        mask=spec(BATCH, TEXT, dtype=bool),
        pooled=spec(BATCH, CONFIG.pooled_dim),
        guidance=spec(BATCH, dtype=jnp.float32),
        velocity=spec(BATCH, CONFIG.in_channels, *latents, dtype=jnp.float32),
    )
    state = jax.eval_shape(tuner.optimizer.init, tuned)
    student = nnx.eval_shape(with_tuned_layers, dit)
    return lambda *a: Tuner.step.__wrapped__(tuner, *a), (tuned, state, student, moments)
