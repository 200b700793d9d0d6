"""Estimated device memory while sampling."""

from collections.abc import Iterable

from qsjax.budget.size import Size
from qsjax.budget.weights import modulation_table_bytes
from qsjax.dit import DiTConfig
from qsjax.settings import ADAPTIVE, DENSE, REFRESH, SPARSE

_BFLOAT16, _FLOAT32 = 2, 4


def activation_bytes(config: DiTConfig, size: Size) -> int:
    """Lower bound of what a forward pass holds in addition to the weights: the activations of one block, and rotary tables.

    The peak is in a single-stream block, before its second layer. In bfloat16 values per token, with hidden size D and MLP size
    M: the block's input D; the first layer's output 3 D + M; queries and keys, normed and rotated, 2 D; attention's output D;
    GELU M. For HunyuanVideo that is 15 D, 2.32 GB for 25,216 tokens. Attention's own blocks, a residual cache, autoencoder and
    text encoders are not included.
    """
    channels = 7 * config.hidden_size + 2 * config.mlp_size
    rotary = size.video_tokens * config.head_dim * _FLOAT32  # cosine and sine of half the channels
    return channels * size.tokens * _BFLOAT16 + rotary


WIDTHS = {
    "tpu": {DENSE: 16, REFRESH: 24, SPARSE: 26},
    "gpu": {DENSE: 12, REFRESH: 40, SPARSE: 12},
}
"""Bytes per token that a step holds at its peak, in multiples of the hidden size in bfloat16; from the compilers' own counts for
HunyuanVideo-13B in W4A8 (docs/memory.md). A refresh keeps attention over two sets of keys in float32. Other backends are estimated
as TPUs."""


def step_bytes(
    config: DiTConfig, size: Size, kind: str, backend: str = "tpu", chips: int = 1
) -> int:
    """Estimated bytes that one step holds in addition to weights, cache and tables.

    A dense step peaks in the MLP, with the weights of a double-stream block widened to bfloat16. Other steps peak in attention,
    where no weights are widened.

    Args:
        config: sizes of the transformer.
        size: size of the video.
        kind: kind of the step; an adaptive one takes what the larger of its two parts does.
        backend: backend whose compiler lays out the step.
        chips: number of chips that share the video's tokens; the result is for one of them.
    """
    widths = WIDTHS.get(backend, WIDTHS["tpu"])
    width = max(widths[part] for part in ((REFRESH, SPARSE) if kind == ADAPTIVE else (kind,)))
    video = -(-size.video_tokens // chips)
    tokens = width * config.hidden_size * (video + size.text_tokens) * _BFLOAT16
    rotary = video * config.head_dim * _FLOAT32
    block = 2 * (4 * config.hidden_size + 2 * config.mlp_size) * config.hidden_size * _BFLOAT16
    return tokens + rotary + (block if kind == DENSE else 0)


def sampling_bytes(
    config: DiTConfig,
    resident: int,
    size: Size,
    evaluations: int,
    kinds: Iterable[str] = (DENSE,),
    backend: str = "tpu",
    chips: int = 1,
) -> dict[str, int]:
    """Estimated device memory of the denoising steps, in bytes by purpose; without autoencoder and text encoders.

    Args:
        config: sizes of the transformer.
        resident: bytes of the weights that a device has while sampling (`Weights.resident`, `Weights.resident_on`).
        size: size of the video.
        evaluations: evaluations of the model in all steps, which is the number of rows of the modulation table.
        kinds: kinds of the steps; the one that takes most counts.
        backend: backend whose compiler lays out the steps.
        chips: number of chips that share the video's tokens; the result is for one of them.
    """
    return {
        "resident_weights": resident,
        "modulation_table": modulation_table_bytes(config, evaluations),
        "activations": max(step_bytes(config, size, kind, backend, chips) for kind in kinds),
    }
