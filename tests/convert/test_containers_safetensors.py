"""Our safetensors reader and writer against the official library, and against damaged files."""

import json
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from convert.containers import (
    SafetensorsFile,
    TensorInfo,
    open_source,
    write_safetensors,
    write_sharded,
)
from qsjax.errors import CheckpointError, InputError

TORCH_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def torch_tensors():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): (50 * torch.randn(3, 5, generator=generator)).to(dtype)
        for dtype in TORCH_DTYPES
    }
    return {**tensors, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}


def numpy_tensors():
    rng = np.random.default_rng(0)
    return {
        "odd": rng.integers(-128, 127, 3).astype(np.int8),
        "w": rng.standard_normal((4, 6)).astype(ml_dtypes.bfloat16),
        "v": rng.standard_normal((2, 3, 5)).astype(np.float32),
        "scalar": np.float32(3.0).reshape(()),
        "empty": np.zeros((0, 7), np.float32),
    }


def infos(arrays):
    return {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}


def raw_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def as_bits(array):
    return np.asarray(array).reshape(-1).view(np.uint8).tobytes()


def test_reads_what_the_library_wrote(tmp_path):
    tensors = torch_tensors()
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "a.safetensors") as source:
        assert set(source.tensors) == set(tensors)
        assert source.metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            array = source.read(name)
            assert array.shape == source.tensors[name].shape == tuple(tensor.shape)
            assert array.dtype == source.tensors[name].dtype
            assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
            assert array.flags.c_contiguous
            assert array.flags.owndata
            assert as_bits(array) == as_bits(tensor.reshape(-1).view(torch.uint8).numpy())


def test_the_library_reads_what_we_write(tmp_path):
    arrays, path = numpy_tensors(), tmp_path / "a.safetensors"
    write_safetensors(path, infos(arrays), arrays.__getitem__, {"origin": "test"})
    loaded = load_file(path)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert tuple(loaded[name].shape) == array.shape
        assert as_bits(loaded[name].reshape(-1).view(torch.uint8).numpy()) == as_bits(array)
    with SafetensorsFile(path) as source:
        assert source.metadata == {"origin": "test"}
        for name, info in source.tensors.items():
            assert source._offsets[name] % info.dtype.itemsize == 0
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 6), np.float32), np.zeros((6, 4), ml_dtypes.bfloat16), KeyboardInterrupt()],
    ids=["dtype", "shape", "interrupted"],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, wrong):
    arrays, path = numpy_tensors(), tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def read(name):
        if name != "w":
            return arrays[name]
        if isinstance(wrong, BaseException):
            raise wrong
        return wrong

    with pytest.raises((CheckpointError, KeyboardInterrupt), match=r"announced|^$"):
        write_safetensors(path, infos(arrays), read)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_unwritable_places_and_dtypes_are_refused(tmp_path):
    arrays = numpy_tensors()
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "absent" / "a.safetensors", tmp_path / "file" / "a.safetensors"):
        with pytest.raises(InputError, match="cannot be written"):
            write_safetensors(place, infos(arrays), arrays.__getitem__)
    strange = {"c": np.zeros(2, np.complex64)}
    with pytest.raises(InputError, match=r"'c' of dtype complex64"):
        write_safetensors(tmp_path / "a.safetensors", infos(strange), strange.__getitem__)


