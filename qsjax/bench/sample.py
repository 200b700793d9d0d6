"""A whole sampling run with sparse attention against the same run with dense attention, on random weights of middle size."""

import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qsjax.budget.flops import StepFlops
from qsjax.budget.size import Size
from qsjax.budget.steps import executed_density
from qsjax.dit import DiT, DiTConfig
from qsjax.dit.abstract import abstract_dit
from qsjax.progress import Progress
from qsjax.residual import Residual
from qsjax.sample import (
    SamplingPlan,
    SparsePlan,
    denoise,
    denoise_step,
    empty_cache,
    initial_noise,
    pattern_for,
    prepare,
    schedule,
)
from qsjax.sample.loop import step_at
from qsjax.sample.steps import CACHE
from qsjax.settings import KINDS, SPARSE
from qsjax.sparse import Sparsity
from qsjax.text import EncodedPrompt

CONFIG = DiTConfig(
    in_channels=16, out_channels=16, hidden_size=256, num_heads=4, num_double_blocks=1, num_single_blocks=2,
    num_refiner_blocks=1, mlp_ratio=4.0, patch_size=(1, 2, 2), rope_axes_dim=(16, 24, 24), rope_theta=256.0,
    text_dim=64, pooled_dim=64, guidance_embeds=True,
)  # fmt: skip
"""Four heads of 64; at 8,192 tokens attention is five sixths of the operations, as in HunyuanVideo at 720p."""
LATENTS = (1, 16, 8, 64, 64)
"""8 x 32 x 32 tokens."""
TEXT = 32
PLAN = SparsePlan(
    sparsity=Sparsity(mask="svg", density=0.15), residual=Residual(store="int8"), interval=5, dense_steps=1
)  # fmt: skip


def bench(
    sparse: SparsePlan = PLAN,
    *,
    steps: int = 50,
    latents: tuple[int, int, int, int, int] = LATENTS,
    progress: bool = True,
) -> dict[str, Any]:
    """Run both and report.

    Args:
        sparse: the plan that is compared with dense attention.
        steps: of both runs.
        latents: shape [B, C, T, H, W].
        progress: show bars.

    Returns:
        Seconds of both runs and of a step of each kind (median), compilation left out; their ratio, and the ratio of the
        operations, which bounds it where both run at the same rate.
    """
    dit, text = _random_dit(), _prompt(latents[0])
    plans = {"dense": SamplingPlan(steps=steps), "sparse": SamplingPlan(steps=steps, sparse=sparse)}
    times, outputs = {}, {}
    for name, plan in plans.items():
        times[name], outputs[name] = _run(plan, dit, latents, text, name, progress)
    pattern = pattern_for(sparse, CONFIG, latents, TEXT)
    size = Size(
        frames=0, height=0, width=0, video_tokens=pattern.layouts[0].tokens, text_tokens=TEXT
    )
    flops, density = StepFlops.count(CONFIG, size), executed_density(pattern)
    kinds = plans["sparse"].kinds
    operations = [flops.total(density if kind == SPARSE else 1.0) for kind in kinds]
    seconds = {name: sum(spent for _, spent in steps_taken) for name, steps_taken in times.items()}
    return {
        "tokens": size.tokens,
        "steps": steps,
        "density": round(density, 4),
        "kinds": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "gflop_a_dense_step": round(flops.total() / 1e9, 1),
        "seconds": {name: round(spent, 2) for name, spent in seconds.items()},
        "seconds_a_step": {
            **{"dense run": round(statistics.median(s for _, s in times["dense"]), 3)},
            **{
                kind: round(statistics.median(s for k, s in times["sparse"] if k == kind), 3)
                for kind in dict.fromkeys(kinds)
            },
        },
        "speedup": round(seconds["dense"] / seconds["sparse"], 3),
        "bound": round(steps * flops.total() / sum(operations), 3),
        "latent_error": float(
            np.square(outputs["sparse"] - outputs["dense"]).sum()
            / np.square(outputs["dense"]).sum()
        ),
    }


def text(report: dict[str, Any]) -> str:
    """The report as text."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report["kinds"].items())
    each = ", ".join(f"{name} {spent:.2f} s" for name, spent in report["seconds_a_step"].items())
    return (
        f"{report['tokens']} tokens, {report['gflop_a_dense_step']} GFLOP a dense step, {report['steps']} steps: {kinds};"
        f" a sparse step computes {100 * report['density']:.1f} % of the pairs\n"
        f"dense   {report['seconds']['dense']:.1f} s\n"
        f"sparse  {report['seconds']['sparse']:.1f} s, {report['speedup']:.2f} times faster; by operations at most"
        f" {report['bound']:.2f} times at the same rate\n"
        f"median step: {each}"
    )


def _run(
    plan: SamplingPlan,
    dit: DiT,
    latents: tuple[int, ...],
    prompt: EncodedPrompt,
    name: str,
    progress: bool,
) -> tuple[list[tuple[str, float]], np.ndarray]:
    conditions, numbers = jax.jit(partial(prepare, plan))(dit, prompt), schedule(plan)
    x, cache = initial_noise(0, latents), None
    if plan.remembers:
        cache = jax.jit(lambda dit, given: empty_cache(plan, dit, latents, given))(dit, conditions)

    def function(kind: str) -> jax.stages.Compiled:
        given = (dit, x, cache, step_at(numbers, 0), conditions)
        jitted = jax.jit(partial(denoise_step, plan, kind), donate_argnums=CACHE)
        return jitted.lower(*given).compile()

    programs = {kind: function(kind) for kind in KINDS if kind in plan.kinds}
    times = []
    with Progress(plan.steps, name, unit="step", enabled=progress) as bar:
        start = time.perf_counter()
        for result in denoise(plan, programs, dit, x, cache, conditions):
            x, _ = jax.block_until_ready((result.latents, result.cache))
            times.append((result.kind, time.perf_counter() - start))
            bar.advance()
            start = time.perf_counter()
    return times, np.asarray(x)


def _random_dit() -> DiT:
    """Small gaussian weights, modulation included: a new block of the DiT is the identity."""
    graph, state = nnx.split(abstract_dit(CONFIG, dtype=jnp.float32))
    random = np.random.default_rng(0)

    def value(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan = leaf.shape[-2] if len(leaf.shape) > 1 else 100
        return jnp.asarray(random.standard_normal(leaf.shape) / np.sqrt(fan), leaf.dtype)

    return nnx.merge(graph, jax.tree.map(value, state))


def _prompt(batch: int) -> EncodedPrompt:
    random = np.random.default_rng(1)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    mask = jnp.ones((batch, TEXT), jnp.bool_)
    return EncodedPrompt(
        normal(batch, TEXT, CONFIG.text_dim), mask, normal(batch, CONFIG.pooled_dim)
    )
