"""Weights of strangers: programs that allocate, damaged bits, headers that expand, and files that are none."""

import io
import json
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from convert.containers import open_source
from convert.containers.torch_pickle import check_pickle
from qsjax.errors import CheckpointError, QsjaxError

pytestmark = pytest.mark.hostile

P = pickle
GIB8 = b"\x8a\x05" + (8 << 30).to_bytes(5, "little")  # LONG1


def glob(module: str, name: str) -> bytes:
    return P.GLOBAL + f"{module}\n{name}\n".encode()


def call(module: str, name: str, arguments: bytes) -> bytes:
    return glob(module, name) + arguments + P.REDUCE


def text(value: str) -> bytes:
    return P.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def program(body: bytes) -> bytes:
    """A dictionary with one value, made by these opcodes."""
    return P.PROTO + b"\x02" + P.EMPTY_DICT + text("w") + body + P.SETITEM + P.STOP


def nested(count: int) -> bytes:
    """A tuple whose parts are each twice the tuple before: 2^count, in a few bytes."""
    body = P.EMPTY_TUPLE
    for k in range(count):
        body += P.BINPUT + bytes([k]) + P.BINGET + bytes([k]) + P.TUPLE2
    return body


STORAGE = (
    P.MARK + text("storage") + glob("torch", "FloatStorage") + text("0") + text("cpu") + P.BININT1 + b"\x01" + P.TUPLE
    + P.BINPERSID
)  # fmt: skip
ONE = GIB8 + P.TUPLE1
PROGRAMS = {
    "bytearray": program(call("builtins", "bytearray", ONE)),
    "bytearray of Python 2": program(call("__builtin__", "bytearray", ONE)),
    "bytes": program(call("builtins", "bytes", ONE)),
    "encode": program(call("_codecs", "encode", text("a") + text("latin1") + P.TUPLE2)),
    "set": program(call("builtins", "set", P.EMPTY_TUPLE)),
    "complex": program(call("builtins", "complex", ONE)),
    "range": program(call("builtins", "range", ONE)),
    "a storage": program(call("torch.storage", "UntypedStorage", ONE)),
    "a typed storage": program(call("torch.storage", "TypedStorage", ONE)),
    "a float storage": program(call("torch", "FloatStorage", ONE)),
    "a tensor": program(call("torch", "Tensor", ONE)),
    "a float tensor": program(call("torch", "FloatTensor", ONE)),
    "a new tensor": program(glob("torch", "Tensor") + ONE + P.NEWOBJ),
    "a new storage": program(glob("torch.storage", "UntypedStorage") + ONE + P.NEWOBJ),
    "a parameter": program(call("torch.nn.parameter", "Parameter", ONE)),
    "zeros": program(call("torch", "zeros", ONE)),
    "a counter": program(call("collections", "Counter", ONE)),
    "a device": program(call("torch", "device", text("cuda") + P.TUPLE1)),
    "a size of no tuple": program(call("torch", "Size", GIB8)),
    "an ordered dictionary of a list": program(call("collections", "OrderedDict", nested(30) + P.TUPLE1)),
    "a subclass": program(call("torch._tensor", "_rebuild_from_type_v2", ONE)),
    "a tensor without storage": program(call("torch._utils", "_rebuild_meta_tensor_no_storage", ONE)),
    "a quantized tensor": program(call("torch._utils", "_rebuild_qtensor", ONE)),
    "rebuild of a number": program(glob("torch._utils", "_rebuild_tensor_v2") + GIB8 + P.REDUCE),
    "rebuild of nothing": program(call("torch._utils", "_rebuild_tensor_v2", P.EMPTY_TUPLE)),
    "calls a call": program(call("collections", "OrderedDict", P.EMPTY_TUPLE) + P.EMPTY_TUPLE + P.REDUCE),
    "calls text": program(text("bytearray") + ONE + P.REDUCE),
    "state of a tensor": program(STORAGE + ONE + P.BUILD),
    "state of a dictionary": program(P.EMPTY_DICT + P.EMPTY_DICT + P.BUILD),
    "a key of 2^40 parts": program(P.EMPTY_DICT + nested(40) + P.NONE + P.SETITEM),
    "a key that is a list": program(P.EMPTY_DICT + P.EMPTY_LIST + P.NONE + P.SETITEM),
    "keys that are tuples": program(P.EMPTY_DICT + P.MARK + nested(40) + P.NONE + P.SETITEMS),
    "an item of a tuple": program(P.EMPTY_TUPLE + text("a") + P.NONE + P.SETITEM),
    "appends to a dictionary": program(P.EMPTY_DICT + P.NONE + P.APPEND),
    "a storage by text": program(text("0") + P.BINPERSID),
    "a storage by name": program(P.PERSID + b"0\n"),
    "a long of 16 MB": program(P.LONG4 + struct.pack("<I", 1 << 20) + bytes(1 << 20)),
    "a long of a megabyte that is not there": program(P.LONG4 + struct.pack("<I", 1 << 30)),
    "a negative long": program(P.LONG4 + struct.pack("<i", -1)),
    "a long of 255 bytes": program(P.LONG1 + b"\xff" + b"\x7f" * 255),
    "digits": program(P.LONG + b"9" * 100_000 + b"L\n"),
    "an integer of digits": program(P.INT + b"9" * 100_000 + b"\n"),
    "bytes of 8 GB": program(P.BINBYTES8 + struct.pack("<Q", 8 << 30)),
    "bytearray of 8 GB": program(P.BYTEARRAY8 + struct.pack("<Q", 8 << 30)),
    "text of 8 GB": program(P.BINUNICODE8 + struct.pack("<Q", 8 << 30)),
    "text of 4 GB": program(P.BINUNICODE + struct.pack("<I", 0xFFFFFFFF)),
    "bytes of 4 GB": program(P.BINBYTES + struct.pack("<I", 0xFFFFFFFF)),
    "short bytes": program(P.SHORT_BINBYTES + b"\x01a"),
    "text of bytes": program(P.BINUNICODE + struct.pack("<I", 2) + b"\xff\xfe"),
    "a frame": P.PROTO + b"\x04" + P.FRAME + struct.pack("<Q", 1 << 40) + P.NONE + P.STOP,
    "a memo that is not there": program(P.BINGET + b"\x05"),
    "a memo of nothing": P.PROTO + b"\x02" + P.BINPUT + b"\x00" + P.STOP,
    "memoize": program(P.NONE + P.MEMOIZE),
    "an extension": program(P.EXT1 + b"\x01"),
    "an instance": program(P.MARK + P.INST + b"builtins\nbytearray\n"),
    "an object": program(P.MARK + glob("builtins", "bytearray") + GIB8 + P.OBJ),
    "a stack global": program(text("builtins") + text("bytearray") + P.STACK_GLOBAL),
    "a global in two words": program(glob("torch FloatStorage", "x")),
    "a global of bytes": program(P.GLOBAL + b"torch\n\xff\n"),
    "a buffer": program(P.NEXT_BUFFER),
    "pops": program(P.NONE + P.POP),
    "pops a mark": program(P.MARK + P.POP_MARK),
    "a set": program(P.EMPTY_SET),
    "a frozen set": program(P.MARK + P.FROZENSET),
    "no stop": P.PROTO + b"\x02" + P.EMPTY_DICT,
    "nothing": b"",
    "only stop": P.STOP,
    "a mark alone": program(P.MARK),
    "a tuple without a mark": program(P.TUPLE),
    "an unknown opcode": program(b"\xfe"),
    "17 MB": program(P.NONE * (17 << 20)),
}  # fmt: skip


