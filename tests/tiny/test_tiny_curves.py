"""The picture of a training run."""

import json

from PIL import Image

from qsjax.tiny import curves
from qsjax.tiny.training import loop


def write_log(folder, lines):
    folder.mkdir()
    (folder / "figures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_picture_of_the_stages_that_ran(tmp_path, capsys):
    losses = [{"step": s, "seconds": 1.0, "loss": 2.0 / s} for s in (20, 40, 60)]
    write_log(tmp_path / "dit", [*losses, {"step": 60, "color": 1.0, "shape": 0.5, "motion": 0.75}])
    write_log(tmp_path / "decoder", [{"step": 50, "seconds": 2.0, "decibel": 20.0}])
    picture = tmp_path / "docs" / "curves.png"
    assert curves.main(["--work", str(tmp_path), "--out", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.width > 1.5 * image.height
    assert str(picture) in capsys.readouterr().out


def test_nothing_to_draw(tmp_path, capsys):
    assert curves.main(["--work", str(tmp_path)]) == 2
    assert "train first" in capsys.readouterr().err


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path):
    first = [{"step": s, "seconds": 1.0, "loss": 1.0} for s in (1, 2, 3)]
    again = [{"step": s, "seconds": 1.0, "loss": 5.0} for s in (2, 3, 4)]
    write_log(tmp_path / "dit", [*first, {"step": 3, "color": 0.5}, *again])
    log = loop.read_log(tmp_path / "dit")
    assert [line["step"] for line in log] == [1, 2, 3, 3, 4]
    assert [line["loss"] for line in log if "loss" in line] == [1.0, 5.0, 5.0, 5.0]
    assert loop.read_log(tmp_path / "absent") == []
