from types import SimpleNamespace

import jax
import pytest

from pallas_kernels import targets
from pallas_kernels.deviceless import compile_for, missing
from pallas_kernels.dispatch import parse
from pallas_kernels.targets import TARGETS


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("cpu", "cpu"),
    ],
)
def test_a_device_is_recognized(monkeypatch, kind, name):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    assert targets.current() is TARGETS[name]


def test_an_unknown_device_has_a_backend_and_no_peaks(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="TPU v4")])
    target = targets.current()
    assert (target.name, target.backend, target.int8_ops) == ("TPU v4", "cpu", 0)


def test_a_name_may_carry_a_target():
    assert parse("tpu@v5e") == ("tpu", TARGETS["v5e"])
    assert parse("auto") == ("auto", TARGETS["cpu"])
    with pytest.raises(ValueError, match="'tpu@v9': no target 'v9'; known: v5e, v5p"):
        parse("tpu@v9")


def test_what_cannot_be_compiled_for_says_so():
    assert "without the device" in str(missing(TARGETS["cpu"]))
    with pytest.raises(ModuleNotFoundError, match="cpu cannot be compiled for"):
        compile_for(TARGETS["cpu"], lambda x: x, jax.ShapeDtypeStruct((1,), "float32"))
