"""The links of pages that the site brings in from elsewhere. `.ci/run` builds the site itself."""

import importlib.util

import pytest
from documentation.pages import DOCS, ROOT


@pytest.fixture(scope="module")
def outside():
    spec = importlib.util.spec_from_file_location("outside", DOCS / "outside.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "written", "mended"),
    [
        ("notebooks/kernels_tour.ipynb", "[a](../docs/memory.md#x)", "[a](../memory.md#x)"),
        ("notebooks/kernels_tour.ipynb", "[a](colab_tpu_sample.ipynb)", "[a](colab_tpu_sample.ipynb)"),
        ("CONTRIBUTING.md", "[a](SECURITY.md) and [`b`](docs/glossary.md)", "[a](SECURITY.md) and [`b`](../glossary.md)"),
        ("docs/install.md", "[a](../CONTRIBUTING.md#test)", "[a](outside/CONTRIBUTING.md#test)"),
        ("docs/install.md", "[`a`](../README.md)", "`a`"),
        ("docs/quantization.md", "[a](results/quantization/tables.md)", "[a](results/quantization.md)"),
        ("docs/results/gpu.md", "[a](https://b.org/c) ![d](../figures/size.svg)", "[a](https://b.org/c) ![d](../figures/size.svg)"),
        ("notebooks/kernels_tour.ipynb", "TARGETS[name](*cells)", "TARGETS[name](*cells)"),
    ],
)  # fmt: skip
def test_links_follow_their_pages(outside, source, written, mended):
    page = ROOT / source
    assert outside.mended(written, page, outside.GATHERED.get(page, page)) == mended


def test_every_notebook_is_brought_in(outside):
    names = {path.name for path in outside.GATHERED}
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} < names
    assert {"SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"} < names
