"""What people run first: the demo of the README, and the notebooks, with less of everything.

They take two minutes, and call what the commands' own tests call. tests/notebooks looks at what the notebooks name.
"""

import json
import re
import runpy
import shutil

import av
import pytest
from notebooks.cells import NAMES, of_notebook
from PIL import Image
from safetensors.numpy import load_file, save_file

from convert import bundled
from qsjax.cli import demo, main

pytestmark = pytest.mark.whole
PICTURES = {"colab_tpu_sample": 2, "convert_and_calibrate": 5, "kernels_tour": 0}


BLOCKS = {"transformer_blocks": 1, "single_transformer_blocks": 2}
"""Of three and six; a step is compiled for one, whatever their number."""


def changed(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def small_model(folder):
    """The bundle with some of its blocks, whose videos are of 5 frames by default."""
    shutil.copytree(bundled.tiny_model_directory(), folder)
    changed(folder / "qsjax.json", frames=5)
    double, single = BLOCKS.values()
    changed(folder / "transformer" / "config.json", num_layers=double, num_single_layers=single)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if kept(name)}, weights)
    return folder


def kept(tensor):
    kind, number, *_ = tensor.split(".")
    return kind not in BLOCKS or int(number) < BLOCKS[kind]


def test_demo_converts_calibrates_samples_and_shows(capsys, tmp_path, monkeypatch):
    model = small_model(tmp_path / "model")
    monkeypatch.setattr(bundled, "tiny_model_directory", lambda: model)
    monkeypatch.setattr(demo, "_SAMPLES", 1)
    monkeypatch.setattr(demo, "CAPTIONS", demo.CAPTIONS[:2])
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--steps", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for folder in ("checkpoint", "checkpoint-w4a8"):
        assert (out / folder / "manifest.json").is_file()
    # What is no block stays in floats, and is much of a model with three of them.
    assert report["dit_bytes"]["W4A8"] < 0.65 * report["dit_bytes"]["float"]
    assert report["calibration"]["output_error"] < 1
    ways = {way["name"]: way for way in report["ways"]}
    assert list(ways) == ["full precision", "W4A8", "W4A8 + 15 %, no cache", "QuantSparse"]
    assert [way["psnr"] is None for way in ways.values()] == [True, False, False, False]
    assert ways["W4A8"]["density"] == 1
    # Eight blocks of video see three each, two of text see all and are seen by all.
    assert ways["QuantSparse"]["density"] == round((8 * 3 + 2 * 10) / 10**2, 4)
    assert ways["QuantSparse"]["mean_density"] > ways["QuantSparse"]["density"]
    assert ways["QuantSparse"]["cache_bytes"] > ways["W4A8 + 15 %, no cache"]["cache_bytes"]
    videos = sorted(out.glob("*.mp4"))
    assert len(videos) == 2
    frames, height, width = map(int, report["video"].split("x"))
    for path in videos:
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
            stream = container.streams.video[0]
            assert stream.width == len(ways) * 3 * width  # enlarged, for the labels above
            assert stream.height > 3 * height
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 8 * 2 * width
        assert sheet.height > 8 * 2 * height
    with Image.open(out / "strip.png") as strip:
        assert strip.width > 2 * 4 * 2 * width
        assert strip.height > len(ways) * 2 * height
    stages = {f"{stage} {name}" for stage in ("denoise", "decode") for name in ways}
    assert {"convert", "calibrate", "all", *stages} <= set(report["seconds"])
    assert {"denoise", "decode"} <= set(report["seconds_of_last_video"])
    assert "compile" not in report["seconds_of_last_video"]
    assert main(["demo", "--out", str(out), "--steps", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch, capsys):
    """In a namespace and a folder of its own, with the programs that this process has compiled."""
    code = [cell.source for cell in of_notebook(name) if cell.kind == "code"]
    script = tmp_path / f"{name}.py"
    script.write_text("\n\n".join(code), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QSJAX_QUICK", "1")
    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QSJAX_KEPT", str(tmp_path / "kept"))
    runpy.run_path(str(script))
    shown = re.findall(
        r"^<IPython\.core\.display\.(?:Image|Video) object>$", capsys.readouterr().out, re.M
    )
    assert len(shown) == PICTURES[name]
