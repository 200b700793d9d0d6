"""From what was learned of a block to the leaves of its packed layers."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np

from qsjax.calibration.blocks import Leaves, corrected_kernel
from qsjax.calibration.programs import Programs
from qsjax.calibration.rounding import Rounded, absorbed_modulation
from qsjax.calibration.variables import Learned, current_transforms, start_rotations
from qsjax.quant import SITES
from qsjax.quant.fake import clip_of
from qsjax.quant.quantizer import UNQUANTIZED
from qsjax.quant.storage import linear_leaves, packed_leaves, site_leaves

_transforms = jax.jit(current_transforms)


def quantized_leaves(
    programs: Programs,
    leaves: Leaves,
    learned: Learned,
    rounded: Mapping[str, Rounded] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """The leaves of the packed block: everything merged that can be, modulation included.

    Layers that are not among `rounded` are rounded to nearest.
    """
    kind, recipe, config = programs.kind, programs.recipe, programs.config
    transforms = _transforms(learned, start_rotations(kind, recipe, config))
    width, quantized = config.hidden_size, {}
    kept = {name: value for name, value in leaves.items() if name.endswith("norm.scale")}
    for site in SITES[kind]:
        kernel, bias = leaves[f"{site.linear}.kernel"], leaves[f"{site.linear}.bias"]
        precision = recipe.precision(f"{kind}.{site.linear}")
        if not precision.quantized:
            kept[f"{site.linear}.kernel"], kept[f"{site.linear}.bias"] = kernel, bias
            continue
        clips, branch = learned.clips[site.layer], learned.branches[site.layer]
        weight_clip = 1.0 if clips is None else clip_of(clips.weight)
        activation_clip = None
        if programs.method.clipped and precision.activations != UNQUANTIZED:
            activation_clip = np.ones(()) if clips is None else clip_of(clips.activation)
        layer_leaves = site_leaves(
            site, kernel, bias, transforms, precision, width,
            weight_clip=weight_clip, activation_clip=activation_clip, rounded=rounded.get(site.layer),
        )  # fmt: skip
        if branch is not None:
            if site.layer not in rounded:
                corrected = corrected_kernel(site, leaves, learned, transforms, config)
                layer_leaves |= linear_leaves(corrected, precision, clip=weight_clip)
            layer_leaves |= {
                "branch_in": np.asarray(branch.into),
                "branch_out": np.asarray(branch.out),
            }
        quantized |= {f"{site.layer}.{name}": leaf for name, leaf in layer_leaves.items()}
    for name, (kernel, bias, _) in absorbed_modulation(programs, leaves, learned).items():
        precision = recipe.precision(f"{kind}.{name}")
        if precision.quantized:
            layer_leaves = (
                packed_leaves(*rounded[name], precision)
                if name in rounded
                else linear_leaves(kernel, precision)
            )
            quantized |= {f"{name}.{leaf}": value for leaf, value in layer_leaves.items()}
            quantized[f"{name}.bias"] = np.asarray(bias, np.float32)
        else:
            like = leaves[f"{name}.kernel"].dtype
            quantized[f"{name}.kernel"] = np.asarray(kernel.astype(like))
            quantized[f"{name}.bias"] = np.asarray(bias.astype(like))
    return {**{name: np.asarray(value) for name, value in kept.items()}, **quantized}
