"""Which implementation of each operation a transformer runs: checked names, and every layer told."""

import inspect

from flax import nnx

from pallas_kernels import Kernels, KernelsLike
from pallas_kernels.block_sparse_attention import BLOCK_SPARSE_ATTENTION
from pallas_kernels.dispatch import AUTO, parse
from pallas_kernels.quantize_tokens import QUANTIZE_TOKENS
from pallas_kernels.quantized_matmul import QUANTIZED_MATMUL
from pallas_kernels.rotary_heads import ROTARY_HEADS
from qsjax.config import nearest
from qsjax.dit.attention import DENSE_ATTENTION
from qsjax.dit.model import DiT
from qsjax.errors import InputError
from qsjax.quant import QuantizedLinear

OPERATIONS = {
    "attention": DENSE_ATTENTION,
    "sparse_attention": BLOCK_SPARSE_ATTENTION,
    "matmul": QUANTIZED_MATMUL,
    "quantize": QUANTIZE_TOKENS,
    "rotary": ROTARY_HEADS,
}
"""Field of `Kernels` -> the operation whose implementation it names."""


def checked_kernels(names: KernelsLike | None) -> Kernels:
    """The implementations that a caller names; what is not named is "auto".

    Whether one can serve a call is known when the call is traced: then it is an `UnsupportedError` with the reason.

    Raises:
        InputError: no such operation, implementation or target.
    """
    known = inspect.signature(Kernels).parameters
    for key in () if names is None or isinstance(names, Kernels) else names:
        if key not in known:
            raise InputError(f"kernels: no operation {key!r}; {nearest(key, known)}")
    kernels = Kernels.of(names)
    for key, operation in OPERATIONS.items():
        name = getattr(kernels, key)
        try:
            implementation, _ = parse(name)
        except ValueError as error:
            raise InputError(f"kernels.{key}: {error}") from error
        words = (AUTO, *operation.implementations)
        if implementation not in words:
            raise InputError(
                f"kernels.{key}: {operation.name} has no implementation {implementation!r}; {nearest(implementation, words)}"
            )
    return kernels


def use_kernels(dit: DiT, kernels: Kernels) -> DiT:
    """Have every layer run these implementations, in place."""
    for _, module in nnx.iter_modules(dit):
        if isinstance(module, (DiT, QuantizedLinear)):
            module.kernels = kernels
    return dit
