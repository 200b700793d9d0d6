"""Programs are let go of before a process has no mapping left."""

from pathlib import Path

import jax
import pytest

from qsjax.evaluate.mappings import forget_programs


@pytest.fixture
def cleared(monkeypatch):
    calls = []
    monkeypatch.setattr(jax, "clear_caches", lambda: calls.append("cleared"))
    return calls


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system tells no mappings")
def test_only_where_there_are_many(cleared):
    assert not forget_programs(10**9)
    assert not cleared
    assert forget_programs(0)
    assert cleared == ["cleared"]


def test_a_system_that_does_not_tell(cleared, monkeypatch):
    def refuse(path, *args, **options):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "open", refuse)
    assert not forget_programs(0)
    assert not cleared
