"""The steps of a sampling run, compiled for a device that need not be present: the compiler's own count of memory.

It includes everything: packed weights, lists, residual cache with its factors and log-sum-exps, rotary and modulation tables, and
the buffers between layers. Nothing is loaded; arguments are shapes.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from pallas_kernels import deviceless, targets
from pallas_kernels.targets import Target
from qsjax.dit import DiT, DiTConfig
from qsjax.dit.abstract import abstract_dit
from qsjax.dit.halves import keep
from qsjax.parallel import check_heads, make_mesh, weight_specs
from qsjax.quant import Recipe, arrange
from qsjax.sample import SamplingPlan, denoise_step, empty_cache, prepare, schedule, sharded_step
from qsjax.sample.sharded import cache_specs
from qsjax.sample.state import Cache
from qsjax.sample.steps import CACHE
from qsjax.settings.video import TEXT_TOKENS
from qsjax.text import EncodedPrompt

_KINDS = {jax.memory.Space.Device: "device", jax.memory.Space.Host: "pinned_host"}


class CompiledStep(NamedTuple):
    """The compiler's report on one program.

    Attributes:
        peak_bytes: arguments, results that do not reuse an argument's buffer, and temporaries at their peak.
        argument_bytes: weights, cache, tables and latents.
        temporary_bytes: temporaries at their peak.
        host_bytes: host memory: a residual cache that is placed there.
        trace_seconds: seconds from Python to the compiler's input, on this machine; paid even if the program is in JAX's
            compilation cache.
        seconds: seconds to trace and compile, on this machine.
    """

    peak_bytes: int
    argument_bytes: int
    temporary_bytes: int
    host_bytes: int
    trace_seconds: float
    seconds: float


def compile_steps(
    config: DiTConfig,
    recipe: Recipe,
    plan: SamplingPlan,
    target: Target,
    *,
    latents: tuple[int, int, int],
    text_tokens: int = TEXT_TOKENS,
    clipped: bool = True,
    chips: int = 1,
    shard_weights: bool = False,
) -> dict[str, CompiledStep]:
    """Compile one step of each kind that the plan has, bfloat16, one prompt, modulation weights released.

    Args:
        config: sizes of the transformer.
        recipe: quantization recipe of its weights.
        plan: the sampling plan.
        target: the device to compile for.
        latents: frames, height and width of the latents.
        text_tokens: tokens of the prompt.
        clipped: whether quantized activations have a learned clip.
        chips: number of chips that share the tokens; the result is for one of them.
        shard_weights: shard the weights of the blocks over the chips, too.

    Raises:
        ModuleNotFoundError: the target's compiler is not installed.
    """
    shapes = StepShapes(
        config, recipe, plan, target, latents=latents, text_tokens=text_tokens, clipped=clipped,
        chips=chips, shard_weights=shard_weights,
    )  # fmt: skip
    return {kind: shapes.compile(kind) for kind in dict.fromkeys(plan.kinds)}


class StepShapes:
    """The arguments of a run's steps as shapes. Arguments and errors are those of `compile_steps`."""

    def __init__(
        self,
        config: DiTConfig,
        recipe: Recipe,
        plan: SamplingPlan,
        target: Target,
        *,
        latents: tuple[int, int, int],
        text_tokens: int = TEXT_TOKENS,
        clipped: bool = True,
        chips: int = 1,
        shard_weights: bool = False,
    ) -> None:
        self.plan, self.target = plan, target
        self.chips, self.shard_weights = chips, shard_weights
        dtype = jnp.dtype(jnp.bfloat16)

        def arranged() -> DiT:
            stored = abstract_dit(config, recipe=recipe, clipped=clipped)
            return nnx.eval_shape(partial(arrange, backend=target.backend), stored)

        self.dit = keep(arranged(), "steps")
        self.latents = jax.ShapeDtypeStruct((1, config.in_channels, *latents), jnp.float32)
        shapes: Any = EncodedPrompt._make  # shapes stand for arrays
        text = shapes(
            (
                jax.ShapeDtypeStruct((1, text_tokens, config.text_dim), dtype),
                jax.ShapeDtypeStruct((1, text_tokens), jnp.bool_),
                jax.ShapeDtypeStruct((1, config.pooled_dim), dtype),
            )
        )
        negative = text if plan.uses_negative else None
        self.conditions = jax.eval_shape(partial(prepare, plan), arranged(), text, negative)
        self.step = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], schedule(plan)))

    def trace(
        self, kind: str, step: Callable[..., tuple[Array, Cache | None]] | None = None
    ) -> jax.stages.Traced:
        """A step, traced for the device.

        Args:
            kind: of the step.
            step: in place of `denoise_step(plan, kind, ...)`, with the same arguments after those two; on one chip.
        """
        plan = self.plan
        cache, spaces = None, []
        if plan.remembers:
            make = partial(empty_cache, plan, latents=self.latents.shape)
            with targets.assumed(self.target):
                traced = jax.jit(lambda dit, known: make(dit, conditions=known)).trace(
                    self.dit, self.conditions
                )
            cache = traced.out_info
            spaces = [leaf.memory_space for leaf in traced.jaxpr.out_avals]
        devices = deviceless.devices(self.target, self.chips)
        mesh = make_mesh(devices)
        if plan.sparse is not None:
            check_heads(mesh, self.dit.config.num_heads)
        whole = partial(jax.tree.map, lambda _: PartitionSpec())
        weights = weight_specs(self.dit, self.chips) if self.shard_weights else whole(self.dit)
        function = step or partial(denoise_step, plan, kind)
        if self.chips > 1:
            function = sharded_step(plan, kind, mesh, cache, weights)
        arguments: Any = (self.dit, self.latents, cache, self.step, self.conditions)
        cache_spec = cache_specs(cache) if self.chips > 1 else whole(cache)
        specs = (weights, whole(self.latents), cache_spec, *map(whole, arguments[3:]))
        flat = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
        before = len(jax.tree.leaves((self.dit, self.latents)))
        kinds = ["device"] * before + [_KINDS[space] for space in spaces]
        kinds += ["device"] * (len(flat) - len(kinds))
        leaves, structure = jax.tree.flatten(arguments)
        placed = [
            jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec, memory_kind=memory)
            )
            for leaf, spec, memory in zip(leaves, flat, kinds, strict=True)
        ]
        arguments = jax.tree.unflatten(structure, placed)
        with targets.assumed(self.target):
            return jax.jit(function, donate_argnums=CACHE).trace(*arguments)

    def compile(self, kind: str) -> CompiledStep:
        """Compile a step, and read what the compiler says of its memory."""
        start = time.perf_counter()
        with targets.assumed(self.target):
            lowered = self.trace(kind).lower()
        traced = time.perf_counter()
        memory: Any = lowered.compile().memory_analysis()
        peak = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
        return CompiledStep(
            peak,
            memory.argument_size_in_bytes,
            memory.temp_size_in_bytes,
            memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
            traced - start,
            time.perf_counter() - start,
        )
