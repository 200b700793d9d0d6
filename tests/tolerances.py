"""The one place of test tolerances; each follows the dtype and the length of the reductions behind it."""

# Absolute, float32, on tensors of order 1 after a whole network of matmuls with reductions of up to a few thousand terms.
FLOAT32_NETWORK = 1e-5
# The sinusoid table of torch and ours differ by one ulp in two entries; at guidance 6000 that is up to 5e-5 in the output.
FLOAT32_GUIDANCE_6000 = 1e-4
# Decibels between frames in [0, 1] of two float32 pipelines: errors of 1e-5 in the latents are far below one 8-bit level.
PIPELINE_PSNR = 50.0
# Relative to the largest output, for kernels whose sums are exact integers: a handful of float32 roundings follow.
FLOAT32_EPILOGUE = 1e-6
# Half a unit in the last of bfloat16's 8 bits, relative to the value: one cast at the end.
BFLOAT16_CAST = 2.0**-8


def float32_sum(length: int) -> float:
    """Relative to the size of the terms: rounding errors of a float32 sum in any order grow with the root of its length."""
    return 4 * 2.0**-24 * max(length, 1) ** 0.5
