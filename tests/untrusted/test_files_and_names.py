"""Files, names and paths of strangers."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsjax.errors import CheckpointError, InputError
from qsjax.untrusted import inside, read_bytes, read_text, require_name, require_relative, shown


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link", "absent", "zero"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "fifo":
        os.mkfifo(path)  # opening it for reading waits for a writer
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "zero":
        path = tmp_path / "a\0b"
    with pytest.raises(InputError, match=r"name a (regular|readable) file"):
        read_bytes(path)


def test_reads_not_more_than_there_can_be(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"12345678")
    assert read_bytes(path, largest=8) == b"12345678"
    with pytest.raises(InputError, match="more than 7 bytes"):
        read_bytes(path, largest=7)
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 2\)"):
        read_text(path)


@pytest.mark.parametrize("name", ["dit", "double_blocks.3", "tokenizer.json", "Modell ä"])
def test_names(name: str) -> None:
    assert require_name(name, "it") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "C:",
        "a\0",
        "a\n",
        " a",
        "a" * 201,
        "\x1b[31m",
        3,
        None,
    ],
)
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(CheckpointError, match="it has the name") as caught:
        require_name(name, "it")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../a", "a/../b", "a//b", "a/", "", "/".join("abcdefghi"), 3]
)
def test_what_is_no_path_inside(path: object) -> None:
    with pytest.raises(CheckpointError):
        require_relative(path, "it")


@given(st.text(max_size=30))
def test_a_path_stays_inside(path: str) -> None:
    try:
        place = inside(Path("/srv/model"), path, "it")
    except CheckpointError:
        return
    assert Path(os.path.normpath(place)).is_relative_to("/srv/model")
    assert place != Path("/srv/model")


def test_a_path_over_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to("/tmp")
    with pytest.raises(CheckpointError, match="is a link"):
        inside(tmp_path, "elsewhere/file", "it")
    assert inside(tmp_path, "here/file", "it") == tmp_path / "here" / "file"


@given(st.text(max_size=300) | st.integers() | st.lists(st.text(max_size=5)))
def test_what_is_shown_is_short_and_printable(value: object) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) < 1000


def test_what_is_shown() -> None:
    assert shown("it") == "'it'"
    assert shown(3) == "3"
    assert shown("a" * 100) == f"'{'a' * 80}'..."
    assert shown("\x1b[31m") == r"'\x1b[31m'"
    assert shown(10**5000) == "an integer of 16610 bits"
