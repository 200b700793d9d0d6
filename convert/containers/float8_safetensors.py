"""Float8 in safetensors: plain weights, which are widened, and weights with scales, in the three spellings that files have.

    LAYER.scale_weight, LAYER.scale_input    ComfyUI's first, announced by a tensor `scaled_fp8`
    LAYER.weight_scale, LAYER.input_scale    ComfyUI's second, with `LAYER.comfy_quant` or a header that says the format
    LAYER.fp8_scale                          Kijai's, announced by a tensor `fp8_scale`

The weight is LAYER.weight times its scale: one number, or one for each output channel as [O, 1]. Where one linear layer has a
scale all have one; convolutions, norms and biases have none. Scales of inputs are for multiplying in float8, and are left out.
"""

import numpy as np

from convert.containers import comfy_quant
from convert.containers.float8 import BFLOAT16, FLOAT8, SCALES, float8_names, scaled, widened
from convert.containers.listing import first_few
from convert.containers.source import Source, TensorInfo
from qsjax.errors import CheckpointError

_SCALES = (".scale_weight", ".weight_scale", ".fp8_scale")
_INPUT_SCALES = (".scale_input", ".input_scale")


def with_float8(source: Source) -> Source:
    """The source, seen through `Float8Safetensors` if it has float8 or announces quantized layers.

    Takes over the given source and closes it if this fails.

    Raises:
        CheckpointError: see `Float8Safetensors`.
    """
    announced = comfy_quant.METADATA in source.metadata or any(
        name.endswith((*_SCALES, comfy_quant.SUFFIX)) or _is_marker(name) for name in source.tensors
    )
    if not announced and not float8_names(source):
        return source
    try:
        return Float8Safetensors(source)
    except BaseException:
        source.close()
        raise


class Float8Safetensors(Source):
    """Every float8 tensor reads as bfloat16, which is exact, or with a scale as float32, which is kept as bfloat16.

    Raises:
        CheckpointError: a layer is quantized otherwise, or scales and weights do not fit each other one to one.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.files, self.config = source.files, source.config
        formats = comfy_quant.float8_formats(source)
        self._scales = _scales(source, formats)
        markers, inputs = _markers(source), _with_suffix(source, _INPUT_SCALES)
        settings = {f"{layer}{comfy_quant.SUFFIX}" for layer in formats}
        scales = {name for name, _ in _with_suffix(source, _SCALES).values()}
        consumed = {*markers, *settings, *scales, *(name for name, _ in inputs.values())}
        self.ignored = (*source.ignored, *sorted(name for name, _ in inputs.values()))
        self.container = f"{source.container} {'scaled ' if self._scales else ''}fp8"
        self.tensors = {
            name: TensorInfo(info.shape, self._dtype(name, info))
            for name, info in source.tensors.items()
            if name not in consumed
        }

    def stored_dtype(self, name: str) -> np.dtype:
        """See `Source.stored_dtype`."""
        return BFLOAT16 if name in self._scales else self.tensors[name].dtype

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        stored = self._source.read(name, rows)
        if stored.dtype not in FLOAT8:
            return stored
        if name not in self._scales:
            return widened(stored)
        scale = self._scales[name]
        return scaled(stored, scale if rows is None or scale.size == 1 else scale[slice(*rows)])

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _dtype(self, name: str, info: TensorInfo) -> np.dtype:
        if info.dtype not in FLOAT8:
            return info.dtype
        return np.dtype(np.float32) if name in self._scales else BFLOAT16


def _scales(source: Source, formats: dict[str, str]) -> dict[str, np.ndarray]:
    """Float8 weight -> its scale in float32: of one element, or [O, 1, ...]."""
    found = _with_suffix(source, _SCALES)
    problems = [
        f"{layer!r} has two scales"
        for layer in found
        if sum(layer + suffix in source.tensors for suffix in _SCALES) > 1
    ]
    scales: dict[str, np.ndarray] = {}
    for layer, (name, weight) in found.items():
        info = source.tensors[name]
        channels = (weight.shape[0], *(1 for _ in weight.shape[1:])) if weight.shape else ()
        if info.dtype.kind in "iub" or info.dtype in FLOAT8:
            problems.append(f"the scale of {layer!r} is {info.dtype}")
        elif info.shape not in ((), (1,), (1, 1), channels):
            problems.append(
                f"the scale of {layer!r} has the shape {list(info.shape)}, its weight {list(weight.shape)}"
            )
        else:
            scale = source.read(name).astype(np.float32)
            if weight.dtype in FLOAT8:
                scales[f"{layer}.weight"] = scale
            elif not (scale == 1).all():
                problems.append(f"a scale for {layer!r}, whose weight is {weight.dtype}")
            wrong = [number for number in scale.reshape(-1).tolist() if number not in SCALES]
            problems += [f"the scale of {layer!r} is {number}" for number in wrong[:1]]
    for layer, name in formats.items():
        weight = source.tensors.get(f"{layer}.weight")
        if weight is not None and weight.dtype.name != name:
            problems.append(f"{layer!r} should be {name} and is {weight.dtype}")
    if found or formats or _markers(source):
        problems += [
            f"no scale for {name!r}"
            for name in float8_names(source)
            if name not in scales and len(source.tensors[name].shape) == 2
        ]
    if problems:
        raise CheckpointError(
            f"{source.files[0]}: its float8 weights and their scales do not fit: {first_few(problems)}; get the file again from its source"
        )
    return scales


def _with_suffix(source: Source, suffixes: tuple[str, ...]) -> dict[str, tuple[str, TensorInfo]]:
    """Layer -> the tensor of that layer with one of these suffixes, and what its weight is; layers without a weight are left."""
    found: dict[str, tuple[str, TensorInfo]] = {}
    for name in source.tensors:
        for suffix in suffixes:
            layer = name.removesuffix(suffix)
            if layer != name and (weight := source.tensors.get(f"{layer}.weight")) is not None:
                found[layer] = (name, weight)
    return found


def _markers(source: Source) -> list[str]:
    """The tensors of at most two elements that announce scales; only their being there counts."""
    return [name for name, info in source.tensors.items() if _is_marker(name) and info.nbytes <= 8]


def _is_marker(name: str) -> bool:
    return name == "fp8_scale" or name.split(".")[-1] == "scaled_fp8"
