"""The least time for the parts of a block: products at the peak of the matrix unit, bytes at the bandwidth of the memory."""

from pallas_kernels.targets import Target
from qsjax.bench.step_parts import ATTENTION, CACHE, PRODUCTS, ROPE, SINGLE, TOKENS
from qsjax.dit import DiTConfig

_BFLOAT16, _INT8 = 2, 1


def floors(
    config: DiTConfig,
    target: Target,
    *,
    tokens: int,
    block: str,
    density: float = 1.0,
    integers: bool = True,
    cached: float = 0.0,
) -> dict[str, float]:
    """Seconds by part (`qsjax.bench.step_parts`) of one block, batch 1; a part that need not exist has none.

    Args:
        config: sizes of the transformer, hidden size C and an MLP of r C.
        target: gives the peaks.
        tokens: L, video and text.
        block: "double" or "single".
        density: share of the pairs of tokens that attention computes.
        integers: whether products are of int8 and tokens are quantized; else both are bfloat16.
        cached: bytes of a layer's cache that are read or written.
    """
    width, ratio = config.hidden_size, config.mlp_ratio
    peak = target.int8_ops if integers and target.int8_ops else target.bfloat16_flops
    seconds = {
        # Scores and weighted values, a multiplication with its addition counted as two.
        ATTENTION: 4 * width * density * tokens**2 / target.bfloat16_flops,
        # Queries, keys, values and projection, and both layers of the MLP.
        PRODUCTS: (8 + 4 * ratio) * width**2 * tokens / peak,
        # Queries, keys and values are read and written.
        ROPE: 2 * 3 * width * tokens * _BFLOAT16 / target.bandwidth,
    }
    if integers:
        # What enters qkv (or linear1), projection and MLP; of a double block both layers of the MLP.
        channels = (2 if block == SINGLE else 3) * width + ratio * width
        seconds[TOKENS] = channels * tokens * (_BFLOAT16 + _INT8) / target.bandwidth
    if cached:
        seconds[CACHE] = cached / target.bandwidth
    return seconds
