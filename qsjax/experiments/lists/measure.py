"""What lists lose in one step: attention over the listed keys against full attention, head by head, without a cache.

Much cheaper than sampling with every kind of list: one dense run of a few captions serves all of them. Where a head may choose
among several orders of tokens, it chooses on half of the profiled rows, and the other half is reported.

    python -m qsjax.experiments.lists --frames 65 --height 96 --width 96
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qsjax.dit import DiT
from qsjax.pipeline import Pipeline
from qsjax.sample import Conditions, Settings, initial_noise, prepare, schedule
from qsjax.sample.loop import step_at
from qsjax.sample.patterns import token_grid
from qsjax.sample.state import Memory
from qsjax.sample.step import Step, euler_step
from qsjax.settings.sparsity import Sparsity
from qsjax.sparse import Pattern
from qsjax.sparse.boxes import tile_for
from qsjax.sparse.layout import Layout, Sizes
from qsjax.sparse.profile import profile_rows, seen_keys, token_slots

SHAPES = {"16 x 16": (16, 16), "64 x 16": (64, 16)}
"""Queries x keys of a block: a square, as a CPU and a GPU have it, and as many more queries as a TPU has with 512 x 128."""
ROWS = 128
_MASKED = -1e30


class Lists(NamedTuple):
    """One way to list keys: a pattern, and which of its orders of tokens."""

    pattern: Pattern
    order: int = 0

    @property
    def layout(self) -> Layout:
        """The order of the tokens."""
        return self.pattern.layouts[self.order]

    def keys(
        self, q: Array, k: Array, v: Array, kv_valid: Array, rows: np.ndarray
    ) -> Bool[Array | np.ndarray, "#B #H R N"]:
        """The video keys that each of the rows sees."""
        layout, lists = self.layout, self.pattern.lists
        if self.pattern.frozen:
            with jax.ensure_compile_time_eval():
                seen = np.asarray(lists(self.pattern.empty(1, 1)).block_map())[0, 0]
            return seen_keys(layout, seen, rows)[None, None]
        seen = lists(self.pattern.choose(q, k, v, kv_valid)).block_map()
        slots = token_slots(layout)
        return seen[:, :, slots[rows] // layout.block_q][..., slots // layout.block_kv]


class Measured(NamedTuple):
    """Of every layer and kind of lists, on either half of the rows, float32 [layers, kinds, 2, B, H].

    Attributes:
        error: ||listed - full||^2 / ||full||^2 of the rows.
        recall: share of the attention mass on listed keys.
        density: share of the video's keys that are listed.
    """

    error: Array
    recall: Array
    density: Array


def all_lists(grid: Sizes, text: int, density: float) -> dict[tuple[str, str], Lists]:
    """Lists by shape of blocks and name, at a size of video."""
    found = {}
    for shape, (block_q, block_kv) in SHAPES.items():
        sizes: dict[str, Any] = {"density": density, "block_q": block_q, "block_kv": block_kv}
        svg = Pattern(Sparsity(mask="svg", **sizes), grid, text)
        tile = tile_for(grid, block_q)
        found[shape, "frame"], found[shape, "token"] = Lists(svg), Lists(svg, 1)
        for name in ("box", "topk"):
            sparsity = Sparsity(mask=name, tile=tile, **sizes)
            found[shape, name] = Lists(Pattern(sparsity, grid, text))
    return found


def measured(
    lists: Sequence[Lists],
    rows: np.ndarray,
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
) -> Measured:
    """Errors of one layer, [kinds, 2, B, H]: even rows are the first half, odd rows the second."""
    scores = jnp.einsum("brhd,blhd->bhrl", q[:, rows], k) * jnp.float32(q.shape[-1] ** -0.5)
    weights = jax.nn.softmax(jnp.where(kv_valid[:, None, None], scores, _MASKED), axis=-1)
    full = jnp.einsum("bhrl,blhd->bhrd", weights, v)
    tokens, text = lists[0].layout.tokens, q.shape[1] - lists[0].layout.tokens
    halves = partial(jnp.stack, axis=0)
    errors, recalls, densities = [], [], []
    for one in lists:
        seen = jnp.asarray(one.keys(q, k, v, kv_valid, rows))
        assert seen.shape[-1] == tokens
        share = jnp.broadcast_to(seen.mean(axis=-1, dtype=jnp.float32), weights.shape[:3])
        seen = jnp.pad(seen, ((0, 0),) * 3 + ((0, text),), constant_values=True)
        kept = jnp.where(seen, weights, 0.0)
        mass = kept.sum(axis=-1)
        listed = jnp.einsum("bhrl,blhd->bhrd", kept, v) / mass[..., None]
        off, size = (jnp.square(x).sum(axis=-1) for x in (listed - full, full))
        parts = [(off[..., n::2].sum(-1), size[..., n::2].sum(-1)) for n in (0, 1)]
        errors.append(halves([error / norm for error, norm in parts]))
        recalls.append(halves([mass[..., n::2].mean(-1) for n in (0, 1)]))
        densities.append(halves([share[..., n::2].mean(-1) for n in (0, 1)]))
    return Measured(*map(jnp.stack, (errors, recalls, densities)))


def measure_run(
    pipeline: Pipeline, captions: Sequence[str], *, density: float, seed: int, **settings: Any
) -> tuple[dict[tuple[str, str], Lists], Measured]:
    """Sample captions with dense attention and measure all lists in every step.

    Args:
        pipeline: the full-precision model.
        captions: one a clip.
        density: of the lists.
        seed: of the noise; clip i has that of `seed + i`.
        **settings: fields of `Settings`; the checkpoint's where not given.

    Returns:
        The lists, and their errors with steps as the leading axis.
    """
    chosen: Settings = pipeline.resolve(**settings)
    plan, dit, prompt = chosen.plan().dense, pipeline.dit, pipeline.encode(list(captions))
    x = initial_noise(seed, pipeline.latent_shape(chosen, len(captions)))
    grid = token_grid(dit.config, x.shape)
    lists = all_lists(grid, prompt.text.shape[1], density)
    rows = profile_rows(int(np.prod(grid)), ROWS)

    def attention(
        q: Array, k: Array, v: Array, kv_valid: Array, state: Measured
    ) -> tuple[Array, Measured]:
        del state  # of the step before
        out = dit.dense_attention(q, k, v, kv_valid, ())[0]
        return out, measured(list(lists.values()), rows, q, k, v, kv_valid)

    @jax.jit
    def step(dit: DiT, x: Array, numbers: Step, conditions: Conditions) -> tuple[Array, Measured]:
        shape = (dit.config.num_blocks, len(lists), 2, x.shape[0], dit.config.num_heads)
        empty = Measured(*(jnp.zeros(shape, jnp.float32) for _ in Measured._fields))

        def blocks(
            img: Array, txt: Array, context: Any, row: Any, memory: Memory
        ) -> tuple[Array, Memory]:
            img, slot = dit.through_blocks(img, txt, context, row, memory.slot)
            return img, memory._replace(slot=slot)

        cache = Memory(empty), Memory()
        x, (memory, _) = euler_step(
            plan, dit, x, numbers, conditions, cache, blocks=blocks, attention=attention
        )
        return x, memory.slot

    conditions, numbers, found = jax.jit(partial(prepare, plan))(dit, prompt), schedule(plan), []
    for index in range(plan.steps):
        x, slot = step(dit, x, step_at(numbers, index), conditions)
        found.append(jax.tree.map(np.asarray, slot))
    return lists, jax.tree.map(lambda *leaves: np.stack(leaves), *found)
