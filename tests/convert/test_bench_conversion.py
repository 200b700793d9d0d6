"""The benchmark of conversions: its source is a model, and what it reports was measured."""

from dataclasses import replace
from pathlib import Path

import convert_models as models
import numpy as np
import pytest

from convert import Sources
from convert.component import open_components
from qsjax.bench.conversion import bench, text, write_source
from qsjax.errors import InputError

CONFIG = replace(models.DIT, hidden_size=256, rope_axes_dim=(32, 48, 48))


def test_the_source_is_a_transformer_of_plain_numbers(tmp_path):
    written = write_source(CONFIG, tmp_path / "transformer", progress=False)
    with open_components(Sources(transformer=tmp_path / "transformer"), None) as components:
        part = components["dit"]
        assert part.config == CONFIG
        assert sum(info.nbytes for info in part.source.tensors.values()) == written
        for row in part.rows:
            values = part.leaf(row).astype(np.float32)
            assert np.isfinite(values).all()
            assert 2e-8 < np.abs(values).max() < 1e-4
            assert values.size < 100 or len(np.unique(values)) > 50


def test_what_it_reports(tmp_path):
    report = bench(CONFIG, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    assert report["source_bytes"] >= report["tensor_bytes"]
    assert report["stored_bytes"] < 0.6 * report["source_bytes"]
    assert min(report["seconds"].values()) > 0
    assert 1e8 < report["peak_memory_bytes"] < 2e9
    assert report["convert_rate"] == report["source_bytes"] / report["seconds"]["convert"]
    assert "peak memory" in text(report)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        bench(CONFIG, Path(tmp_path / "none"), progress=False)
