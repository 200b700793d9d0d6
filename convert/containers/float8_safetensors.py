"""Float8 in safetensors: plain weights, which are widened, and weights with scales, in the spellings of `float8_scales`.

The weight is LAYER.weight times its scale: one number, or one for each output channel as [O, 1]. Where one linear layer has a
scale all have one; convolutions, norms and biases have none. Scales of inputs are for multiplying in float8, and are left out.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from convert.containers import comfy_quant
from convert.containers.float8 import BFLOAT16, FLOAT8, float8_names, scaled, widened
from convert.containers.float8_scales import (
    INPUT_SCALES,
    WEIGHT_SCALES,
    is_marker,
    markers,
    misfit,
    with_suffix,
    wrong_values,
)
from convert.containers.listing import first_few
from convert.containers.source import Source, TensorInfo
from convert.finite import WrongWeights


def with_float8(source: Source) -> Source:
    """The source, seen through `Float8Safetensors` if it has float8 or announces quantized layers.

    Takes over the given source and closes it if this fails.

    Raises:
        CheckpointError: see `Float8Safetensors`; `WrongWeights` is one.
    """
    announced = comfy_quant.METADATA in source.metadata or any(
        name.endswith((*WEIGHT_SCALES, comfy_quant.SUFFIX)) or is_marker(name)
        for name in source.tensors
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

    Names, shapes and dtypes are looked at here, and so are values of scales and settings that are here; those of a file that is not
    fetched yet are looked at when their layer is read.

    Raises:
        CheckpointError: a layer is quantized otherwise.
        WrongWeights: scales and weights do not fit each other one to one.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.files, self.config = source.files, source.config
        self._found = with_suffix(source, WEIGHT_SCALES)
        self._scales: dict[str, np.ndarray] = {}
        self._scaled = {
            f"{layer}.weight"
            for layer, (_, weight) in self._found.items()
            if weight.dtype in FLOAT8
        }
        formats, settings = comfy_quant.float8_formats(source), comfy_quant.settings(source)
        self._unseen = {layer for layer, name in settings.items() if not source.is_here(name)}
        self._require_fit([*self._misfits({*formats, *settings}), *self._misnamed(formats)])
        inputs = [name for name, _ in with_suffix(source, INPUT_SCALES).values()]
        scales = [name for name, _ in self._found.values()]
        consumed = {*markers(source), *settings.values(), *scales, *inputs}
        self.ignored = (*source.ignored, *sorted(inputs))
        self.container = f"{source.container} {'scaled ' if self._scaled else ''}fp8"
        self.tensors = {
            name: TensorInfo(info.shape, self._dtype(name, info))
            for name, info in source.tensors.items()
            if name not in consumed
        }

    def stored_dtype(self, name: str) -> np.dtype:
        """See `Source.stored_dtype`."""
        return BFLOAT16 if name in self._scaled else self.tensors[name].dtype

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        stored, layer = self._source.read(name, rows), name.removesuffix(".weight")
        if layer in self._unseen and layer != name:
            self._see(layer)
        if stored.dtype not in FLOAT8:
            return stored
        if name not in self._scaled:
            return widened(stored)
        scale = self._scales[name]
        return scaled(stored, scale if rows is None or scale.size == 1 else scale[slice(*rows)])

    def is_here(self, name: str) -> bool:
        """See `Source.is_here`."""
        return all(map(self._source.is_here, self._read_for(name)))

    def files_of(self, name: str) -> tuple[Path, ...]:
        """See `Source.files_of`."""
        paths = (path for each in self._read_for(name) for path in self._source.files_of(each))
        return tuple(dict.fromkeys(paths))

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _read_for(self, name: str) -> tuple[str, ...]:
        """The tensors of the file that reading a tensor needs."""
        layer = name.removesuffix(".weight")
        if layer == name:
            return (name,)
        beside = (*(layer + suffix for suffix in WEIGHT_SCALES), layer + comfy_quant.SUFFIX)
        return (name, *(other for other in beside if other in self._source.tensors))

    def _dtype(self, name: str, info: TensorInfo) -> np.dtype:
        if info.dtype not in FLOAT8:
            return info.dtype
        return np.dtype(np.float32) if name in self._scaled else BFLOAT16

    def _misfits(self, announced: set[str]) -> list[str]:
        """What is wrong with the scales; those that are not here are left for later."""
        source = self._source
        problems = [
            f"{layer!r} has two scales"
            for layer in self._found
            if sum(layer + suffix in source.tensors for suffix in WEIGHT_SCALES) > 1
        ]
        for layer, (name, weight) in self._found.items():
            if (problem := misfit(layer, source.tensors[name], weight)) is not None:
                problems.append(problem)
            elif source.is_here(name):
                problems += self._take_scale(layer)
            else:
                self._unseen.add(layer)
        if self._found or announced or markers(source):
            problems += [
                f"no scale for {name!r}"
                for name in float8_names(source)
                if name not in self._scaled and len(source.tensors[name].shape) == 2
            ]
        return problems

    def _take_scale(self, layer: str) -> list[str]:
        name, weight = self._found[layer]
        scale = self._source.read(name).astype(np.float32)
        if weight.dtype in FLOAT8:
            self._scales[f"{layer}.weight"] = scale
        return wrong_values(layer, scale, weight)

    def _misnamed(self, formats: dict[str, str]) -> list[str]:
        tensors = self._source.tensors
        return [
            f"{layer!r} should be {name} and is {tensors[f'{layer}.weight'].dtype}"
            for layer, name in formats.items()
            if f"{layer}.weight" in tensors and tensors[f"{layer}.weight"].dtype.name != name
        ]

    def _see(self, layer: str) -> None:
        """Look at the values of a layer whose file was not here when it was opened."""
        name = comfy_quant.settings(self._source).get(layer)
        formats = {} if name is None else {layer: comfy_quant.read_format(self._source, name)}
        problems = self._take_scale(layer) if layer in self._found else []
        self._require_fit([*problems, *self._misnamed(formats)])
        self._unseen.discard(layer)

    def _require_fit(self, problems: Iterable[str]) -> None:
        listed = list(problems)
        if listed:
            raise WrongWeights(
                f"{self.files[0]}: its float8 weights and their scales do not fit: {first_few(listed)}; get the file again from its source"
            )
