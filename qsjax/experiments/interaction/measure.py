"""The error of attention's output by quantization, by sparsity and by both (QuantSparse, section 1: 0.216, 0.134 and 0.685).

A float run with dense attention gives the latents of every step. From each of them all models compute one step, with dense and
with sparse attention; layers see what the layers before made of it. Nothing is remembered from step to step: lists are chosen
anew and there is no cache, as in the paper's measurement.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qsjax.dit import DiT
from qsjax.dit.blocks import Attention
from qsjax.pipeline import Pipeline
from qsjax.residual import Gains, Residual, empty_state, sparse_attention
from qsjax.sample import Conditions, SamplingPlan, initial_noise, prepare, schedule
from qsjax.sample.loop import step_at
from qsjax.sample.patterns import token_grid
from qsjax.sample.state import Memory
from qsjax.sample.step import Step, euler_step
from qsjax.settings.sparsity import Sparsity
from qsjax.sparse import Pattern

WAYS = ("quantization", "sparsity", "both")
"""Quantized weights with dense attention, float weights with sparse attention, and both."""


def squared_error(
    out: Float[Array, "N B L H D"], exact: Float[Array, "N B L H D"], valid: Bool[Array, "B L"]
) -> Float[Array, "N B"]:
    """Mean over the tokens that are there, heads and channels of ||out - exact||^2, by layer and clip."""
    off = jnp.square(out - exact).mean(axis=(3, 4))
    there = valid.astype(jnp.float32)[None]
    return (off * there).sum(axis=2) / there.sum(axis=2)


def attention_errors(
    pipeline: Pipeline,
    quantized: Mapping[str, tuple[DiT, Float[Array, "N H D D"]]],
    captions: Sequence[str],
    *,
    sparsity: Sparsity,
    seed: int = 0,
    **settings: Any,
) -> tuple[dict[str, Float[np.ndarray, "S W N B"]], Float[np.ndarray, "S N B"]]:
    """Mean squared errors of attention's output, before its projection.

    Args:
        pipeline: the full-precision model.
        quantized: quantized copies of its DiT, by name, each with the result of `to_float_channels`.
        captions: one a clip, all at once.
        sparsity: the mask.
        seed: of the noise; clip i has that of `seed + i`.
        **settings: fields of `Settings`; the checkpoint's where not given.

    Returns:
        Name -> errors by step, way of `WAYS`, layer and clip; and the mean square of the exact output itself.
    """
    chosen = pipeline.resolve(**settings)
    plan, dit, prompt = chosen.plan().dense, pipeline.dit, pipeline.encode(list(captions))
    x = initial_noise(seed, pipeline.latent_shape(chosen, len(captions)))
    pattern = Pattern(sparsity, token_grid(dit.config, x.shape), prompt.text.shape[1])
    outputs = jax.jit(partial(_outputs, plan, pattern))
    errors, turned = jax.jit(squared_error), jax.jit(partial(jnp.einsum, "nblhd,nhde->nblhe"))
    tokens = pattern.layouts[0].tokens
    valid = jnp.concatenate([jnp.ones((len(captions), tokens), bool), prompt.mask], axis=1)
    models = {"": dit, **{name: model for name, (model, _) in quantized.items()}}
    conditions = {
        name: jax.jit(partial(prepare, plan))(model, prompt) for name, model in models.items()
    }
    numbers, sizes = schedule(plan), []
    found: dict[str, list[list[np.ndarray]]] = {name: [] for name in quantized}
    for index in range(plan.steps):
        now = step_at(numbers, index)
        outs = {name: outputs(model, x, now, conditions[name]) for name, model in models.items()}
        after, exact, alone = outs.pop("")
        for name, (_, dense, both) in outs.items():
            basis = quantized[name][1]
            compared = (turned(dense, basis), alone, turned(both, basis))
            found[name].append([np.asarray(errors(out, exact, valid)) for out in compared])
        sizes.append(np.asarray(errors(exact, jnp.zeros_like(exact), valid)))
        x = after
    return {name: np.asarray(rows) for name, rows in found.items()}, np.stack(sizes)


def _outputs(
    plan: SamplingPlan, pattern: Pattern, dit: DiT, x: Array, now: Step, conditions: Conditions
) -> tuple[Array, Array, Array]:
    """The next latents of a step with dense attention, and attention's outputs of all layers, [N, B, L, H, D]: dense, then sparse."""
    alone = Residual(policy="none")

    def dense(q: Array, k: Array, v: Array, kv_valid: Array, state: Array) -> tuple[Array, Array]:
        out = dit.dense_attention(q, k, v, kv_valid, ())[0]
        return out, out.astype(state.dtype)

    def sparse(q: Array, k: Array, v: Array, kv_valid: Array, state: Array) -> tuple[Array, Array]:
        batch, _, heads, size = q.shape
        layer = empty_state(alone, pattern, batch, heads, size, q.dtype)
        layer = layer._replace(choice=pattern.choose(q, k, v, kv_valid))
        nothing = Gains(jnp.zeros(()), jnp.zeros(()))
        out, _ = sparse_attention(pattern, alone, nothing, q, k, v, kv_valid, layer)
        return out, out.astype(state.dtype)

    def run(attention: Attention[Array]) -> tuple[Array, Array]:
        config, text = dit.config, conditions.text.text.shape[1]
        length = pattern.layouts[0].tokens + text
        shape = (config.num_blocks, x.shape[0], length, config.num_heads, config.head_dim)

        def blocks(
            img: Array, txt: Array, context: Any, row: Any, memory: Memory
        ) -> tuple[Array, Memory]:
            img, slot = dit.through_blocks(img, txt, context, row, memory.slot)
            return img, memory._replace(slot=slot)

        cache = Memory(jnp.zeros(shape, jnp.float32)), Memory()
        after, (memory, _) = euler_step(
            plan, dit, x, now, conditions, cache, blocks=blocks, attention=attention
        )
        return after, memory.slot

    after, exact = run(dense)
    return after, exact, run(sparse)[1]
