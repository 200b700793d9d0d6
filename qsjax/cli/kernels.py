"""Options that choose kernels: `--kernels.KEY NAME`, for every key of `pallas_kernels.Kernels`."""

import argparse

from qsjax.cli.options import Options

_KEYS = {
    "attention": "dense attention: cudnn, tpu, xla_per_head, xla_chunked",
    "sparse_attention": "block-sparse attention: tpu, gpu, xla, reference",
    "matmul": "products with packed weights: tpu, gpu, jax_triton, xla, xla_int4, reference",
    "quantize": "quantization of tokens: tpu, gpu, xla, reference",
    "rotary": "norm, rotation and layout of queries and keys, and its inverse: tpu, xla, reference",
}
"""The fields of `pallas_kernels.Kernels`, repeated here because importing it loads JAX; tests compare them."""


def add_kernels(options: Options) -> None:
    """Add the options."""
    group = options.group(
        "kernels",
        "which implementation of an operation is run; `qsjax doctor` lists those that this machine can run",
    )
    for key, text in _KEYS.items():
        group.add_argument(
            f"--kernels.{key.replace('_', '-')}",
            dest=f"kernels.{key}",
            metavar="NAME",
            help=f"{text} (default: auto, the first that can run)",
        )


def given_kernels(args: argparse.Namespace) -> dict[str, str]:
    """The names that were given, by key."""
    names = {key: getattr(args, f"kernels.{key}") for key in _KEYS}
    return {key: name for key, name in names.items() if name is not None}
