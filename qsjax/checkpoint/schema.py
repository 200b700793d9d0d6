"""What a manifest may say: its types, names, shapes and sums, checked before anything is made of them.

Keys that are not known here stay in the data, for a newer qsjax may have written them; nothing reads them.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from qsjax.errors import CheckpointError
from qsjax.untrusted import require_name, require_relative, shown

BYTES = {
    **dict.fromkeys(("bool", "int4", "uint4", "int8", "uint8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
}
"""The dtypes of stored leaves, and the bytes of an element in the host's memory."""
_LARGEST = 1 << 44
"""Bytes of a leaf, and of all leaves; 17 TB."""
_LARGEST_FILE = 64 << 20
_AXES = 8
_RESERVED = frozenset({"identity", "journal", "manifest.json", "tokenizers"})
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SOURCE: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "container", "layout", "prefix", "origin"), str),
    **dict.fromkeys(("tensors", "bytes", "used"), int),
    **dict.fromkeys(("ignored", "lora"), list),
    "sha256": dict,
}


class Leaf(TypedDict):
    """A stored piece: a parameter, or rows of a large one."""

    shape: list[int]
    dtype: str
    sha256: str
    rows: NotRequired[list[int]]


class StoredFile(TypedDict):
    """A plain file (of a tokenizer)."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StoredComponent:
    """A model's entry in the manifest; absent fields have the defaults here.

    Attributes:
        config: of the model.
        items: item -> leaf -> what is stored.
        recipe: by which a transformer is quantized, as plain data; None in full precision.
        method: of `qsjax convert --quantize` that quantized it; None if calibration did, or nothing.
        clipped: whether its quantized activations have a learned clip.
        calibration: how it was calibrated; None if it was not.
        storage: "int8" if the linear layers of a text encoder are stored in 8 bits; None as in the source.
        parameters: their number.
        bytes: of all leaves.
        source: the PyTorch files it was converted from.
        seconds: that its conversion took.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    items: Mapping[str, Mapping[str, Leaf]] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    method: str | None = None
    clipped: bool = False
    calibration: Mapping[str, Any] | None = None
    storage: str | None = None
    parameters: int = 0
    bytes: int = 0
    source: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "config": dict,
    "items": dict,
    "recipe": (dict, type(None)),
    "method": (str, type(None)),
    "clipped": bool,
    "calibration": (dict, type(None)),
    "storage": (str, type(None)),
    "parameters": int,
    "bytes": int,
    "source": dict,
    "seconds": (int, float),
}
_TABLES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(
        ("components", "files", "scheduler", "generation", "tiling", "libraries"), dict
    ),
    "prompt": (dict, type(None)),
    "origin": (str, type(None)),
    "identity": str,
    "peak_memory_bytes": int,
}


def leaf_bytes(leaf: Leaf) -> int:
    """Bytes of a stored piece in the host's memory."""
    return math.prod(leaf["shape"]) * BYTES[leaf["dtype"]]


def check_manifest(
    data: Mapping[str, Any], source: str
) -> tuple[dict[str, StoredComponent], dict[str, StoredFile]]:
    """The components and the plain files of a manifest.

    Args:
        data: the parsed JSON.
        source: the file, for messages.

    Raises:
        CheckpointError: a field has another type, a name leads elsewhere, a number is out of bounds, or a leaf is there twice.
    """
    _check_types(data, _TABLES, source)
    for name, version in data.get("libraries", {}).items():
        _require(version, str, f"{source}: libraries {shown(name)}")
    components = {
        name: _component(name, raw, source) for name, raw in data.get("components", {}).items()
    }
    total = sum(
        leaf_bytes(leaf)
        for component in components.values()
        for leaves in component.items.values()
        for leaf in leaves.values()
    )
    if total > _LARGEST:
        raise _refused(f"{source}: the size of all leaves", total, f"at most {_LARGEST} bytes")
    taken = {name.lower() for name in components} | (_RESERVED - {"tokenizers"})
    files: dict[str, StoredFile] = {}
    for path, raw in data.get("files", {}).items():
        what = f"{source}: a file"
        if require_relative(path, what).split("/")[0].lower() in taken or "/" not in path:
            raise _refused(f"{what}'s path", path, "one in a folder of its own")
        what = f"{source}: file {path}"
        _require(raw, dict, what)
        _natural(raw.get("bytes"), f"{what}: bytes", _LARGEST_FILE)
        _digest(raw.get("sha256"), what)
        files[path] = raw
    return components, files


