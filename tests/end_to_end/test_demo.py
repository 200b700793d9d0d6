"""The demo, as the README's first command runs it, with fewer steps."""

import json

import av
from PIL import Image

from qsjax.cli import main


def test_demo_converts_samples_and_shows(capsys, tmp_path):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--steps", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (out / "checkpoint" / "manifest.json").is_file()
    videos = sorted(out.glob("*.mp4"))
    assert len(videos) == 3
    frames, height, width = map(int, report["video"].split("x"))
    for path in videos:
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 8 * 2 * width
        assert sheet.height > 3 * 2 * height
    assert {"convert", "load", "encode", "compile", "denoise", "decode", "all"} <= set(
        report["seconds"]
    )
    assert {"denoise", "decode"} <= set(report["seconds_of_last_video"])
    assert "compile" not in report["seconds_of_last_video"]
    assert main(["demo", "--out", str(out), "--steps", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
