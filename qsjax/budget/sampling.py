"""Device memory while sampling, estimated."""

from collections.abc import Iterable

from qsjax.budget.size import Size
from qsjax.budget.weights import modulation_table_bytes
from qsjax.dit import DiTConfig
from qsjax.settings import DENSE, REFRESH, SPARSE

_BFLOAT16, _FLOAT32 = 2, 4


def activation_bytes(config: DiTConfig, size: Size) -> int:
    """What a forward pass must hold beside the weights, at least: the activations of one block, and rotary tables.

    The widest moment is in a single block, before its second layer, in bfloat16 values a token, with D channels
    and M of the MLP: the block's input D; the first layer's output 3 D + M; queries and keys, normed and rotated, 2 D;
    attention's output D; GELU M. For HunyuanVideo that is 15 D, 2.32 GB of 25,216 tokens. Attention's own blocks, a
    residual cache, autoencoder and text encoders are not in it.
    """
    channels = 7 * config.hidden_size + 2 * config.mlp_size
    rotary = size.video_tokens * config.head_dim * _FLOAT32  # cosine and sine of half the channels
    return channels * size.tokens * _BFLOAT16 + rotary


WIDTHS = {
    "tpu": {DENSE: 16, REFRESH: 24, SPARSE: 26},
    "gpu": {DENSE: 12, REFRESH: 40, SPARSE: 12},
}
"""Bytes a token that a step holds at once, in multiples of the hidden size in bfloat16: read off the compilers' own counts of
HunyuanVideo-13B in W4A8 (docs/memory.md). A refresh keeps attention over two sets of keys in float32; other backends are taken for TPUs."""


def step_bytes(
    config: DiTConfig, size: Size, kind: str, backend: str = "tpu", chips: int = 1
) -> int:
    """Estimate of what one step holds beside weights, cache and tables.

    In a dense step that is the MLP's widest moment, with the weights of a double block widened to bfloat16; in others it is attention's,
    where no weight is wide.

    Args:
        config: all sizes.
        size: of the video.
        kind: of the step.
        backend: whose compiler lays it out.
        chips: that share the video's tokens; the result is of one.
    """
    width = WIDTHS.get(backend, WIDTHS["tpu"])[kind]
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
    """Estimate of the device memory that sampling takes, by what takes it; the autoencoder and text encoders are not in it.

    Args:
        config: all sizes.
        resident: bytes of the weights that a device has while sampling (`Weights.resident`, `Weights.resident_on`).
        size: of the video.
        evaluations: of the model, for all steps: rows of the modulation table.
        kinds: of the steps; the widest counts.
        backend: whose compiler lays it out.
        chips: that share the video's tokens; the result is of one.
    """
    return {
        "resident_weights": resident,
        "modulation_table": modulation_table_bytes(config, evaluations),
        "activations": max(step_bytes(config, size, kind, backend, chips) for kind in kinds),
    }
