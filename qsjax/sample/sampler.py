"""All steps of a plan as one pure function."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
from jaxtyping import Array, Float

from qsjax.dit import DiT, DiTConfig
from qsjax.errors import InputError
from qsjax.sample.cache import empty_cache
from qsjax.sample.step import prepare, schedule
from qsjax.sample.steps import denoise_step
from qsjax.settings import SamplingPlan
from qsjax.text import EncodedPrompt


def make_sampler(config: DiTConfig, plan: SamplingPlan) -> Callable[..., Float[Array, "B C T H W"]]:
    """A pure function that runs all steps of `plan`; jit it as a whole.

    >>> sampler = jax.jit(make_sampler(dit.config, SamplingPlan(steps=50)), donate_argnums=1)
    >>> latents = sampler(dit, noise, text)

    Args:
        config: of the DiT that will be sampled.
        plan: schedule and guidance.

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

        def body(kind: str) -> Callable[..., Any]:
            def step(carry: tuple[Array, Any], now: Any) -> tuple[tuple[Array, Any], None]:
                return denoise_step(plan, kind, dit, *carry, now, conditions), None

            return step

        (latents, _), _ = _run(plan.kinds, body, (noise, cache), numbers)
        return latents

    return sampler


def _run(
    kinds: Sequence[str], body: Callable[[str], Callable[..., Any]], carry: Any, numbers: Any
) -> tuple[Any, None]:
    """Steps of equal kinds under one scan, and whole rounds of them, refresh to refresh, under one more."""

    def some(start: int, stop: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[start:stop], numbers)

    at = 0
    while at < len(kinds):
        length, count = _round(kinds, at)
        rounds = jax.tree.map(
            lambda leaf, length=length, count=count: leaf.reshape(count, length, *leaf.shape[1:]),
            some(at, at + count * length),
        )

        def one(
            carry: Any, steps: Any, kinds: Sequence[str] = kinds[at : at + length]
        ) -> tuple[Any, None]:
            for first, last in _equal(kinds):
                part = jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], steps)
                carry, _ = jax.lax.scan(body(kinds[first]), carry, part)
            return carry, None

        carry, _ = jax.lax.scan(one, carry, rounds)
        at += count * length
    return carry, None


def _round(kinds: Sequence[str], at: int) -> tuple[int, int]:
    """Length and number of the equal rounds that follow; a round ends where its first kind comes again."""
    first = kinds[at]
    length = next((n for n in range(1, len(kinds) - at) if kinds[at + n] == first), 0)
    length = length or len(kinds) - at
    count = 1
    while kinds[at + count * length : at + (count + 1) * length] == kinds[at : at + length]:
        count += 1
    return length, count


def _equal(kinds: Sequence[str]) -> list[tuple[int, int]]:
    """Runs of one kind, as (first, last + 1)."""
    edges = [0, *(n for n in range(1, len(kinds)) if kinds[n] != kinds[n - 1]), len(kinds)]
    return list(pairwise(edges))
