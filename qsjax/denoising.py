"""All steps of a run, one compiled program after the other, on one device or on a mesh."""

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from qsjax.dit import DiT
from qsjax.models import Models
from qsjax.parallel import replicated, weight_specs
from qsjax.progress import Progress
from qsjax.sample import (
    Conditions,
    SamplingPlan,
    StepResult,
    denoise,
    denoise_step,
    empty_cache,
    prepare,
    schedule,
    sharded_cache,
    sharded_prepare,
    sharded_step,
)
from qsjax.sample.loop import step_at
from qsjax.sample.steps import CACHE
from qsjax.settings import KINDS
from qsjax.text import EncodedPrompt


class Denoiser:
    """Programs of a model's steps, compiled when a plan and a size first need them.

    Args:
        models: of the checkpoint.
        mesh: of devices; None is the default device.
        progress: show a bar.
        add: is told the stage and when it began.

    Attributes:
        programs: by name, plan and shapes.
    """

    def __init__(
        self,
        models: Models,
        mesh: Mesh | None,
        *,
        progress: bool,
        add: Callable[[str, float], None],
    ) -> None:
        self._models, self._mesh, self._progress, self._add = models, mesh, progress, add
        self.programs: dict[Any, Any] = {}

    def __call__(
        self,
        plan: SamplingPlan,
        prompt: EncodedPrompt,
        negative: EncodedPrompt | None,
        latents: Float[Array, "B C T H W"] | np.ndarray,
    ) -> Generator[StepResult, None, None]:
        """The steps of a run, each when it is asked for.

        Args:
            plan: of the run.
            prompt, negative: encoded; `negative` where the plan uses one.
            latents: noise.
        """
        x = self._everywhere(jnp.asarray(latents, jnp.float32))
        prepared = self._prepare(plan, *self._everywhere((prompt, negative)))
        dit, numbers = self._models.dit, self._everywhere(schedule(plan))
        cache: Any = None
        if plan.remembers and self._mesh is not None:
            cache = sharded_cache(plan, self._mesh, dit, x.shape, prepared)
        elif plan.remembers:
            make = self._compiled("cache", plan, partial(_cache, plan), dit, x, prepared)
            cache = make(dit, x, prepared)
        first = step_at(numbers, 0)
        programs = {}
        for kind in dict.fromkeys(plan.kinds):
            step: Any = partial(denoise_step, plan, kind)
            if self._mesh is not None:
                step = sharded_step(plan, kind, self._mesh, cache, weight_specs(dit))
            programs[kind] = self._compiled(kind, plan, step, dit, x, cache, first, prepared)
        results = denoise(plan, programs, dit, x, cache, prepared, numbers=numbers)
        del x, cache, first
        start = time.perf_counter()
        try:
            with Progress(plan.steps, "denoise", unit="step", enabled=self._progress) as bar:
                for result in results:
                    jax.block_until_ready((result.latents, result.cache))
                    bar.advance(1, **({} if plan.sparse is None else {"kind": result.kind}))
                    yield result
        finally:
            self._add("denoise", start)

    def _prepare(
        self, plan: SamplingPlan, prompt: EncodedPrompt, negative: EncodedPrompt | None
    ) -> Conditions:
        """What the steps need of a prompt; released weights are gone when this returns."""
        dit, function = self._models.modulation, partial(prepare, plan)
        if self._mesh is not None:
            function = sharded_prepare(plan, self._mesh, weight_specs(dit))
        run = self._compiled("prepare", plan, function, dit, prompt, negative)
        return jax.block_until_ready(run(dit, prompt, negative))

    def _compiled(
        self, name: str, plan: SamplingPlan, function: Callable[..., Any], *given: Any
    ) -> Callable[..., Any]:
        """The program of a function for these shapes, compiled when it is first asked for; that time is kept apart.

        Steps overwrite their cache in place.
        """
        key = (name, plan, *(leaf.shape for leaf in jax.tree.leaves(given[1:])))
        if key not in self.programs:
            start = time.perf_counter()
            jitted = jax.jit(function, donate_argnums=CACHE if name in KINDS else ())
            self.programs[key] = jitted.lower(*given).compile()
            self._add("compile", start)
        return self.programs[key]

    def _everywhere(self, tree: Any) -> Any:
        """Arrays whole on every device of the mesh, if there is one."""
        return tree if self._mesh is None else replicated(self._mesh, tree)


def _cache(plan: SamplingPlan, dit: DiT, latents: Array, conditions: Conditions) -> Any:
    """Buffers of the cache, before the first refresh."""
    return empty_cache(plan, dit, latents.shape, conditions)
