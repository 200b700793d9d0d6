"""The one place of test tolerances; each follows the dtype and the length of the reductions behind it."""

# Absolute, float32, on tensors of order 1 after a whole network of matmuls with reductions of up to a few thousand terms.
FLOAT32_NETWORK = 1e-5
# The sinusoid table of torch and ours differ by one ulp in two entries; at guidance 6000 that is up to 5e-5 in the output.
FLOAT32_GUIDANCE_6000 = 1e-4
