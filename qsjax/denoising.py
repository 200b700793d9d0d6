"""All steps of a run, one compiled program after the other, on one device or on a mesh."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from qsjax.dit import DiT
from qsjax.errors import Cancelled
from qsjax.models import Models
from qsjax.parallel import replicated, weight_specs
from qsjax.progress import Progress
from qsjax.sample import (
    Conditions,
    Plan,
    empty_cache,
    prepare,
    schedule,
    sharded_cache,
    sharded_prepare,
    sharded_step,
    step_of_kind,
)
from qsjax.sample.sparse import KINDS
from qsjax.text import EncodedPrompt

Callback = Callable[[int, Array], bool | None]


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
        plan: Plan,
        prompt: EncodedPrompt,
        negative: EncodedPrompt | None,
        latents: Float[Array, "B C T H W"] | np.ndarray,
        callback: Callback | None,
    ) -> tuple[Float[Array, "B C T H W"], Any]:
        """Latents and cache behind the last step.

        Args:
            plan: of the run.
            prompt, negative: encoded; `negative` where the plan uses one.
            latents: noise.
            callback: called after each step with its number (from 1) and the latents; False cancels.

        Raises:
            Cancelled: the callback said so; carries the latents.
        """
        # The step donates its latents; a caller's array must stay his.
        x = self._everywhere(jnp.array(latents, jnp.float32, copy=True))
        prepared = self._prepare(plan, *self._everywhere((prompt, negative)))
        dit, steps, total = self._models.dit, self._everywhere(schedule(plan)), plan.steps
        cache: Any = None
        if plan.remembers and self._mesh is not None:
            cache = sharded_cache(plan, self._mesh, dit, x.shape, prepared)
        elif plan.remembers:
            make = self._compiled("cache", plan, partial(_cache, plan), dit, x, prepared)
            cache = make(dit, x, prepared)
        first = jax.tree.map(lambda leaf: leaf[0], steps)
        programs = {}
        for kind in dict.fromkeys(plan.kinds):
            step: Any = partial(step_of_kind, plan, kind)
            if self._mesh is not None:
                step = sharded_step(plan, kind, self._mesh, cache, weight_specs(dit))
            programs[kind] = self._compiled(kind, plan, step, dit, (x, cache), first, prepared)
        start = time.perf_counter()
        with Progress(total, "denoise", unit="step", enabled=self._progress) as bar:
            for index, kind in enumerate(plan.kinds):
                numbers = jax.tree.map(lambda leaf, index=index: leaf[index], steps)
                x, cache = jax.block_until_ready(programs[kind](dit, (x, cache), numbers, prepared))
                bar.advance(1, **({} if plan.sparse is None else {"kind": kind}))
                if callback is not None and callback(index + 1, x) is False:
                    raise Cancelled(
                        f"sampling was cancelled after step {index + 1} of {total}",
                        step=index + 1,
                        latents=x,
                    )
        self._add("denoise", start)
        return x, cache

    def _prepare(
        self, plan: Plan, prompt: EncodedPrompt, negative: EncodedPrompt | None
    ) -> Conditions:
        """What the steps need of a prompt; released weights are gone when this returns."""
        dit, function = self._models.modulation, partial(prepare, plan)
        if self._mesh is not None:
            function = sharded_prepare(plan, self._mesh, weight_specs(dit))
        run = self._compiled("prepare", plan, function, dit, prompt, negative)
        return jax.block_until_ready(run(dit, prompt, negative))

    def _compiled(
        self, name: str, plan: Plan, function: Callable[..., Any], *given: Any
    ) -> Callable[..., Any]:
        """The program of a function for these shapes, compiled when it is first asked for; that time is kept apart.

        Steps donate what they change: latents and cache.
        """
        key = (name, plan, *(leaf.shape for leaf in jax.tree.leaves(given[1:])))
        if key not in self.programs:
            start = time.perf_counter()
            jitted = jax.jit(function, donate_argnums=1 if name in KINDS else ())
            self.programs[key] = jitted.lower(*given).compile()
            self._add("compile", start)
        return self.programs[key]

    def _everywhere(self, tree: Any) -> Any:
        """Arrays whole on every device of the mesh, if there is one."""
        return tree if self._mesh is None else replicated(self._mesh, tree)


def _cache(plan: Plan, dit: DiT, latents: Array, conditions: Conditions) -> Any:
    """Buffers of the cache, before the first refresh."""
    return empty_cache(plan, dit, latents.shape, conditions)