def saved(path: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    torch.save(tensors or {"w": torch.arange(64.0)}, path)
    return path


def with_pickle(path: Path, content: bytes) -> Path:
    """A sound archive with another program in it."""
    with zipfile.ZipFile(saved(path)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)
    return path


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_is_no_table_of_tensors(tmp_path: Path, name: str) -> None:
    path = with_pickle(tmp_path / "a.pt", PROGRAMS[name])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"a\.pt: ") as caught:
            open_source(path, "dit")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_program_of_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.containers.torch_pickle._MOST_OPCODES", 1000)
    check_pickle(program(P.EMPTY_LIST + (P.NONE + P.APPEND) * 490), "it")
    with pytest.raises(CheckpointError, match="has more than 1000 steps"):
        check_pickle(program(P.EMPTY_LIST + (P.NONE + P.APPEND) * 500), "it")


def test_what_torch_saves_is_taken() -> None:
    kinds = (
        torch.float32,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.uint16,
        torch.int64,
        torch.bool,
    )
    tensors = {str(kind): torch.ones(3).to(kind) for kind in kinds}
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    for content in (
        tensors,
        module.state_dict(),
        {"module": dict(module.named_parameters()), "step": 3, "note": "é", "size": torch.Size([1, 2])},
        {"ema": {"a": tensors["torch.float32"], "b": [1, 2.5, (None, True)]}},
    ):  # fmt: skip

        class Opcodes(pickle.Pickler):
            def persistent_id(self, obj: object) -> object:
                if isinstance(obj, torch.storage.TypedStorage | torch.UntypedStorage):
                    return ("storage", torch.FloatStorage, "0", "cpu", 3)
                return None

        out = io.BytesIO()
        Opcodes(out, protocol=2).dump(content)
        check_pickle(out.getvalue(), "it")


