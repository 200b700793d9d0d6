"""GGUF files of strangers: headers that announce what is not there, types that are none, numbers that are none."""

import random
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import convert_models as models
import numpy as np
import pytest
from gguf_files import F32, I32, LIST, TEXT, U32, gguf, stored, text
from hostile.refusals import assert_refused

from convert.__main__ import main
from convert.containers import open_source
from qsjax.errors import QsjaxError

pytestmark = pytest.mark.hostile

Tensors = dict[str, tuple[int, tuple[int, ...], bytes]]
PATCH, LAYER = "img_in.proj.weight", "double_blocks.0.img_mlp.fc1.weight"
FIELDS = (("general.architecture", TEXT, "hyvid"),)


@cache
def sound() -> Tensors:
    tensors: Tensors = {}
    for name, tensor in models.tencent().items():
        kind = "Q8_0" if "_blocks" in name and tensor.ndim == 2 else "F32"
        tensors[name] = stored(kind, tuple(tensor.shape), tensor.float().numpy())[0]
    return tensors


def head(tensors: int = 0, fields: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def info(shape: tuple[int, ...], kind: int = 0, offset: int = 0, name: str = "a") -> bytes:
    """A file of one tensor."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return head(1, 0, text(name) + dimensions + struct.pack("<IQ", kind, offset)) + bytes(64)


def put(name: str, tensor: tuple[int, tuple[int, ...], bytes] | None) -> Callable[[], bytes]:
    """A sound file in which one tensor is another; None takes it away."""

    def make() -> bytes:
        tensors = {key: value for key, value in sound().items() if key != name}
        return gguf(tensors if tensor is None else tensors | {name: tensor}, FIELDS)

    return make


def said(key: str, kind: int, content: object) -> Callable[[], bytes]:
    return lambda: gguf(sound(), (*FIELDS, (key, kind, content)))


def key(kind: int, rest: bytes, name: str = "k") -> Callable[[], bytes]:
    """A header with one entry of the metadata."""
    return lambda: head(0, 1, text(name) + struct.pack("<I", kind) + rest)


def scale(value: float) -> Callable[[], bytes]:
    """A layer of Q8_0 with one scale in float16."""
    blocks = np.zeros((128, 34), np.uint8)
    blocks[0, :2] = np.array([value], np.float16).view(np.uint8)
    blocks[0, 2] = 1
    return put(LAYER, (8, (128, 32), blocks.tobytes()))


def original(shape: list[int]) -> Callable[[], bytes]:
    return said(f"comfy.gguf.orig_shape.{PATCH}", LIST, (I32, shape))


HUGE = 2**64 - 1
FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "three bytes": lambda: b"GGU",
    "magic alone": lambda: b"GGUF",
    "another magic": lambda: b"ggml" + gguf(sound())[4:],
    "version 1": lambda: gguf(sound(), version=1),
    "version 2": lambda: gguf(sound(), version=2),
    "big-endian": lambda: gguf(sound(), version=3 << 24),
    "tensors without end": lambda: head(HUGE),
    "metadata without end": lambda: head(0, HUGE),
    "65,000 tensors that are not there": lambda: head(65_000),
    "no tensors": lambda: head(),
    "a key without end": lambda: head(0, 1, struct.pack("<Q", HUGE)),
    "a key of nothing": key(U32, bytes(4), ""),
    "a key of escapes": key(U32, bytes(4), "\x1b[31m"),
    "a key that is no text": lambda: head(0, 1, text(b"\xff\xfe") + bytes(8)),
    "a text without end": key(TEXT, struct.pack("<Q", HUGE)),
    "a type of value": key(77, bytes(8)),
    "a list without end": key(LIST, struct.pack("<IQ", F32, HUGE)),
    "texts without end": key(LIST, struct.pack("<IQ", TEXT, HUGE) + bytes(99)),
    "lists of lists": key(LIST, struct.pack("<IQ", LIST, 1) + bytes(99)),
    "a key twice": lambda: gguf(sound(), FIELDS * 2),
    "alignment 0": said("general.alignment", U32, 0),
    "alignment 3": said("general.alignment", U32, 3),
    "alignment 2^31": said("general.alignment", U32, 2**31),
    "alignment 32.0": said("general.alignment", F32, 32.0),
    "alignment in words": said("general.alignment", TEXT, "32"),
    "another alignment": said("general.alignment", U32, 4096),
    "one of three parts": said("split.count", U32, 3),
    "a tensor twice": lambda: gguf(sound()).replace(text("img_in.proj.bias"), text("img_in.proj.bia2"), 1).replace(text("time_in.mlp.0.bias"), text("time_in.mlp.2.bias"), 1),
    "a name of escapes": lambda: info((4,), name="\x1b[31m"),
    "a long name": lambda: info((4,), name="a" * 5000),
    "a thousand dimensions": lambda: info((1,) * 1000),
    "a shape beyond 64 bits": lambda: info((HUGE,) * 4),
    "a shape beyond the file": lambda: info((1 << 40,)),
    "nothing times much": lambda: info((0, HUGE, HUGE)),
    "no whole blocks": lambda: info((33,), 8),
    "an unknown type": lambda: info((32,), 999),
    "a type of the past": lambda: info((32,), 4),
    "a type that nobody dequantizes": lambda: info((256,), 15),
    "an offset beyond": lambda: info((4,), 0, 1 << 62),
    "an offset that is not aligned": lambda: info((4,), 0, 4),
    "a hole": lambda: info((4,), 0, 32),
    "truncated header": lambda: gguf(sound(), FIELDS)[:700],
    "truncated data": lambda: gguf(sound(), FIELDS)[:-100],
    "bytes at the end": lambda: gguf(sound(), FIELDS) + bytes(100),
    "a scale NaN": scale(np.nan),
    "an infinite scale": scale(np.inf),
    "numbers NaN": put("img_in.proj.bias", (0, (32,), np.full(32, np.nan, np.float32).tobytes())),
    "integers": put("img_in.proj.bias", (26, (32,), bytes(128))),
    "a layer is absent": put(LAYER, None),
    "a layer of another shape": put(LAYER, (0, (32, 128), bytes(4 * 32 * 128))),
    "a layer of another model": put("double_blocks.9.img_mlp.fc1.weight", (0, (4,), bytes(16))),
    "an original shape of other size": original([32, 4, 1, 2, 3]),
    "a negative original shape": original([-32, -4, 1, 2, 2]),
    "an original shape in words": said(f"comfy.gguf.orig_shape.{PATCH}", TEXT, "32,4,1,2,2"),
    "an original shape of nothing": original([]),
    "a transposed patch kernel": put(PATCH, (0, (16, 32), bytes(4 * 512))),
    "a LLaMA": lambda: gguf({"token_embd.weight": (0, (4, 4), bytes(64))}, (("general.architecture", TEXT, "llama"),)),
    "a file of JSON": lambda: b'{"a": 1}',
    "a safetensors file": lambda: (8).to_bytes(8, "little") + b"{}      ",
}  # fmt: skip


def refuse(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused([str(folder / "a.gguf"), str(folder / "out"), *arguments], folder, capsys)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.gguf").write_bytes(FILES[name]())
    refuse(["--config", str(models.config_file(tmp_path))], tmp_path, capsys)


def test_a_file_that_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf(sound(), FIELDS))
    config = models.config_file(tmp_path)
    assert main([str(tmp_path / "a.gguf"), str(tmp_path / "out"), "--config", str(config)]) == 0


@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_of_a_header(seed: int, tmp_path: Path) -> None:
    """It opens, or is refused in one of our sentences; nothing large is allocated."""
    chance, path = random.Random(seed), tmp_path / "a.gguf"
    whole = gguf(sound(), (*FIELDS, ("tokens", LIST, (TEXT, ["a", "b"]))))
    refused: list[str] = []
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(3500)] = chance.choice((0, 1, 255, chance.randrange(256)))
        path.write_bytes(data)
        try:
            open_source(path, "dit").close()
        except QsjaxError as error:
            refused.append(str(error))
    assert refused
    assert all(map(str.isprintable, refused))
