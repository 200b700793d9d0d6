"""Float8 weights with a scale per tensor, as HunyuanVideo's repository stores them.

`NAME.pt` holds the weights, `NAME_map.pt` one scale for each float8 weight, under its module's name. The
weight is fp8.to(bfloat16) * scale.to(bfloat16) in bfloat16 (Tencent's `fp8_activation_dequant`).
"""

from pathlib import Path

import ml_dtypes
import numpy as np

from convert.containers.listing import first_few
from convert.containers.source import Source, TensorInfo
from convert.containers.torch_file import TorchFile
from qsjax.errors import CheckpointError
from qsjax.untrusted import Between

FLOAT8 = {np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)}
_SCALES = Between(1e-30, 1e30)
"""With these every float8 number is a normal or zero in bfloat16."""
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_CHUNK = 1 << 20  # table look-ups widen their indices to 8 bytes; this bounds them to 8 MB


def float8_names(source: Source) -> list[str]:
    """The tensors that mean nothing without a scale."""
    return [name for name, info in source.tensors.items() if info.dtype in FLOAT8]


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
            name: TensorInfo(info.shape, _BFLOAT16) if name in self._scales else info
            for name, info in weights.tensors.items()
        }

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        stored = self._weights.read(name, rows)
        return dequantize(stored, self._scales[name]) if name in self._scales else stored

    def close(self) -> None:
        """Close the weights."""
        self._weights.close()


def dequantize(stored: np.ndarray, scale: float) -> np.ndarray:
    """`stored` (float8, any shape) times `scale`, both rounded to bfloat16 first, in bfloat16.

    There are only 256 different products, so they are computed once and looked up.
    """
    factor = np.asarray(scale, np.float32).astype(_BFLOAT16)  # torch goes by way of float32 too
    codes = np.arange(256, dtype=np.uint8).view(stored.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        table = np.multiply(codes.astype(_BFLOAT16), factor)
    result = np.empty(stored.shape, _BFLOAT16)
    indices, flat = stored.reshape(-1).view(np.uint8), result.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        flat[start : start + _CHUNK] = table[indices[start : start + _CHUNK]]
    return result


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
            if factors[name] not in _SCALES:
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