PIECES = (
    P.NONE, P.MARK, P.EMPTY_TUPLE, P.EMPTY_LIST, P.EMPTY_DICT, P.TUPLE, P.TUPLE1, P.TUPLE2, P.TUPLE3, P.APPEND, P.APPENDS,
    P.SETITEM, P.SETITEMS, P.REDUCE, P.BUILD, P.NEWOBJ, P.BINPERSID, P.BINPUT + b"\0", P.BINGET + b"\0", P.BININT1 + b"\7",
    text("a"), GIB8, STORAGE, glob("collections", "OrderedDict"), glob("torch", "Size"), glob("torch", "FloatStorage"),
    glob("torch.storage", "UntypedStorage"), glob("torch._utils", "_rebuild_tensor_v2"), glob("builtins", "bytearray"),
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_any_program_is_walked_or_refused_in_one_sentence(pieces: list[bytes]) -> None:
    content = P.PROTO + b"\x02" + b"".join(pieces) + P.STOP
    try:
        check_pickle(content, "it")
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
        assert not {P.NEWOBJ, glob("builtins", "bytearray")} & set(pieces)
    assert message == message.encode("ascii", "backslashreplace").decode()
    assert len(message) < 400


def test_every_bit_of_a_file_counts(tmp_path: Path) -> None:
    """A flipped bit is refused, or is where nothing is read from: no other weights come of it."""
    path, expected = saved(tmp_path / "a.pt"), np.arange(64, dtype=np.float32)
    whole, messages = path.read_bytes(), []
    for bit in range(0, 8 * len(whole), 37):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            with open_source(path, "dit") as source:
                assert list(source.tensors) == ["w"]
                np.testing.assert_array_equal(source.read("w"), expected)
        except QsjaxError as error:
            messages.append(str(error))
    assert len(messages) > 60
    assert all(message.isprintable() for message in messages)


@pytest.mark.parametrize("how", ["all", "rows", "a view", "strides"])
def test_a_damaged_record_is_refused_however_it_is_read(tmp_path: Path, how: str) -> None:
    base = torch.arange(64.0).reshape(8, 8)
    tensor = {"a view": base[2:4], "strides": base.T}.get(how, base)
    path = tmp_path / "a.pt"
    torch.save({"w": tensor, "other": torch.ones(5)}, path)
    content = bytearray(path.read_bytes())
    place = content.find(base.numpy().tobytes())
    content[place + 100] ^= 1
    path.write_bytes(content)
    with open_source(path, "dit") as source:
        assert source.read("other").sum() == 5
        for _ in range(2):
            with pytest.raises(CheckpointError, match="CRC-32"):
                source.read("w", (0, 1) if how == "rows" else None)


def test_an_archive_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with open_source(path, "dit") as source:
        np.testing.assert_array_equal(source.read("w"), np.arange(64, dtype=np.float32))


@pytest.mark.parametrize(
    ("before", "after"), [(b"x" * 64, b""), (b"", b"x" * 64), (b"PK\x05\x06" + bytes(18), b"")]
)
def test_bytes_around_an_archive(tmp_path: Path, before: bytes, after: bytes) -> None:
    """Two readers could begin it at two places."""
    path = saved(tmp_path / "a.pt")
    path.write_bytes(before + path.read_bytes() + after)
    with pytest.raises(CheckpointError):
        open_source(path, "dit")


def test_a_note_of_many_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/.note", bytes(5000))
    with pytest.raises(CheckpointError, match=r"5000 bytes, which torch\.save never writes"):
        open_source(path, "dit")


SCALES = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 3e38, 1e31, 1e-31, 1e-40, 1e-45)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", SCALES)
def test_scales_that_cannot_be(tmp_path: Path, scale: float, dtype: torch.dtype) -> None:
    saved(tmp_path / "a.pt", {"m.weight": torch.ones(4).to(torch.float8_e4m3fn)})
    saved(tmp_path / "a_map.pt", {"m": torch.tensor(scale, dtype=dtype)})
    with pytest.raises(CheckpointError, match=r"the scale of 'm.weight' is"):
        open_source(tmp_path / "a.pt", "dit")


