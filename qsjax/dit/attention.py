"""Dense attention for the attention slot: exact, in bounded memory, in the form each backend runs best.

No implementation holds a full [heads, tokens, tokens] score matrix: at 720x1280x129 that would be 680 GB.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pallas_kernels import HeadLayout
from pallas_kernels.block_sparse_attention import BlockLists, block_sparse_attention, tpu
from pallas_kernels.block_sparse_attention.tiles import DENSE_BLOCKS
from pallas_kernels.dispatch import AUTO, Implementation, Operation, parse
from pallas_kernels.targets import TARGETS, Target
from pallas_kernels.tpu_params import LANES
from qsjax.dit.heads import HeadSource

State = TypeVar("State")
# Finite, so that a row without any valid key gives finite numbers instead of NaN.
_MASKED = -1e30
# Queries a step: 256 rows of scores stay in a CPU core's cache; an accelerator wants larger matmuls.
_CPU_QUERIES = 256
_SCORE_BYTES = 256 * 2**20


def dense_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    kv_valid: Bool[Array, "B L"],
    state: State = (),
    *,
    implementation: str = AUTO,
) -> tuple[Float[Array, "B Q H D"], State]:
    """softmax(q k^T / sqrt(D)) v over the valid keys, softmax in float32; the state passes through.

    Args:
        q, k, v: one layer's heads; the queries may be some of the tokens.
        kv_valid: keys that may be seen; at least one a sample.
        state: returned as it is.
        implementation: "auto" or a name of `DENSE_ATTENTION.implementations`.

    Raises:
        UnsupportedError: the implementation cannot serve this backend or dtype; the message says why.
    """
    serve = DENSE_ATTENTION.serve(implementation, dtype=q.dtype, head_dim=q.shape[-1])
    return serve(q, k, v, kv_valid), state


@dataclass(frozen=True)
class DenseAttention:
    """What fills the attention slot unless a caller does; a TPU's kernel reads whole blocks that are written for it.

    Attributes:
        implementation: as in `dense_attention`.
    """

    implementation: str = AUTO

    def __call__(
        self,
        q: Float[Array, "B Q H D"],
        k: Float[Array, "B L H D"],
        v: Float[Array, "B L H D"],
        kv_valid: Bool[Array, "B L"],
        state: State = (),
    ) -> tuple[Float[Array, "B Q H D"], State]:
        """See `dense_attention`."""
        return dense_attention(q, k, v, kv_valid, state, implementation=self.implementation)

    def from_heads(
        self, source: HeadSource, kv_valid: Bool[Array, "B L"], state: State = ()
    ) -> tuple[tuple[Float[Array, "B _ C"], ...], State]:
        """See `qsjax.dit.blocks.ArrangingAttention`."""
        if not (source.arranges() and self._tiled(source)):
            out, state = self(*source.plain(), kv_valid, state)
            return source.divided(out), state
        length, video = kv_valid.shape[1], source.video
        rows = [-(-length // block) * block for block in _blocks(length, length)]
        heads = source.arranged(HeadLayout(*rows, text=video))
        q, k, v = (x.swapaxes(1, 2) for x in heads[:3])
        kv_valid = jnp.pad(kv_valid, ((0, 0), (0, rows[1] - length)))
        out = self(q, k, v, kv_valid)[0].swapaxes(1, 2)
        return source.merged(out, out[:, :, video:length]), state

    def _tiled(self, source: HeadSource) -> bool:
        name, target = parse(self.implementation)
        first = source.projections[0]
        facts = {"dtype": first.projected.dtype, "head_dim": first.q_scale.shape[0]}
        return DENSE_ATTENTION.choose(name, backend=target.backend, **facts) == "tpu"


def masked_attention(
    q: Float[Array, "*B Q D"], k: Float[Array, "*B K D"], v: Float[Array, "*B K D"], bias: Array
) -> Float[Array, "*B Q D"]:
    """softmax(q k^T / sqrt(D) + bias) v with all scores in memory; float32 softmax, result in q's dtype."""
    scores = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
    scores = scores * jnp.float32(q.shape[-1] ** -0.5) + bias
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "...qk,...kd->...qd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (mixed / total).astype(q.dtype)


def key_bias(kv_valid: Bool[Array, "*B L"]) -> Float[Array, "*B L"]:
    """0 for valid keys, a large negative number for the others."""
    return jnp.where(kv_valid, jnp.float32(0), jnp.float32(_MASKED))


