"""The one place of test tolerances; each follows the dtype and the length of the reductions behind it."""

# Absolute, float32, on tensors of order 1 after a whole network of matmuls with reductions of up to a few thousand terms.
FLOAT32_NETWORK = 1e-5
# The sinusoid table of torch and ours differ by one ulp in two entries; at guidance 6000 that is up to 5e-5 in the output.
FLOAT32_GUIDANCE_6000 = 1e-4
# Decibels between frames in [0, 1] of two float32 pipelines: errors of 1e-5 in the latents are far below one 8-bit level.
PIPELINE_PSNR = 50.0
