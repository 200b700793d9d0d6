"""All steps of a plan as one pure function."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
from jaxtyping import Array, Float

from qsjax.dit import DiT, DiTConfig
from qsjax.errors import InputError
from qsjax.sample.cache import empty_cache
from qsjax.sample.state import Cache
from qsjax.sample.step import Step, prepare, schedule
from qsjax.sample.steps import denoise_step
from qsjax.settings import SamplingPlan
from qsjax.text import EncodedPrompt

Carry = tuple[Array, Cache | None]
"""Latents and cache."""
Body = Callable[[Carry, Step], tuple[Carry, None]]
"""The body of a `jax.lax.scan` over steps."""


def make_sampler(config: DiTConfig, plan: SamplingPlan) -> Callable[..., Float[Array, "B C T H W"]]:
    """A pure function that runs all steps of `plan`; jit it as a whole.

    >>> sampler = jax.jit(make_sampler(dit.config, SamplingPlan(steps=50)), donate_argnums=1)
    >>> latents = sampler(dit, noise, text)

    Args:
        config: sizes of the DiT that will be sampled.
        plan: the sampling plan.

    Returns:
        `sampler(dit, noise, text, negative=None)`: `dit` is the module (a pytree), `noise` float32
        [B, C, T, H, W], `text` and `negative` encoded prompts; returns latents like `noise`.
    """

    def sampler(
        dit: DiT, noise: Array, text: EncodedPrompt, negative: EncodedPrompt | None = None
    ) -> Array:
        if dit.config != config:
            raise InputError("this sampler was made for a DiT of another configuration")
        conditions, numbers = prepare(plan, dit, text, negative), schedule(plan)
        cache = empty_cache(plan, dit, noise.shape, conditions) if plan.remembers else None

        def body(kind: str) -> Body:
            def step(carry: Carry, current: Step) -> tuple[Carry, None]:
                return denoise_step(plan, kind, dit, *carry, current, conditions), None

            return step

        (latents, _), _ = _run(plan.kinds, body, (noise, cache), numbers)
        return latents

    return sampler


def _run(
    kinds: Sequence[str], body: Callable[[str], Body], carry: Carry, numbers: Step
) -> tuple[Carry, None]:
    """Run all steps as nested scans, so that each kind of step is traced only a few times.

    Consecutive steps of one kind are one scan. Identical rounds, each from one refresh to the next, are one outer scan.
    """
    start = 0
    while start < len(kinds):
        length, count = _round(kinds, start)
        stop = start + count * length
        rounds = jax.tree.map(
            lambda leaf, a=start, b=stop, n=count: leaf[a:b].reshape(n, -1, *leaf.shape[1:]),
            numbers,
        )

        def run_round(
            carry: Carry, steps: Step, kinds: Sequence[str] = kinds[start : start + length]
        ) -> tuple[Carry, None]:
            for first, last in _runs(kinds):
                part = jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], steps)
                carry, _ = jax.lax.scan(body(kinds[first]), carry, part)
            return carry, None

        carry, _ = jax.lax.scan(run_round, carry, rounds)
        start = stop
    return carry, None


def _round(kinds: Sequence[str], start: int) -> tuple[int, int]:
    """Length and number of the identical rounds from `start` on; a round ends where its first kind appears again."""
    first = kinds[start]
    length = next((n for n in range(1, len(kinds) - start) if kinds[start + n] == first), 0)
    length = length or len(kinds) - start
    round_kinds, count = kinds[start : start + length], 1
    while kinds[start + count * length : start + (count + 1) * length] == round_kinds:
        count += 1
    return length, count


def _runs(kinds: Sequence[str]) -> list[tuple[int, int]]:
    """Start and end (exclusive) of each run of consecutive equal kinds."""
    edges = [0, *(n for n in range(1, len(kinds)) if kinds[n] != kinds[n - 1]), len(kinds)]
    return list(pairwise(edges))
