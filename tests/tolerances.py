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
# Steps of a quantizer: a ratio of up to 128 is off by three float32 roundings, so that one near a half may go either way.
HALF_A_STEP = 0.5 + 128 * 3 * 2.0**-24
# Entries of Q Q^T - I, Q from a float32 solve whose matrix has condition numbers up to some hundreds.
CAYLEY = 1e-5


def float32_sum(length: int) -> float:
    """Relative to the size of the terms: rounding errors of a float32 sum in any order grow with the root of its length."""
    return 4 * 2.0**-24 * max(length, 1) ** 0.5


def bfloat16_tokens(bits: int) -> float:
    """Relative, of a layer in bfloat16 whose input becomes integers.

    What is rounded to bfloat16 before the quantizer, by d, decides a share d / step of the integers anew, each off by a
    step: sqrt(d * step) in the root mean square, twice as much for steps four times as long.
    """
    return 2.0**-6 * 2.0 ** ((8 - min(bits, 8)) / 2)
