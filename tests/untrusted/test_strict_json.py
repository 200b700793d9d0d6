"""JSON of strangers: what is read, and what is refused in one sentence."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsjax.errors import CheckpointError
from qsjax.untrusted import parse_json, parse_object, read_object

SMALL = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8)
PLAIN = st.recursive(
    SMALL | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_reads_what_json_reads(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), "it") == value


@given(
    st.binary(max_size=60)
    | st.text('[]{}":,0123456789.eE+-nulltrfaINf\\', max_size=60).map(str.encode)
)
def test_anything_is_read_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data, "it")
    except CheckpointError:
        return
    assert value == json.loads(data)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ("[" * 50_000 + "]" * 50_000, "not usable JSON"),
        ("[" * 65 + "]" * 65, "more than 64 lists and objects"),
        ("[1e999]", "not finite"),
        ("[NaN]", "not finite"),
        ("-Infinity", "not finite"),
        ("[1" + "0" * 400 + "]", "an integer has 401 digits"),
        ("[18446744073709551616]", "an integer has more than 64 bits"),
        ('{"a": ', "not usable JSON"),
    ],
)
def test_refuses(text: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match="not usable JSON") as caught:
        parse_json(text.encode(), "it")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


def test_refuses_other_encodings_and_kinds() -> None:
    with pytest.raises(CheckpointError, match="utf-8"):
        parse_json(b"\xff{}", "it")
    with pytest.raises(CheckpointError, match="JSON list instead of an object"):
        parse_object(b"[]", "it")


def test_reads_an_object_of_bounded_size(tmp_path) -> None:
    path = tmp_path / "it.json"
    path.write_text('{"a": [1, {"b": 0.5}]}')
    assert read_object(path) == {"a": [1, {"b": 0.5}]}
    with pytest.raises(ValueError, match="more than 8 bytes"):
        read_object(path, largest=8)