def check_leaves(leaves: object, what: str) -> dict[str, Leaf]:
    """The leaves of an item.

    Raises:
        CheckpointError: as `check_manifest`.
    """
    _require(leaves, dict, what)
    assert isinstance(leaves, dict)
    if not leaves:
        raise _refused(what, leaves, "at least one leaf")
    for name, leaf in leaves.items():
        _check_leaf(leaf, f"{what}, leaf {require_name(name, f'{what}: a leaf')}")
    return leaves


def _component(name: str, raw: object, source: str) -> StoredComponent:
    what = f"{source}: component {require_name(name, f'{source}: a component')}"
    if name.lower() in _RESERVED:
        raise _refused(f"{what}: its name", name, "the name of a model")
    _require(raw, dict, what)
    assert isinstance(raw, dict)
    _check_types(raw, _FIELDS, what)
    _check_types(raw.get("source", {}), _SOURCE, f"{what}: source")
    for ignored in raw.get("source", {}).get("ignored", []):
        _require(ignored, str, f"{what}: source: ignored")
    if raw.get("storage") not in (None, "int8"):
        raise _refused(f"{what}: storage", raw["storage"], "int8, or none")
    if not raw.get("items"):
        raise _refused(f"{what}: items", raw.get("items"), "at least one")
    whole: set[str] = set()
    ranges: dict[str, list[tuple[int, int]]] = {}
    for item, leaves in raw["items"].items():
        require_name(item, f"{what}: an item")
        for leaf, spec in check_leaves(leaves, f"{what}: item {item}").items():
            rows = spec.get("rows")
            if leaf in whole or (rows is None and leaf in ranges):
                raise _refused(f"{what}: leaf {leaf}", "there twice", "each leaf once")
            if rows is None:
                whole.add(leaf)
            else:
                ranges.setdefault(leaf, []).append((rows[0], rows[1]))
    for leaf, pieces in ranges.items():
        pieces.sort()
        if any(second < stop for (_, stop), (second, _) in itertools.pairwise(pieces)):
            raise _refused(f"{what}: leaf {leaf}", "rows that are there twice", "each row once")
    known: dict[str, Any] = {key: raw[key] for key in _FIELDS if key in raw}
    known["seconds"] = float(known.get("seconds", 0.0))
    return StoredComponent(**known)


def _check_leaf(leaf: object, what: str) -> None:
    _require(leaf, dict, what)
    assert isinstance(leaf, dict)
    shape, dtype, rows = leaf.get("shape"), leaf.get("dtype"), leaf.get("rows")
    if not isinstance(shape, list) or len(shape) > _AXES:
        raise _refused(f"{what}: shape", shape, f"a list of at most {_AXES} lengths")
    for length in shape:
        _natural(length, f"{what}: shape")
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise _refused(f"{what}: dtype", dtype, f"one of {', '.join(BYTES)}")
    # Zeros are no way around the bound: every axis is a natural number below it.
    if math.prod(max(length, 1) for length in shape) * BYTES[dtype] > _LARGEST:
        raise _refused(f"{what}: shape", shape, f"at most {_LARGEST} bytes")
    _digest(leaf.get("sha256"), what)
    if "rows" in leaf:
        if not isinstance(rows, list) or len(rows) != 2 or not shape:
            raise _refused(f"{what}: rows", rows, "the first and the end")
        for row in rows:
            _natural(row, f"{what}: rows")
        if not rows[0] < rows[1] or rows[1] - rows[0] != shape[0]:
            raise _refused(f"{what}: rows", rows, f"a range of {shape[0]}")


def _check_types(
    values: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]], what: str
) -> None:
    for name, kind in types.items():
        if name not in values:
            continue
        if kind is int:
            _natural(values[name], f"{what}: {name}")
        else:
            _require(values[name], kind, f"{what}: {name}")


def _require(value: object, kind: type | tuple[type, ...], what: str) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = (_JSON[one] for one in kinds)
        raise _refused(what, value, " or ".join(names))


_JSON = {
    dict: "an object", list: "a list", str: "text", bool: "true or false", int: "an integer", float: "a number",
    type(None): "null",
}  # fmt: skip


def _natural(value: object, what: str, largest: int = _LARGEST) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise _refused(what, value, f"an integer from 0 to {largest}")


def _digest(value: object, what: str) -> None:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise _refused(f"{what}: sha256", value, "64 hexadecimal digits")


def _refused(what: str, found: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{what} is {shown(found)}, expected {expected}; get the checkpoint again, or convert it again"
    )
