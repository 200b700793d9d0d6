"""The body of the TPU kernel: one head, one block of queries, a loop over its list.

Scores are held transposed, keys along sublanes and queries along lanes. Maxima and sums over keys are then elementwise
operations on whole registers, and the softmax's row vectors spread over a tile without a copy. The output's accumulator is
transposed, too, and turned once a row.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.block_sparse_attention.cache import EMPTY
from pallas_kernels.block_sparse_attention.softmax import INITIAL_MAX, LOG2_E
from pallas_kernels.refs import AsyncCopy, Index, Ref
from pallas_kernels.tpu_params import LANES

COUNT, MASKED_FROM, INDICES = 0, 1, 2
"""Where a row of `lists` keeps the count, the first step that has keys to mask, and the list."""


class Trips(NamedTuple):
    """What a row does in a static estimate, whatever its list says.

    Attributes:
        steps: of its loop; the last one masks keys.
        apart: steps, the last among them, whose blocks do not follow each other and are copied one by one.
    """

    steps: int
    apart: int


@dataclass(frozen=True, kw_only=True)
class TpuKernelConfig:
    """What is fixed when the kernel is compiled.

    Attributes:
        names: of the kernel's arrays: inputs, outputs, scratch memory.
        block_kv: keys in a block.
        gather: listed blocks that a step multiplies.
        scale: of the scores.
        slice: keys whose scores are turned into weights at a time; divides the keys of a step.
        trips: for a static estimate, what every row does; None takes it from the list.
        complement: the cache is a `Complement`.
        follow: the complement's share of O_S.
    """

    names: tuple[str, ...]
    block_kv: int
    gather: int
    scale: float
    slice: int
    trips: Trips | None
    complement: bool
    follow: float

    @property
    def keys(self) -> int:
        """Keys of a step."""
        return self.gather * self.block_kv


def kernel(*refs: Ref, config: TpuKernelConfig) -> None:
    """Attend to the listed blocks, apply the cache, store.

    A row's last step fetches the first blocks of the head's next row, so that only the first row of a head waits for its keys:
    rows run one after the other, and `turn` says which slot the next row starts with.

    Args:
        refs: the arrays that `config` names. Those in square brackets are there only in some calls.

            lists, next_lists: SMEM [1, 2 + K], of this row and of the next: the count, the first step with keys to mask,
                the list.
            q: [block_q, D].
            k, v: [B, H, L, D], all of them, in HBM.
            bias: float32 [key blocks, block_kv], 0 or `EMPTY`.
            bound, bounded: float32 [1, block_q], no score of a query is larger; SMEM [1, LANES], whether this head's weights can
                be taken relative to it (`softmax.score_bound`).
            [q_scale, k_scale]: of int8 queries and keys, float32 [1, block_q] and [key blocks, block_kv].
            [values, scale, cached_lse, u_factor, v_factor]: of the cache.
            out: [block_q, D].
            lse: float32 [1, block_q].
            [executed]: SMEM [1, 1], the number of listed blocks that were multiplied.
            k_buffer, v_buffer: [2, gather block_kv, D], two slots.
            m, l: running maxima and sums of the softmax, float32 [1, block_q].
            acc: running output, transposed, not yet divided by the sums, float32 [D, block_q].
            turn: SMEM [1], the slot that the row's first step reads.
            semaphores: of the copies, [2, 2].
        config: what is fixed.
    """
    ref = dict(zip(config.names, refs, strict=True))
    copies = _Copies(ref, config)
    count, always = ref["lists"][0, COUNT], config.trips is not None
    steps = _steps(count, config) if config.trips is None else config.trips.steps
    masked_from = ref["lists"][0, MASKED_FROM] if config.trips is None else config.trips.steps - 1
    pl.when(copies.row == 0)(lambda: copies.begin(steps))
    first = ref["turn"][0]
    ref["l"][...] = jnp.zeros(ref["l"].shape, jnp.float32)
    ref["acc"][...] = jnp.zeros(ref["acc"].shape, jnp.float32)
    if not always:
        pl.when(steps == 0)(lambda: copies.fetch_next_row(first))

    def all_steps(bounded: bool) -> Array:
        """Number of blocks that were multiplied: first without masks, then the steps that need them."""
        m = ref["m"]
        m[...] = ref["bound"][...] if bounded else jnp.full(m.shape, INITIAL_MAX, jnp.float32)

        def step_body(step: Array, executed: Array, *, masked: bool, apart: bool = False) -> Array:
            slot = jax.lax.rem(first + step, 2)
            last = step + 1 == steps
            if always:
                copies.fetch_always(step, 1 - slot, next_row=masked, apart=apart or masked)
            else:
                pl.when(~last)(lambda: copies.fetch("lists", step + 1, 1 - slot))
                pl.when(last)(lambda: copies.fetch_next_row(1 - slot))
            left = count - step * config.gather
            copies.wait(slot)
            factor, bias = _by_key(ref, config, step, left, masked)
            _accumulate(ref, config, slot, factor, bias, bounded)
            return executed + jnp.minimum(left, config.gather)

        plain, masked = (partial(step_body, masked=masked) for masked in (False, True))
        executed = jnp.int32(0)
        if config.trips is not None and config.trips.apart > 1:
            together = config.trips.steps - config.trips.apart
            executed = jax.lax.fori_loop(0, together, plain, executed)
            executed = jax.lax.fori_loop(
                together, masked_from, partial(plain, apart=True), executed
            )
        elif bounded:  # elsewhere all steps are masked: that is rare, and compiled sooner
            executed = jax.lax.fori_loop(0, masked_from, plain, executed)
        return jax.lax.fori_loop(masked_from if bounded else 0, steps, masked, executed)

    if always:
        executed = all_steps(True)
    else:
        executed = jax.lax.cond(
            ref["bounded"][0, 0] > 0, partial(all_steps, True), partial(all_steps, False)
        )
    ref["turn"][0] = jax.lax.rem(first + steps, 2)
    if "executed" in ref:
        ref["executed"][0, 0] = executed
    l = ref["l"][...]
    some = l > 0
    sums = jnp.where(some, l, 1.0)
    lse = jnp.where(some, ref["m"][...] * config.scale + jnp.log(sums), EMPTY)
    ref["lse"][...] = lse
    out = (ref["acc"][...] * (1.0 / sums)).T
    if "values" in ref:
        out = _apply(out, lse, ref, config)
    ref["out"][...] = out.astype(ref["out"].dtype)


class _Copies:
    """Copies of listed blocks into one of the two slots, for this row and the first step of the head's next one."""

    def __init__(self, ref: dict[str, Ref], config: TpuKernelConfig) -> None:
        self.ref, self.config = ref, config
        self.sample, self.head = pl.program_id(0), pl.program_id(1)
        self.row, self.rows = pl.program_id(2), pl.num_programs(2)

    def begin(self, steps: Index) -> None:
        """The first row of a head fetches for itself."""
        self.ref["turn"][0] = 0
        pl.when(steps > 0)(lambda: self.fetch("lists", 0, 0))

    def fetch(self, lists: str, step: Index, slot: Index) -> None:
        """Start to copy what a step of a row multiplies; blocks that follow each other, as those of a band do, in one piece."""
        config = self.config
        first, last = (_listed(self.ref[lists], config, step, n) for n in (0, config.gather - 1))
        whole = self.ref[lists][0, COUNT] >= (step + 1) * config.gather
        together = whole & (last - first == config.gather - 1)

        if config.gather == 1:
            self._start(lists, step, slot, 1)
        else:
            pl.when(together)(lambda: self._start(lists, step, slot, config.gather))
            pl.when(~together)(lambda: self._start(lists, step, slot, 1))

    def fetch_always(self, step: Index, slot: Index, *, next_row: bool, apart: bool) -> None:
        """For a static estimate, which does not count what is done under a condition: what follows a step, unconditionally."""
        lists, following = ("next_lists", 0) if next_row else ("lists", step + 1)
        self._start(lists, following, slot, 1 if apart else self.config.gather)

    def fetch_next_row(self, slot: Index) -> None:
        """Start to copy what the head's next row begins with, if there is such a row and its list is not empty."""
        there = (self.row + 1 < self.rows) & (self.ref["next_lists"][0, COUNT] > 0)
        pl.when(there)(lambda: self.fetch("next_lists", 0, slot))

    def wait(self, slot: Index) -> None:
        """Until all copies into a slot have arrived: semaphores count bytes, however many copies brought them."""
        for name in ("k", "v"):
            self._copy(name, 0, slot, 0, self.config.gather).wait()

    def _start(self, lists: str, step: Index, slot: Index, blocks: int) -> None:
        """Copies of so many blocks each, which follow each other."""
        for place in range(0, self.config.gather, blocks):
            index = _listed(self.ref[lists], self.config, step, place)
            for name in ("k", "v"):
                self._copy(name, index, slot, place, blocks).start()

    def _copy(self, name: str, index: Index, slot: Index, place: int, blocks: int) -> AsyncCopy:
        size = self.config.block_kv
        return pltpu.make_async_copy(
            self.ref[name].at[self.sample, self.head, pl.ds(index * size, blocks * size)],
            self.ref[f"{name}_buffer"].at[slot, pl.ds(place * size, blocks * size)],
            self.ref["semaphores"].at[0 if name == "k" else 1, slot],
        )


