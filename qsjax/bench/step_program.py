"""One kind of step of a model of a few blocks, compiled for a TPU in a process of its own, and what its text says.

Blocks run in a loop, so the program of two blocks of each kind has the same loop bodies as that of sixty, needs no memory for
the others, and compiles as fast. `python -m qsjax.bench.step_program` answers a `StepRequest`.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
from jaxtyping import Array

from pallas_kernels import HeadLayout, targets
from pallas_kernels.estimate import answer
from pallas_kernels.targets import TARGETS
from qsjax.bench.cpu import cpu_seconds
from qsjax.bench.hlo_text import compiled_text
from qsjax.bench.kernel_calls import Call, calls
from qsjax.bench.listed import ListedCall, listed_calls
from qsjax.bench.step_parts import Kernel, read
from qsjax.budget.compiled import StepShapes
from qsjax.dit import DiT, DiTConfig, Modulation
from qsjax.dit.blocks import Attention, Context
from qsjax.dit.heads import HeadSource
from qsjax.quant import Recipe
from qsjax.sample import SamplingPlan
from qsjax.sample.state import Memory
from qsjax.sample.step import euler_step

DEPTH = 2
"""Blocks of each kind; a loop of one would be inlined, with its slices."""


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """A step to compile.

    Attributes:
        config: sizes of the transformer.
        recipe: quantization recipe of its weights.
        plan: the sampling plan.
        kind: of the step.
        target: name of a TPU.
        latents: frames, height and width of the latents.
        text_tokens: tokens of the prompt.
        clipped: whether quantized activations have a learned clip.
        slot: what fills the attention slot of a dense step: the transformer's "own" attention, or "nothing", where only the
            other kernels are of interest.
    """

    config: DiTConfig
    recipe: Recipe
    plan: SamplingPlan
    kind: str
    target: str
    latents: tuple[int, int, int]
    text_tokens: int
    clipped: bool = True
    slot: Literal["own", "nothing"] = "own"


def respond(request: StepRequest) -> dict[str, Any]:
    """Compile a step and read it.

    Returns:
        `blocks`: cycles of a block by its kind and part (`qsjax.bench.step_parts`); `kernels`: its Pallas kernels;
        `listed`: its calls of block-sparse attention; `cpu_seconds` and `seconds`, to trace and compile.
    """
    start, before = time.perf_counter(), cpu_seconds()
    target = TARGETS[request.target]
    with targets.assumed(target):
        program = traced(request)
        text = compiled_text(program.lower())
    seconds, spent = time.perf_counter() - start, cpu_seconds() - before
    # The one loop that is as long as the data say reorders the tokens of the heads that want their second order.
    reading = read(text, depth=DEPTH, unknown=request.config.num_heads // 2)
    written = {(one.block, one.path, one.shapes): one for one in calls(program.jaxpr.jaxpr)}
    kernels = [_as_written(one, written) for one in reading.kernels]
    return {
        "blocks": reading.blocks,
        "kernels": [one.as_json() for one in kernels],
        "listed": [asdict(call) for call in _listed(request)],
        "cpu_seconds": spent,
        "seconds": seconds,
    }


def _as_written(kernel: Kernel, written: dict[tuple[Any, ...], Call]) -> Kernel:
    """With what the call writes, which the compiled text does not tell."""
    call = written.get((kernel.block, kernel.path, kernel.operands))
    return kernel if call is None else kernel._replace(elements=call.elements, bytes=call.bytes)


def _listed(request: StepRequest) -> list[ListedCall]:
    if request.slot != "own":
        return []
    target = TARGETS[request.target]
    return listed_calls(
        request.config, request.plan, request.kind, target, request.latents, request.text_tokens
    )


def traced(request: StepRequest) -> jax.stages.Traced:
    """A step of a model of few blocks, traced for its target."""
    config = replace(request.config, num_double_blocks=DEPTH, num_single_blocks=DEPTH)
    plan = replace(request.plan, skip=None)
    if plan.sparse is not None:
        plan = replace(plan, sparse=replace(plan.sparse, dense_layers=()))
    shapes = StepShapes(
        config,
        request.recipe,
        plan,
        TARGETS[request.target],
        latents=request.latents,
        text_tokens=request.text_tokens,
        clipped=request.clipped,
    )
    step = partial(_dense_step, plan, _Nothing()) if request.slot == "nothing" else None
    return shapes.trace(request.kind, step)


class _Nothing:
    """Queries, keys and values are made and their sum is given back, by the kernels that attention on a TPU has them made by."""

    def __call__(
        self, q: Array, k: Array, v: Array, kv_valid: Array, state: Any
    ) -> tuple[Array, Any]:
        return q + k + v, state  # all three are needed, or the compiler leaves them out

    def from_heads(
        self, source: HeadSource, kv_valid: Array, state: Any
    ) -> tuple[tuple[Array, ...], Any]:
        """See `qsjax.dit.blocks.ArrangingAttention`."""
        length = kv_valid.shape[1]
        heads = source.arranged(HeadLayout.plain(length, source.video))
        out = heads.q + heads.k + heads.v
        return source.merged(out, out[:, :, source.video :]), state


def _dense_step(
    plan: SamplingPlan, attention: Attention, dit: DiT, latents: Array, cache: Any, *others: Any
) -> tuple[Array, Any]:
    """A dense step with another attention in its slot."""

    def blocks(
        img: Array, txt: Array, context: Context, row: Modulation, memory: Memory
    ) -> tuple[Array, Memory]:
        return dit.through_blocks(img, txt, context, row)[0], memory

    run: Callable[..., tuple[Array, Any]] = partial(euler_step, blocks=blocks, attention=attention)
    latents, _ = run(plan, dit, latents, *others, (Memory(), Memory()))
    return latents, cache


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", None)
    answer(respond)
