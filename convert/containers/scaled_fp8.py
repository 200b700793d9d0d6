"""Float8 weights with a scale per tensor, as HunyuanVideo's repository stores them.

`NAME.pt` holds the weights, `NAME_map.pt` one scale for each float8 weight, under its module's name. The
weight is fp8.to(bfloat16) * scale.to(bfloat16) in bfloat16 (Tencent's `fp8_activation_dequant`).
"""

from pathlib import Path

import numpy as np

from convert.containers.float8 import BFLOAT16, FLOAT8, SCALES, dequantize, float8_names
from convert.containers.listing import first_few
from convert.containers.source import Source, TensorInfo
from convert.containers.torch_file import TorchFile
from qsjax.errors import CheckpointError


def scales_beside(path: Path) -> Path:
    """Where the scales of a `.pt` are, if it has any."""
    return path.with_name(f"{path.stem}_map{path.suffix}")


class ScaledFp8(Source):
    """A float8 `.pt` seen through its scales: every float8 weight reads as bfloat16.

    Takes over the given file and closes it, also when it fails.

    Raises:
        CheckpointError: no map beside the file, or scales that do not fit the weights one to one.
    """

    container = "torch .pt fp8"

    def __init__(self, weights: TorchFile) -> None:
        path = weights.files[0]
        beside = scales_beside(path)
        names = float8_names(weights)
        self._weights = weights
        try:
            if not beside.is_file():
                raise CheckpointError(
                    f"{path}: holds {len(names)} float8 tensors, and their scales are not there; put {beside.name} beside it"
                )
            with TorchFile(beside) as scales:
                self._scales = _scales(beside, names, scales)
        except BaseException:
            weights.close()
            raise
        self.files = (path, beside)
        self.ignored = weights.ignored
        self.tensors = {
            name: TensorInfo(info.shape, BFLOAT16) if name in self._scales else info
            for name, info in weights.tensors.items()
        }

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        stored = self._weights.read(name, rows)
        return dequantize(stored, self._scales[name]) if name in self._scales else stored

    def close(self) -> None:
        """Close the weights."""
        self._weights.close()


def _scales(path: Path, names: list[str], scales: Source) -> dict[str, float]:
    problems: list[str] = []
    factors: dict[str, float] = {}
    for name in names:
        module = name.removesuffix(".weight")
        info = scales.tensors.get(module)
        if info is None:
            problems.append(f"no scale for {name!r}")
        elif info.shape not in ((), (1,)) or info.dtype.kind in "iub" or info.dtype in FLOAT8:
            problems.append(f"the scale of {name!r} is {info.dtype} {info.shape}")
        else:
            factors[name] = float(scales.read(module).reshape(()).astype(np.float32))
            if factors[name] not in SCALES:
                problems.append(f"the scale of {name!r} is {factors[name]}")
    modules = {name.removesuffix(".weight") for name in names}
    problems += [
        f"a scale for {name!r}, which is not float8"
        for name in scales.tensors
        if name not in modules
    ]
    if problems:
        raise CheckpointError(
            f"{path}: does not fit its weights: {first_few(problems)}; download both files from one source"
        )
    return factors