def _steps(count: Array, config: TpuKernelConfig) -> Array:
    return jax.lax.div(count + (config.gather - 1), config.gather)


def _listed(lists: Ref, config: TpuKernelConfig, step: Index, place: int) -> Array:
    return lists[0, INDICES + step * config.gather + place]


def _by_key(
    ref: dict[str, Ref], config: TpuKernelConfig, step: Array, left: Array, masked: bool
) -> tuple[Array | None, Array | None]:
    """What each key's scores are multiplied by, and what is added to them: float32 [keys, LANES], equal along lanes, or None."""
    rows = [pl.ds(_listed(ref["lists"], config, step, place), 1) for place in range(config.gather)]

    def along_sublanes(parts: list[Array]) -> Array:
        row = jnp.concatenate(parts, axis=1)
        return jnp.broadcast_to(row, (LANES, row.shape[1])).T

    factor = along_sublanes([ref["k_scale"][row] for row in rows]) if "k_scale" in ref else None
    if not masked:
        return factor, None
    bias = [
        jnp.where(place < left, ref["bias"][row], jnp.float32(EMPTY))
        for place, row in enumerate(rows)
    ]
    return factor, along_sublanes(bias)


def _accumulate(
    ref: dict[str, Ref],
    config: TpuKernelConfig,
    slot: Array,
    factor: Float[Array, "N 128"] | None,
    bias: Float[Array, "N 128"] | None,
    bounded: bool,
) -> None:
    """One step of the softmax, in powers of two: online, or relative to a bound that no score exceeds.

    It goes through the keys in slices. The scores of the next slice are asked for before this one's are turned into weights,
    so that the matrix unit has work meanwhile.
    """
    q, width, exponent = ref["q"][...], ref["q"].shape[0], config.scale * LOG2_E
    size = config.slice
    starts = range(0, config.keys, size)

    def scores(start: int) -> Array:
        product = jax.lax.dot_general(
            ref["k_buffer"][slot, pl.ds(start, size)], q, (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32 if factor is None else jnp.int32,
        )  # fmt: skip
        if factor is not None:
            product = product.astype(jnp.float32) * ref["q_scale"][...]
            product = product * _repeat(factor[start : start + size], width)
        return product if bias is None else product + _repeat(bias[start : start + size], width)

    m, l, acc = ref["m"][...], ref["l"][...], ref["acc"][...]
    following = scores(0)
    for start in starts:
        current = following
        if start + size < config.keys:
            following = scores(start + size)
        if not bounded:
            m_old, m = m, jnp.maximum(m, current.max(axis=0, keepdims=True))
            alpha = jnp.exp2((m_old - m) * exponent)
            l, acc = l * alpha, acc * alpha
        p = jnp.exp2((current - m) * exponent)
        l = l + p.sum(axis=0, keepdims=True)
        v = ref["v_buffer"][slot, pl.ds(start, size)]
        acc = acc + jax.lax.dot_general(
            v, p.astype(v.dtype), (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
    ref["m"][...], ref["l"][...], ref["acc"][...] = m, l, acc


def _repeat(x: Array, lanes: int) -> Array:
    return jnp.concatenate([x] * (lanes // LANES), axis=1)


def _column(row: Float[Array, "1 Q"]) -> Float[Array, "Q 128"]:
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _apply(
    out: Float[Array, "Q D"],
    lse: Float[Array, "1 Q"],
    ref: dict[str, Ref],
    config: TpuKernelConfig,
) -> Float[Array, "Q D"]:
    """Put back what the list leaves out, as `cache.py` defines it."""
    cached = ref["values"][...].astype(jnp.float32)
    if "scale" in ref:
        cached = cached * _repeat(_column(ref["scale"][...]), cached.shape[1])
    if "u_factor" in ref:
        u, v = (ref[name][...].astype(jnp.float32) for name in ("u_factor", "v_factor"))
        cached = cached + jax.lax.dot_general(
            u, v, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
    if not config.complement:
        return out + cached
    weight = _repeat(_column(jax.nn.sigmoid(lse - ref["cached_lse"][...])), out.shape[1])
    return weight * out + (1 - weight) * (cached + config.follow * out)
