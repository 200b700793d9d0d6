"""Loading the DiT of a checkpoint directory, quantized or not."""

import os
from functools import partial

import jax.numpy as jnp

from pallas_kernels import KernelsLike
from qsjax.checkpoint import Manifest, Placement, restore
from qsjax.config import from_mapping
from qsjax.dit.abstract import abstract_dit
from qsjax.dit.config import DiTConfig
from qsjax.dit.halves import belongs_to, keep
from qsjax.dit.kernels import checked_kernels, use_kernels
from qsjax.dit.model import DiT
from qsjax.errors import CheckpointError, InputError
from qsjax.quant import Recipe, arrange


def load_dit(
    directory: str | os.PathLike[str],
    *,
    dtype: jnp.dtype | type | None = None,
    part: str = "whole",
    place: Placement | None = None,
    kernels: KernelsLike | None = None,
    progress: bool = False,
    verify: bool = True,
) -> DiT:
    """The diffusion transformer of a checkpoint that `qsjax convert` or `qsjax calibrate` wrote.

    Args:
        directory: the checkpoint.
        dtype: parameters and matmuls; None means bfloat16, as the weights are released. Of a quantized layer it is the
            dtype of the output; its integers, and its scales and transforms in float32, are as stored.
        part: "whole", or one of the halves of `qsjax.dit.halves`; nothing else is read.
        place: of the parameters among devices (`qsjax.parallel.weight_placement`); None has all on the first.
        kernels: names of implementations by operation, see `pallas_kernels.Kernels`; None is "auto" for all.
        progress: show a bar in bytes.
        verify: compare each weight's bytes with their sha256 in the manifest, once a process.

    Raises:
        CheckpointError: not a checkpoint, without a DiT, or one that does not fit its configuration.
        InputError: no such part, no such implementation.
    """
    manifest = Manifest.read(directory)
    config = from_mapping(DiTConfig, manifest.config("dit"), source=f"{directory}: dit config")
    chosen = checked_kernels(kernels)
    abstract = abstract_dit(
        config,
        dtype=jnp.bfloat16 if dtype is None else dtype,
        recipe=stored_recipe(manifest),
        clipped=manifest.component("dit").clipped,
    )
    wanted = None if part == "whole" else partial(belongs_to, part)
    dit = restore(
        manifest,
        "dit",
        use_kernels(keep(abstract, part), chosen),
        wanted=wanted,
        place=place,
        progress=progress,
        verify=verify,
    )
    return arrange(dit, place=place, matmul=chosen.matmul)


def stored_recipe(manifest: Manifest) -> Recipe | None:
    """How the DiT of a checkpoint is quantized; None if it is not.

    Raises:
        CheckpointError: the manifest has a recipe that this version of qsjax does not know.
    """
    values = manifest.component("dit").recipe
    if values is None:
        return None
    try:
        return from_mapping(Recipe, values, source=f"{manifest.directory}: recipe")
    except InputError as error:
        raise CheckpointError(f"{error}; quantize again, or upgrade qsjax") from error
