"""qsjax: HunyuanVideo-13B in JAX, converted, quantized and sampled on TPU, GPU and CPU."""
