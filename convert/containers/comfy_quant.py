"""What a file says of its quantized layers: ComfyUI's `LAYER.comfy_quant` tensors, and `_quantization_metadata` in the header.

Both are JSON, {"format": "float8_e4m3fn", ...}: the one for its layer, the other under {"layers": {LAYER: ...}}. Of the formats
float8 is read; the others (nvfp4, int8) are refused by name, and so is whatever else would change the weights.
"""

from collections.abc import Mapping
from typing import Any

from convert.containers.source import Source
from qsjax.errors import CheckpointError
from qsjax.untrusted import parse_object, shown

SUFFIX = ".comfy_quant"
METADATA = "_quantization_metadata"
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_HARMLESS = frozenset({"format", "full_precision_matrix_mult", "orig_dtype", "orig_shape"})
"""How a layer is computed, and what it was before: not what its weights are."""
_LARGEST = 1 << 16
"""Bytes of the JSON of one layer; it has about thirty."""


def float8_formats(source: Source) -> dict[str, str]:
    """Layer -> "float8_e4m3fn" or "float8_e5m2", as far as the source says it.

    Raises:
        CheckpointError: it is no JSON, or a layer is quantized otherwise.
    """
    place = str(source.files[0])
    announced: dict[str, Any] = {}
    if METADATA in source.metadata:
        what = f"{place}: {METADATA}"
        layers = parse_object(source.metadata[METADATA].encode(), what).get("layers")
        if not isinstance(layers, Mapping):
            raise CheckpointError(f"{what} names no layers; get the file again from its source")
        announced |= layers
    for name, info in source.tensors.items():
        if name.endswith(SUFFIX):
            if info.dtype.name != "uint8" or info.nbytes > _LARGEST:
                raise CheckpointError(
                    f"{place}: {shown(name)} is {info.dtype} {info.shape} and should be JSON in at most {_LARGEST} uint8; "
                    f"get the file again from its source"
                )
            content = source.read(name).tobytes()
            announced[name.removesuffix(SUFFIX)] = parse_object(content, f"{place}: {shown(name)}")
    return {layer: _format(place, layer, settings) for layer, settings in announced.items()}


def _format(place: str, layer: str, settings: object) -> str:
    settings = settings if isinstance(settings, Mapping) else {"format": settings}
    name = settings.get("format")
    if name not in _FORMATS:
        raise CheckpointError(
            f"{place}: layer {shown(layer)} is quantized as {shown(name, 40)}, and of ComfyUI's formats {' and '.join(_FORMATS)} "
            f"are read; use the bfloat16 or the fp8 file of the model"
        )
    if surplus := sorted(set(settings) - _HARMLESS):
        raise CheckpointError(
            f"{place}: layer {shown(layer)} is {name} with {shown(surplus[0])}, which is not known here and may change the weights; "
            f"use the bfloat16 file of the model"
        )
    return str(name)
