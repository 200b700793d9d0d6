"""The DiT in two halves: what makes the modulation vectors, and what a denoising step runs.

The vectors depend on time, guidance and pooled text only, so that one table serves all steps of a prompt (`DiT.modulation`).
A quarter of HunyuanVideo's weights does nothing else and need not be on the device while steps run.
"""

import jax
from flax import nnx

from qsjax.config import nearest
from qsjax.dit.model import DiT
from qsjax.errors import InputError

PARTS = ("whole", "modulation", "steps")
_EMBEDDERS = ("time_embed", "guidance_embed", "pooled_embed")


def belongs_to(part: str, parameter: str) -> bool:
    """Whether a part of the DiT needs a parameter.

    Args:
        part: one of `PARTS`.
        parameter: its dotted name, with or without block numbers.
    """
    if part == "whole":
        return True
    names = parameter.split(".")
    # The refiner's modulation and embedders are its own: it runs in every step.
    makes_vectors = names[0] in _EMBEDDERS or (names[0] != "refiner" and "modulation" in names)
    return makes_vectors == (part == "modulation")


def keep(dit: DiT, part: str) -> DiT:
    """Remove the layers that a part does not need, in place.

    Args:
        dit: whole.
        part: "modulation" leaves what `DiT.modulation` runs, "steps" what a call with a row of its table runs,
            "whole" everything.

    Raises:
        InputError: no such part.
    """
    if part not in PARTS:
        raise InputError(f"the DiT has no part {part!r}; {nearest(part, PARTS)}")
    _prune(dit, part, ())
    return dit


def _prune(module: nnx.Module, part: str, path: tuple[str, ...]) -> None:
    for name, child in list(vars(module).items()):
        here = (*path, name)
        if isinstance(child, nnx.Variable) and not belongs_to(part, ".".join(here)):
            delattr(module, name)
        elif isinstance(child, nnx.Module):
            _prune(child, part, here)
            if not jax.tree.leaves(nnx.state(child)):
                delattr(module, name)
