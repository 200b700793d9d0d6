"""The parts of a block of the transformer, and the least time for each: products at the peak of the matrix unit, bytes at the bandwidth.

What XLA makes between kernels and products ("glue") has no floor of its own: it is measured in passes, the time to read and write queries,
keys and values once.
"""

from pallas_kernels.targets import Target
from qsjax.dit import DiTConfig

BLOCKS = DOUBLE, SINGLE, ENDS = ("double", "single", "ends")
"""Kinds of block, and everything outside of the loops over blocks."""
ATTENTION, PRODUCTS, TOKENS = "attention", "products", "token quantization"
ROPE, ORDERS, SLICES = "RoPE and norms", "orders and transposes", "slices and concatenations"
CACHE, PACKING, LOW_RANK, REST = "cache", "packing", "low rank", "rest"
TRANSFERS = "host transfers"
PARTS = (ATTENTION, PRODUCTS, TOKENS, ROPE, ORDERS, SLICES, CACHE, PACKING, LOW_RANK, TRANSFERS, REST)  # fmt: skip
GLUE = (ROPE, ORDERS, SLICES, CACHE, REST)
"""What is no kernel, no product, and no work that only a refresh has."""
HOST_RATE = 16e9
"""Bytes a second between a TPU and its host, each way; assumed (PCIe 3.0 with 16 lanes), not measured and not in the compiler's estimate."""

_BFLOAT16, _INT8 = 2, 1


def floors(
    config: DiTConfig,
    target: Target,
    *,
    tokens: int,
    block: str,
    pairs: float,
    integers: bool = True,
    cached: float = 0.0,
    on_host: bool = False,
) -> dict[str, float]:
    """Seconds by part of one block, batch 1; a part that need not exist has none.

    Args:
        config: sizes of the transformer, hidden size C and an MLP of r C.
        target: gives the peaks.
        tokens: of the chip, video and text.
        block: "double" or "single".
        pairs: pairs of tokens that attention computes.
        integers: whether products are of int8 and tokens are quantized; else both are bfloat16.
        cached: bytes of a layer's cache that are read or written.
        on_host: whether the cache lies in the host's memory.
    """
    width, ratio = config.hidden_size, config.mlp_ratio
    peak = target.int8_ops if integers and target.int8_ops else target.bfloat16_flops
    seconds = {
        # Scores and weighted values, a multiplication with its addition counted as two.
        ATTENTION: 4 * width * pairs / target.bfloat16_flops,
        # Queries, keys, values and projection, and both layers of the MLP.
        PRODUCTS: (8 + 4 * ratio) * width**2 * tokens / peak,
        ROPE: pass_seconds(config, target, tokens),
    }
    if integers:
        # What enters qkv (or linear1), projection and MLP; of a double block both layers of the MLP.
        channels = (2 if block == SINGLE else 3) * width + ratio * width
        seconds[TOKENS] = channels * tokens * (_BFLOAT16 + _INT8) / target.bandwidth
    if cached:
        seconds[CACHE] = cached / target.bandwidth
        if on_host:
            seconds[TRANSFERS] = cached / HOST_RATE
    return seconds


def pass_seconds(config: DiTConfig, target: Target, tokens: int) -> float:
    """To read and write queries, keys and values of all tokens once, in bfloat16."""
    return 2 * 3 * config.hidden_size * tokens * _BFLOAT16 / target.bandwidth
