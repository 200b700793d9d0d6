"""PyTorch `.pt` files, read by offset without executing or mapping anything.

torch reads the pickle (weights_only, never anything else) under FakeTensorMode, which yields shapes,
strides and the place of each storage in the file, and touches no tensor data. `mmap=True` is not used:
torch maps privately and writable, which Linux refuses for a file larger than the memory (25.6 GB here), and
mapped pages would count as resident. The bytes are then read with the file's own offsets.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.containers.byte_ranges import ByteRanges
from convert.containers.listing import first_few
from convert.containers.source import Source, TensorInfo, begin_of
from convert.containers.torch_archive import Record, check_crc, read_archive
from convert.containers.torch_pickle import check_pickle
from qsjax.address import install
from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import shown

# Before 2.10 the weights_only unpickler itself could be abused (CVE-2025-32434, CVE-2026-24747).
_OLDEST_TORCH = (2, 10)
_WRAPPERS = ("model", "module", "state_dict", "ema")
# torch's names of the dtypes that are read; numpy knows them all once ml_dtypes is imported.
_DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    )
}


@dataclasses.dataclass(frozen=True)
class _Place:
    """`extent` elements from byte `offset` of the file on contain the tensor, in `record`; `strides` count elements."""

    offset: int
    extent: int
    strides: tuple[int, ...]
    record: Record | None = None


class TorchFile(Source):
    """A `.pt` as it is: a dict of tensors, or one such dict under `model`, `module`, `state_dict` or `ema`.

    Attributes:
        wrapper: the keys that were unwrapped, joined by dots, or "bare".

    Raises:
        InputError: the file cannot be opened, or torch is missing or too old.
        CheckpointError: damaged, not a state dict, or a pickle that asks for more than tensors.
    """

    def __init__(self, path: Path) -> None:
        self.files = (path,)
        self._file = ByteRanges(path)
        try:
            program, records = read_archive(self._file)
            check_pickle(program, str(path))
            tree, wrapper = _unwrap(_load(path))
            self.wrapper = wrapper
            self.container = f"torch .pt ({wrapper})"
            tensors, self.ignored = _tensors_of(path, tree)
            places = {name: _place(path, name, tensor, records) for name, tensor in tensors.items()}
            self.tensors = {name: info for name, (info, _) in places.items()}
            self._places = {name: place for name, (_, place) in places.items()}
            self._intact: set[Record] = set()
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """See `Source.read`."""
        info, place = self.tensors[name], self._places[name]
        if place.strides == _contiguous(info.shape) or 0 in info.shape:
            offset, shape = begin_of(info, rows)
            array = self._file.array(place.offset + offset, shape, info.dtype)
            self._check(place.record, array)
            return array
        self._check(place.record)
        stored = self._file.array(place.offset, (place.extent,), info.dtype)
        strides = tuple(stride * info.dtype.itemsize for stride in place.strides)
        whole = np.lib.stride_tricks.as_strided(stored, info.shape, strides)
        return np.ascontiguousarray(whole if rows is None else whole[rows[0] : rows[1]])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check(self, record: Record | None, array: np.ndarray | None = None) -> None:
        """Compare a record with its CRC-32 when the first of its tensors is read; most are all of theirs."""
        if record is None or record in self._intact:
            return
        whole = array is not None and array.nbytes == record.size
        check_crc(self._file, record, array if whole else None)
        self._intact.add(record)


def require_torch(path: Path) -> None:
    """Refuse a `.pt` where there is no PyTorch to read it safely.

    Args:
        path: of the file, for the message.

    Raises:
        InputError: torch is missing or too old.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading .pt files needs PyTorch; install it with {install('convert')}, or give safetensors"
        ) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST_TORCH:
        raise InputError(
            f"{path}: torch {torch.__version__} does not read untrusted .pt files safely; install torch 2.10 or newer, or give safetensors"
        )


def _load(path: Path) -> object:
    """What the pickle holds, with tensors that know their place in the file and have no data."""
    require_torch(path)
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # a malformed pickle makes torch raise nearly anything
        text = str(error).split("WeightsUnpickler error:")[-1].strip() or "?"
        reason = shown(f"{type(error).__name__}: {text.splitlines()[0]}", 200)
        raise CheckpointError(
            f"{path}: torch cannot read it as weights ({reason}); download it again or get safetensors"
        ) from error


def _unwrap(tree: object) -> tuple[object, str]:
    unwrapped: list[str] = []
    for key in _WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
            unwrapped.append(key)
    return tree, ".".join(unwrapped) or "bare"


def _tensors_of(path: Path, tree: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tensors of a state dict, and the names of plain figures beside them (a step counter)."""
    import torch

    if not isinstance(tree, dict):
        raise CheckpointError(
            f"{path}: holds a {type(tree).__name__} instead of a state dict; save model.state_dict()"
        )
    tensors: dict[str, Any] = {}
    ignored: list[str] = []
    problems: list[str] = []
    for name, value in tree.items():
        if not isinstance(name, str) or not name.isprintable():
            problems.append(f"the name {shown(name)}")
        elif isinstance(value, torch.Tensor):
            tensors[name] = value
        elif value is None or isinstance(value, bool | int | float | str):
            ignored.append(name)
        else:
            problems.append(f"{shown(name)} of type {type(value).__name__}")
    if problems or not tensors:
        contents = first_few(problems) or "no tensor at all"
        raise CheckpointError(
            f"{path}: is not a plain state dict, it holds {contents}; save only model.state_dict()"
        )
    return tensors, tuple(ignored)


def _place(
    path: Path, name: str, tensor: Any, records: dict[int, Record]
) -> tuple[TensorInfo, _Place]:
    """Shape, dtype and place of a tensor, checked against the archive's record of its storage."""
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    if (
        kind not in _DTYPES
        or tensor.layout is not torch.strided
        or tensor.is_quantized
        or tensor.is_neg()
        or not TensorInfo(tuple(map(int, tensor.shape)), _DTYPES[kind]).possible
    ):
        raise CheckpointError(
            f"{path}: tensor {shown(name)} is a {kind} tensor of a kind that is not read ({tensor.layout}); save it as dense {', '.join(_DTYPES)}"
        )
    info = TensorInfo(tuple(map(int, tensor.shape)), _DTYPES[kind])
    strides = tuple(map(int, tensor.stride()))
    storage = tensor.untyped_storage()
    start = storage._checkpoint_offset
    begin = int(tensor.storage_offset()) * info.dtype.itemsize
    extent = 1 + sum((n - 1) * s for n, s in zip(info.shape, strides, strict=True))
    if info.nbytes == 0:
        return info, _Place(0, 0, strides)
    record = records.get(start)
    if (
        record is None
        or min(begin, *strides, 0) < 0
        or int(storage.nbytes()) > record.size
        or begin + extent * info.dtype.itemsize > int(storage.nbytes())
        or info.nbytes > extent * info.dtype.itemsize  # a broadcast view would unfold here
    ):
        raise CheckpointError(
            f"{path}: tensor {shown(name)} of shape {info.shape} does not lie in the data stored for it; save the checkpoint again"
        )
    return info, _Place(record.offset + begin, extent, strides, record)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