def header(path: Path, content: bytes, data: bytes = b"", length: int | None = None) -> Path:
    size = len(content) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + content + data)
    return path


def entry(**change: object) -> bytes:
    return json.dumps(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change}
    ).encode()


HEADERS = {
    "17 MB": b" " * (17 << 20),
    "deep": b'{"a":' * 50_000,
    "deep lists": b"[" * 10_000 + b"]" * 10_000,
    "NaN": b'{"a": NaN}',
    "400 digits": b'{"a": {"shape": [' + b"9" * 400 + b"]}}",
    "twice": b'{"a": 1, "a": 2}',
    "no UTF-8": b'{"\xff": 1}',
    "a list": b"[]",
    "empty": b"",
    "metadata": json.dumps({"__metadata__": {"a": 1}}).encode(),
    "a dtype of a megabyte": entry(dtype="x" * (1 << 20)),
    "a dtype that is a list": entry(dtype=["F32"]),
    "a shape of a megabyte": entry(shape=[1] * 300_000),
    "a shape of text": entry(shape="2"),
    "a negative shape": entry(shape=[-2]),
    "a shape of floats": entry(shape=[2.0]),
    "a shape of true": entry(shape=[True, 2]),
    "2^62 elements": entry(shape=[1 << 62, 4]),
    "2^63 elements": entry(shape=[1 << 63]),
    "offsets backwards": entry(data_offsets=[8, 0]),
    "offsets far away": entry(data_offsets=[1 << 60, (1 << 60) + 8]),
    "three offsets": entry(data_offsets=[0, 4, 8]),
    "offsets of text": entry(data_offsets=["0", "8"]),
    "a name of escapes": json.dumps({"\x1b[31m": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode(),
    "a name of a megabyte": json.dumps({"n" * (1 << 20): {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_none(tmp_path: Path, name: str) -> None:
    path = header(tmp_path / "a.safetensors", HEADERS[name], bytes(8))
    with pytest.raises(CheckpointError) as caught:
        open_source(path, "dit")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("length", [1 << 24, (1 << 24) + 1, 1 << 40, (1 << 64) - 1])
def test_a_header_that_is_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = header(tmp_path / "a.safetensors", b"{}", bytes(8), length)
    with pytest.raises(CheckpointError, match=r"truncated|are allowed"):
        open_source(path, "dit")


@pytest.mark.parametrize(
    "name", ["a.safetensors", "a.pt", "a.safetensors.index.json", "config.json"]
)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "a link to nothing"])
def test_a_file_that_is_no_file(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if name == "config.json":
        save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    if kind == "fifo":
        os.mkfifo(path)  # opening it for reading waits for a writer
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "nothing")
    if (name, kind) == ("config.json", "a link to nothing"):
        return
    with pytest.raises(QsjaxError):
        open_source(tmp_path / "a.safetensors" if name == "config.json" else path, "dit")


@pytest.mark.parametrize(
    "shard",
    ["../a.safetensors", "/etc/a.safetensors", "a/b.safetensors", "C:a.safetensors", "\x1b[31m.safetensors", 3, None, ["a"]],
)  # fmt: skip
def test_an_index_that_names_other_places(tmp_path: Path, shard: object) -> None:
    path = tmp_path / "a.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CheckpointError) as caught:
        open_source(path, "dit")
    assert str(caught.value).isprintable()


def test_an_index_of_many_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {f"w{k}": f"{k}.safetensors" for k in range(501)}}))
    with pytest.raises(CheckpointError, match="names 501 shards, more than 500"):
        open_source(path, "dit")


def test_opcodes_are_those_of_pickle() -> None:
    """A later Python with other opcodes would need another look."""
    assert len(pickletools.opcodes) == 68
