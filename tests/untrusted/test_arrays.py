"""NumPy's files: what they announce is what they hold, or one sentence."""

import io
import zipfile

import numpy as np
import pytest

from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted.arrays import map_array, read_arrays

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def test_sound_files(tmp_path):
    np.savez(tmp_path / "sound.npz", **ARRAYS)
    found = read_arrays(tmp_path / "sound.npz")
    assert set(found) == {"a", "b"}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    np.save(tmp_path / "a.npy", ARRAYS["a"])
    mapped = map_array(tmp_path / "a.npy")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, ARRAYS["a"])


SOUND = npy(ARRAYS["a"])
HUGE = SOUND.replace(b"(2, 3)", b"(2,9999999999)").replace(b" " * 9 + b"\n", b" \n")
DAMAGED = {
    "nothing": b"",
    "no array": b"\x00" * 200,
    "half": SOUND[:-4],
    "more": SOUND + b"\0",
    "half a header": SOUND[:30],
    "version 9": SOUND[:6] + b"\x09" + SOUND[7:],
    "terabytes": HUGE,
    "negative": SOUND.replace(b"(2, 3)", b"(-2,3)"),
    "no header": SOUND.replace(b"'descr'", b"'descr_"),
    "a program": SOUND.replace(b"'<f4'", b"'|O' "),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_damaged_files(content, tmp_path):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        map_array(tmp_path / "a.npy")
    (tmp_path / "a.npz").write_bytes(npz({"a": content}))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK" + b"\0" * 99,
        npz({"a": SOUND})[:-30],
        npz({"a": SOUND}).replace(SOUND[-8:], b"\1" * 8),
        npz({"a": npy(np.zeros(1 << 20))}, zipfile.ZIP_DEFLATED),
    ],
    ids=["nothing", "zeros", "half", "other bytes", "a bomb"],
)
def test_damaged_archives(content, tmp_path):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_arrays(tmp_path / "a.npz")


def test_no_file(tmp_path):
    for read in (read_arrays, map_array):
        with pytest.raises(InputError, match="cannot be opened"):
            read(tmp_path / "a")
