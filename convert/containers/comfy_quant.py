"""What a file says of its quantized layers: ComfyUI's `LAYER.comfy_quant` tensors, and `_quantization_metadata` in the header.

Both are JSON, {"format": "float8_e4m3fn", ...}: the one for its layer, the other under {"layers": {LAYER: ...}}. Of the formats
float8 is read; the others (nvfp4, int8) are refused by name, and so is whatever else would change the weights.
"""

from collections.abc import Mapping

from convert.containers.source import Source
from convert.finite import WrongWeights
from qsjax.errors import CheckpointError
from qsjax.untrusted import parse_object, shown

SUFFIX = ".comfy_quant"
METADATA = "_quantization_metadata"
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_HARMLESS = frozenset({"format", "full_precision_matrix_mult", "orig_dtype", "orig_shape"})
"""How a layer is computed, and what it was before: not what its weights are."""
_LARGEST = 1 << 16
"""Bytes of the JSON of one layer; it has about thirty."""


def settings(source: Source) -> dict[str, str]:
    """Layer -> the name of its `comfy_quant` tensor."""
    return {name.removesuffix(SUFFIX): name for name in source.tensors if name.endswith(SUFFIX)}


def float8_formats(source: Source) -> dict[str, str]:
    """Layer -> "float8_e4m3fn" or "float8_e5m2", as far as the source says it and is here.

    Raises:
        CheckpointError: it is no JSON, or a layer is quantized otherwise.
    """
    formats: dict[str, str] = {}
    beside = settings(source)
    if METADATA in source.metadata:
        what = f"{source.files[0]}: {METADATA}"
        layers = parse_object(source.metadata[METADATA].encode(), what).get("layers")
        if not isinstance(layers, Mapping):
            raise CheckpointError(f"{what} names no layers; get the file again from its source")
        formats |= {
            layer: _format(str(source.files[0]), layer, announced)
            for layer, announced in layers.items()
            if layer not in beside
        }
    for layer, name in beside.items():
        _require_size(source, name)
        if source.is_here(name):
            formats[layer] = read_format(source, name)
    return formats


def read_format(source: Source, name: str) -> str:
    """What a `comfy_quant` tensor says of its layer.

    Raises:
        WrongWeights: as `float8_formats`.
    """
    place, content = str(source.files[0]), source.read(name).tobytes()
    try:
        announced = parse_object(content, f"{place}: {shown(name)}")
        return _format(place, name.removesuffix(SUFFIX), announced)
    except CheckpointError as error:
        raise WrongWeights(f"{error}") from error


def _require_size(source: Source, name: str) -> None:
    info = source.tensors[name]
    if info.dtype.name != "uint8" or info.nbytes > _LARGEST:
        raise CheckpointError(
            f"{source.files[0]}: {shown(name)} is {info.dtype} {info.shape} and should be JSON in at most {_LARGEST} uint8; "
            f"get the file again from its source"
        )


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
