"""Which implementation of each operation a model runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from pallas_kernels.dispatch import AUTO


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """A name for each operation; "auto" takes the first implementation that can serve a call.

    Attributes:
        attention: dense attention: cudnn, xla_per_head, xla_chunked
        sparse_attention: block-sparse attention: tpu, gpu, xla, reference
        matmul: products with packed weights: tpu, gpu, jax_triton, xla, reference
        quantize: quantization of tokens: tpu, gpu, xla, reference
        rotary: norm, rotation and layout of queries and keys, and its inverse: tpu, xla, reference
    """

    attention: str = AUTO
    sparse_attention: str = AUTO
    matmul: str = AUTO
    quantize: str = AUTO
    rotary: str = AUTO

    @classmethod
    def of(cls, names: "KernelsLike | None") -> "Kernels":
        """The names of a mapping; None is "auto" for all.

        Raises:
            TypeError: there is no such operation.
        """
        if isinstance(names, Kernels):
            return names
        return cls(**(names or {}))


KernelsLike = Kernels | Mapping[str, str]
"""Names of implementations by operation, as in {"matmul": "xla"}."""
