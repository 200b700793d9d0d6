"""All steps of a run as compiled programs, on one device or on a mesh.

The programs are compiled in threads, all kinds of step at once, and on one device before the models are loaded: they
depend on shapes alone, which the checkpoint's manifest tells.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Hashable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered
from jaxtyping import Array, Float

from qsjax.compiling import Programs
from qsjax.dit import DiT
from qsjax.errors import NotFiniteError
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
from qsjax.sample.finite import all_finite, first_broken_layer, require_finite
from qsjax.sample.loop import step_at
from qsjax.sample.state import Cache
from qsjax.sample.steps import CACHE
from qsjax.settings import KINDS
from qsjax.text import EncodedPrompt

Tree = TypeVar("Tree")


class Denoiser:
    """Runs the steps of a plan; each program is compiled when a plan and a size first need it.

    Args:
        models: the checkpoint's models.
        mesh: mesh of devices; None is the default device.
        progress: show a progress bar.
        add: called with the name of each finished stage and the time when it began.

    Attributes:
        programs: compiled programs by name, plan, and shapes and dtypes of the arguments.
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
        self.programs = Programs(add)

    def ahead(
        self,
        plan: SamplingPlan,
        prompt: EncodedPrompt,
        negative: EncodedPrompt | None,
        latents: tuple[int, ...],
    ) -> None:
        """Begin to compile what a call needs, before a model is loaded.

        Programs on a mesh, or with a cache in the host's memory, depend on where their arguments lie: they are compiled when
        those are there.

        Args:
            plan: the sampling plan.
            prompt, negative: shapes and dtypes of the encoded prompts.
            latents: shape of the latents, [B, C, T, H, W].
        """
        if self._mesh is not None or (plan.sparse and plan.sparse.residual.place == "host"):
            return
        x, numbers = jax.ShapeDtypeStruct(latents, jnp.float32), partial(schedule, plan)
        first = jax.eval_shape(lambda: step_at(numbers(), 0))
        dit, modulation = self._models.abstract_dit, self._models.abstract_modulation
        prepared = self._start(
            "prepare", plan, partial(prepare, plan), modulation, prompt, negative
        )
        cache = None
        if plan.remembers:
            cache = self._start("cache", plan, partial(_cache, plan), dit, x, prepared)
        for kind in dict.fromkeys(plan.kinds):
            step = partial(denoise_step, plan, kind)
            self._start(kind, plan, step, dit, x, cache, first, prepared)
        self._start(*_finite_of(x))

    def __call__(
        self,
        plan: SamplingPlan,
        prompt: EncodedPrompt,
        negative: EncodedPrompt | None,
        latents: Float[Array, "B C T H W"] | np.ndarray,
    ) -> Generator[StepResult, None, None]:
        """Yield the result of each step; a step runs when the caller asks for it.

        Args:
            plan: the sampling plan.
            prompt, negative: encoded prompts; `negative` is needed where the plan uses true guidance.
            latents: initial noise.

        Raises:
            NotFiniteError: the latents or a prompt hold a NaN or an infinity, or a step made one; says which, and in which layer. Found out one step later, so that no
                device waits for the host.
        """
        require_finite(np.asarray(latents), "the latents to start from", "give others")
        for one, whose in ((prompt, "prompt"), (negative, "negative prompt")):
            for part in () if one is None else (one.text, one.pooled):
                what = f"the encoding of the {whose}"
                require_finite(np.asarray(part), what, "encode it in float32")
        x = self._everywhere(jnp.asarray(latents, jnp.float32))
        prepared = self._prepare(plan, *self._everywhere((prompt, negative)))
        dit, numbers = self._models.dit, self._everywhere(schedule(plan))
        cache: Cache | None = None
        if plan.remembers and self._mesh is not None:
            cache = sharded_cache(plan, self._mesh, dit, x.shape, prepared)
        elif plan.remembers:
            make = self._compiled("cache", plan, partial(_cache, plan), dit, x, prepared)
            cache = make(dit, x, prepared)
        first = step_at(numbers, 0)
        steps = {}
        for kind in dict.fromkeys(plan.kinds):
            step: Callable[..., tuple[Array, Cache | None]] = partial(denoise_step, plan, kind)
            if self._mesh is not None:
                step = sharded_step(plan, kind, self._mesh, cache, weight_specs(dit))
            steps[kind] = (kind, plan, step, dit, x, cache, first, prepared)
            self._start(*steps[kind])
        programs = {kind: self._compiled(*step) for kind, step in steps.items()}
        finite = self._compiled(*_finite_of(x))
        results = denoise(plan, programs, dit, x, cache, prepared, numbers=numbers)
        before, flag = (
            deque([x], maxlen=3),
            None,
        )  # latents before a step, its own and the next one's result
        del x, cache, first, steps

        def check(index: int, flag: Array) -> None:
            if not np.asarray(flag):
                where = ""
                if self._mesh is None:
                    at = step_at(numbers, index)
                    where = f", {first_broken_layer(plan, dit, before[0], at, prepared)}"
                raise NotFiniteError(
                    f"step {index + 1} of {plan.steps} made numbers that are not finite{where}; sample in float32"
                    " (`dtype='float32'`), or verify the checkpoint by `qsjax convert`"
                )

        start = time.perf_counter()
        try:
            with Progress(plan.steps, "denoise", unit="step", enabled=self._progress) as bar:
                for result in results:
                    before.append(result.latents)
                    if flag is not None:
                        check(result.index - 1, flag)
                    flag = finite(None, result.latents)
                    jax.block_until_ready((result.latents, result.cache))
                    if result.index == plan.steps - 1:
                        before.append(result.latents)
                        check(result.index, flag)
                    bar.advance(1, **({} if plan.sparse is None else {"kind": result.kind}))
                    yield result
        finally:
            self._add("denoise", start)

    def _prepare(
        self, plan: SamplingPlan, prompt: EncodedPrompt, negative: EncodedPrompt | None
    ) -> Conditions:
        """Compute what all steps share for a prompt; released modulation weights are dropped on return."""
        dit, function = self._models.modulation, partial(prepare, plan)
        if self._mesh is not None:
            function = sharded_prepare(plan, self._mesh, weight_specs(dit))
        run = self._compiled("prepare", plan, function, dit, prompt, negative)
        return jax.block_until_ready(run(dit, prompt, negative))

    def _start(
        self, name: str, plan: SamplingPlan, function: Callable[..., Any], *arguments: object
    ) -> Any:
        """Have a function compiled for arguments of these shapes; returns the shapes and dtypes of its results."""
        return self.programs.start(*self._program(name, plan, function, *arguments))

    def _compiled(
        self, name: str, plan: SamplingPlan, function: Callable[..., Any], *arguments: object
    ) -> Compiled:
        """The same, when it is compiled; returns the program."""
        return self.programs.get(*self._program(name, plan, function, *arguments))

    def _program(
        self, name: str, plan: SamplingPlan, function: Callable[..., Any], *arguments: object
    ) -> tuple[Hashable, Callable[[], Lowered]]:
        """Key of a program, and how it is traced.

        Steps donate their cache, which is overwritten in place. The first argument is the model, whose shapes never change.
        """
        leaves = jax.tree.leaves(arguments[1:])
        key = (name, plan, *((leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves))
        jitted = jax.jit(function, donate_argnums=CACHE if name in KINDS else ())
        return key, partial(jitted.lower, *jax.tree.map(_shape, arguments))

    def _everywhere(self, tree: Tree) -> Tree:
        """The arrays of a tree, replicated over the mesh if there is one."""
        return tree if self._mesh is None else replicated(self._mesh, tree)


def _finite_of(latents: Any) -> tuple[Any, ...]:
    """What compiles the flag of a step's latents; it is the same for all plans."""
    return "finite", SamplingPlan(), _finite_flag, None, latents


def _finite_flag(_: None, latents: Array) -> Array:
    return all_finite(latents)


def _shape(leaf: Any) -> Any:
    """Shape and dtype of an array on the default device; anything else as it is.

    An array that was put there on purpose ("committed") leaves a mark in the program, by which it would be another one
    than that compiled ahead, in the cache on disk too.
    """
    if not isinstance(leaf, jax.Array) or getattr(jax.config, "jax_default_device", None):
        return leaf
    device, sharding = jax.local_devices()[0], leaf.sharding
    usual = {None, device.default_memory().kind}
    if sharding.device_set != {device} or sharding.memory_kind not in usual:
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type)


def _cache(plan: SamplingPlan, dit: DiT, latents: Array, conditions: Conditions) -> Cache:
    """The cache before the first step."""
    return empty_cache(plan, dit, latents.shape, conditions)