def _per_head(q: Array, k: Array, v: Array, kv_valid: Array) -> Array:
    """One head and 256 queries at a time, as 2-D matmuls: XLA:CPU runs these 3 times faster than a batch."""
    batch, length, heads, size = q.shape
    q, k, v = (x.transpose(0, 2, 1, 3).reshape(batch * heads, -1, size) for x in (q, k, v))
    chunks = -(-length // _CPU_QUERIES)
    rows = -(-length // chunks)
    q = jnp.pad(q, ((0, 0), (0, chunks * rows - length), (0, 0)))
    bias = jnp.repeat(key_bias(kv_valid), heads, axis=0)

    def attend(head: tuple[Array, Array, Array, Array]) -> Array:
        q, k, v, bias = head
        parts = q.reshape(chunks, rows, size)
        return jax.lax.map(lambda part: masked_attention(part, k, v, bias[None]), parts)

    out = jax.lax.map(attend, (q, k, v, bias)).reshape(batch, heads, chunks * rows, size)
    return out[:, :, :length].transpose(0, 2, 1, 3)


def _chunked(q: Array, k: Array, v: Array, kv_valid: Array) -> Array:
    """All heads, as many queries at a time as fit 256 MB of scores."""
    batch, length, heads, size = q.shape
    fitting = max(1, _SCORE_BYTES // (4 * batch * heads * k.shape[1]))
    chunks = -(-length // fitting)
    rows = -(-length // chunks)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    q = jnp.pad(q, ((0, 0), (0, chunks * rows - length), (0, 0), (0, 0)))
    parts = q.reshape(batch, chunks, rows, heads, size).transpose(1, 0, 3, 2, 4)
    bias = key_bias(kv_valid)[:, None, None]
    out = jax.lax.map(lambda part: masked_attention(part, k, v, bias), parts)
    out = out.transpose(1, 0, 3, 2, 4).reshape(batch, chunks * rows, heads, size)
    return out[:, :length]


def _cudnn(q: Array, k: Array, v: Array, kv_valid: Array) -> Array:
    """cuDNN's flash attention; padding is at the end of the sequence, so a length per sample replaces the mask."""
    lengths = kv_valid.sum(axis=1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _flash(q: Array, k: Array, v: Array, kv_valid: Array, target: Target) -> Array:
    """The block-sparse kernel with all blocks listed. It has no gradient of its own: calibration's is that of `_chunked`."""
    block_q, block_kv = _blocks(q.shape[1], k.shape[1])
    everything = np.ones((1, -(-q.shape[1] // block_q), -(-k.shape[1] // block_kv)), np.bool_)
    lists = BlockLists.from_block_map(everything, block_q=block_q, block_kv=block_kv)
    # The bare name is for the device at hand, which may be one that no table knows.
    name = f"tpu@{target.name}" if target.name in TARGETS else "tpu"
    out = block_sparse_attention(
        q, k, v, lists, kv_valid=kv_valid, clears=False, implementation=name
    )
    assert not isinstance(out, tuple)
    return out


def _blocks(queries: int, keys: int) -> tuple[int, int]:
    """Queries and keys of a block."""
    block_q, block_kv = (
        min(size, -(-count // LANES) * LANES)
        for size, count in zip(DENSE_BLOCKS, (queries, keys), strict=True)
    )
    return block_q, block_kv


def _flash_forward(
    q: Array, k: Array, v: Array, kv_valid: Array, target: Target
) -> tuple[Array, tuple[Array, ...]]:
    return _flash(q, k, v, kv_valid, target), (q, k, v, kv_valid)


def _flash_backward(target: Target, inputs: tuple[Array, ...], out: Array) -> tuple[Any, ...]:
    del target
    *floats, kv_valid = inputs
    _, pullback = jax.vjp(lambda q, k, v: _chunked(q, k, v, kv_valid), *floats)
    return (*pullback(out), None)


_flash.defvjp(_flash_forward, _flash_backward)


def _tpu(q: Array, k: Array, v: Array, kv_valid: Array, *, target: Target) -> Array:
    return _flash(q, k, v, kv_valid, target)


def _tpu_objection(**facts: Any) -> str | None:
    return tpu.objection(**facts, block_q=LANES, block_kv=LANES)


def _only_on(*backends: str, backend: str, **_: object) -> str | None:
    return None if backend in backends else f"is for {' or '.join(backends)}, not {backend}"


def _cudnn_objection(*, backend: str, dtype: DTypeLike, head_dim: int, **_: object) -> str | None:
    if backend != "gpu":
        return f"needs an NVIDIA GPU, not {backend}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 or float16, not {jnp.dtype(dtype).name}"
    return (
        None
        if head_dim % 8 == 0 and head_dim <= 128
        else f"head size {head_dim} must be a multiple of 8 up to 128"
    )


DENSE_ATTENTION = Operation(
    "dense_attention",
    {
        "cudnn": Implementation(_cudnn, _cudnn_objection),
        "tpu": Implementation(_tpu, _tpu_objection, tiled=True),
        "xla_per_head": Implementation(_per_head, partial(_only_on, "cpu")),
        "xla_chunked": Implementation(_chunked, lambda **_: None),
    },
)
