"""HunyuanVideo's attention as cases for the benchmark: 24 heads of 128, a video of 61 frames at 480 x 832, and its text.

Lists are uniform (equally many blocks in every list) or those of Sparse VideoGen. Its temporal heads reorder their tokens;
after that they have the same band as the spatial heads.
"""

from dataclasses import replace

from pallas_kernels.block_sparse_attention.case import BAND_BLOCK, AttentionCase

VIDEO = 16 * 30 * 52
TEXT = 256


def svg_band(density: float) -> int:
    """Half width in tokens of Sparse VideoGen's band for a nominal density (its `sparsity_to_width`, arXiv:2502.01776).

    A band of half width w covers 1 - (1 - w / L)^2 of the area, to which the text's rows and columns are added; whole
    blocks of 128.
    """
    tokens = VIDEO + TEXT
    video_only = density - 2 * TEXT / tokens
    return int(tokens * (1 - (1 - video_only) ** 0.5)) // BAND_BLOCK * BAND_BLOCK


def hunyuan(
    label: str,
    block_q: int,
    block_kv: int,
    implementation: str,
    listed: int | None = None,
    band: int | None = None,
) -> AttentionCase:
    """A case of 24 heads of 128 and 25,216 tokens."""
    return AttentionCase(
        label, VIDEO + TEXT, 24, 128, block_q, block_kv, implementation, listed, band, TEXT
    )


def _tpu() -> tuple[AttentionCase, ...]:
    bands = [(density, svg_band(density)) for density in (0.15, 0.25)]
    return (
        hunyuan("full lists", 1024, 1024, "tpu"),
        hunyuan("full lists", 512, 128, "tpu"),
        hunyuan("uniform 38 of 197", 512, 128, "tpu", listed=38),
        replace(hunyuan("uniform 38 of 197", 512, 128, "tpu", listed=38), scores="int8"),
        *(
            hunyuan(f"SVG {density:.0%}", *blocks, "tpu", band=band)
            for density, band in bands
            for blocks in ((128, 128), (512, 128))
        ),
    )


def _gpu() -> tuple[AttentionCase, ...]:
    return (
        hunyuan("dense, cuDNN", 128, 128, "cudnn"),
        hunyuan("full lists", 128, 128, "gpu"),
        hunyuan("uniform 49 of 197", 128, 128, "gpu", listed=49),
        hunyuan("uniform 30 of 197", 128, 128, "gpu", listed=30),
    )


def cpu(block: int, tokens: int = 8192, density: float = 0.15) -> AttentionCase:
    """8 heads of 64 in float32."""
    blocks = -(-tokens // block)
    listed = max(1, round(density * blocks))
    label = f"uniform {listed} of {blocks}"
    return AttentionCase(label, tokens, 8, 64, block, block, "xla", listed=listed, dtype="float32")


CASES = {"tpu": _tpu(), "gpu": _gpu(), "cpu": (cpu(128), cpu(256))}
"""By backend."""
