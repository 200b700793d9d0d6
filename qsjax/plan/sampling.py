"""Device memory while sampling, estimated."""

from qsjax.dit import DiTConfig
from qsjax.plan.size import Size
from qsjax.plan.weights import Weights, modulation_table_bytes

_BFLOAT16, _FLOAT32 = 2, 4


def activation_bytes(config: DiTConfig, size: Size) -> int:
    """Estimate of what a forward pass holds beside the weights: the activations of one block, and rotary tables.

    The widest moment is in a single block in front of its second layer, in bfloat16 values a token, with D channels
    and M of the MLP: the block's input D; the first layer's output 3 D + M; queries and keys, normed and rotated, 2 D;
    attention's output D; GELU M. For HunyuanVideo that is 15 D, 2.32 GB of 25,216 tokens. Attention's own blocks, a
    residual cache, autoencoder and text encoders are not in it.
    """
    channels = 7 * config.hidden_size + 2 * config.mlp_size
    rotary = size.video_tokens * config.head_dim * _FLOAT32  # cosine and sine of half the channels
    return channels * size.tokens * _BFLOAT16 + rotary


def sampling_bytes(
    config: DiTConfig, weights: Weights, size: Size, evaluations: int
) -> dict[str, int]:
    """Estimate of the device memory that sampling takes, by what takes it.

    Args:
        config: all sizes.
        weights: of the transformer in its recipe.
        size: of the video.
        evaluations: of the model, for all steps: rows of the modulation table.
    """
    return {
        "resident_weights": weights.resident,
        "modulation_table": modulation_table_bytes(config, evaluations),
        "activations": activation_bytes(config, size),
    }