def test_shards_follow_the_hub(tmp_path):
    arrays = {f"layer.{i}": np.full((10,), i, np.float32) for i in range(5)}
    files = write_sharded(tmp_path, "model", infos(arrays), arrays.__getitem__, shard_bytes=80)
    assert [path.name for path in files] == [
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    index = json.loads(files[-1].read_text())
    assert index["metadata"] == {"total_size": 200}
    assert index["weight_map"]["layer.2"] == "model-00002-of-00003.safetensors"
    with open_source(tmp_path, "llama") as source:
        assert source.container == "sharded safetensors"
        assert set(source.files) == set(files)
        for name, array in arrays.items():
            np.testing.assert_array_equal(source.read(name), array)
    single = write_sharded(tmp_path, "whole", infos(arrays), arrays.__getitem__)
    assert [path.name for path in single] == ["whole.safetensors"]
    assert len(load_file(single[0])) == 5


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_truncated_files_name_both_sizes(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(100)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    found = len(whole[:cut])
    with pytest.raises(CheckpointError, match=rf"(found|only) {found}\b"):
        SafetensorsFile(path)
    if cut == -1:
        with pytest.raises(CheckpointError, match=rf"truncated, expected {len(whole)} bytes"):
            SafetensorsFile(path)


HUGE = 1 << 61
BAD_HEADERS = {
    "hole": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, "a hole between 'a'"),
    "hole at the start": ({"a": entry([1], 4, 8)}, "a hole between 'the header'"),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, "an overlap between 'a'"),
    "same bytes": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, "an overlap"),
    "negative size": ({"a": entry([-1], 0, 4)}, "impossible shape"),
    "two negative sizes": ({"a": entry([-1, -3], 0, 12)}, "impossible shape"),
    "huge size": ({"a": entry([HUGE], 0, 4 * HUGE)}, "impossible shape"),
    "product overflows 64 bits": ({"a": entry([1 << 32, 1 << 32], 0, 0)}, "impossible shape"),
    "huge and empty": ({"a": entry([0, HUGE, HUGE], 0, 0)}, "impossible shape"),
    "too many axes": ({"a": entry([1] * 99, 0, 4)}, "impossible shape"),
    "size is a bool": ({"a": entry([True], 0, 4)}, "impossible shape"),
    "size is a float": ({"a": entry([1.0], 0, 4)}, "impossible shape"),
    "shape is a string": ({"a": entry("1", 0, 4)}, "impossible shape"),
    "more than the file": ({"a": entry([100], 0, 400)}, "truncated, expected"),
    "offsets too short": ({"a": entry([2], 0, 4)}, "needs 8 bytes"),
    "offsets reversed": ({"a": entry([1], 4, 0)}, "needs 4 bytes"),
    "negative offset": ({"a": entry([1], -4, 0)}, "needs 4 bytes"),
    "bytes at the end": ({"a": entry([1], 0, 4)}, "after its last tensor"),
    "unknown dtype": ({"a": entry([1], 0, 4, "F31")}, "dtype 'F31'"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, "has dtype None, known"),
    "entry is a list": ({"a": [1]}, "has dtype None, known"),
    "metadata": ({"__metadata__": {"a": 1}}, "not a table of strings"),
    "unprintable name": ({"\ud800": entry([3], 0, 12)}, "unprintable name"),
    "not an object": ([1, 2], "a JSON list"),
    "not JSON": (b"{'a'}", "not usable JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not usable JSON"),
    "nested too deep": (b'{"a":' * 100_000, "not usable JSON"),
    "endless number": (b'{"a": ' + b"9" * 9999 + b"}", "not usable JSON"),
}


@pytest.mark.parametrize(("header", "message"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_headers_that_contradict_the_file(tmp_path, header, message):
    path = raw_file(tmp_path / "a.safetensors", header, bytes(12))
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_name_twice_is_refused(tmp_path):
    one = json.dumps(entry([1], 0, 4))
    path = raw_file(tmp_path / "a.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), bytes(4))
    with pytest.raises(CheckpointError, match="'a' occurs twice"):
        SafetensorsFile(path)


def test_header_lengths_beyond_the_file_or_the_format(tmp_path):
    for length, message in [(60, "at least 68 bytes"), (1 << 63, "no safetensors file")]:
        path = raw_file(tmp_path / "a.safetensors", b"{}", length=length)
        with pytest.raises(CheckpointError, match=message):
            SafetensorsFile(path)


def test_a_file_that_shrinks_after_opening(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(100)}, path)
    with SafetensorsFile(path) as source:
        os.truncate(path, 200)
        with pytest.raises(CheckpointError, match="must not change during the conversion"):
            source.read("w")


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_mutated_files_are_read_or_refused_in_little_memory(tmp_path, data):
    path = tmp_path / "fuzz.safetensors"
    header = {"a": entry([2, 3], 0, 24), "b": entry([4], 24, 32, "BF16"), "__metadata__": {}}
    content = bytearray(raw_file(path, header, bytes(range(32))).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "digit", "insert", "cut"])):
            case "set":
                content[at] = data.draw(st.integers(0, 255))
            case "digit":
                content[at] = data.draw(st.sampled_from(b'0123456789-[]{},":'))
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=12))
            case "cut":
                del content[at : at + data.draw(st.integers(1, 12))]
                content = content or bytearray(1)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with open_source(path, "dit") as source:
            total = sum(source.read(name).nbytes for name in source.tensors)
            assert total <= len(content)
    except (CheckpointError, InputError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20
