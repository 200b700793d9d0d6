"""The evaluation of a checkpoint, on few and small videos."""

import json

import pytest

from qsjax.tiny import evaluate


@pytest.mark.whole
def test_a_report_and_a_sheet(tiny_checkpoint, tmp_path, capsys):
    arguments = ["--model", str(tiny_checkpoint), "--pairs", "2", "--batch", "2", "--seeds", "5"]
    arguments += ["--frames", "5", "--size", "16", "--steps", "1"]
    assert evaluate.main([*arguments, "--sheet", str(tmp_path / "sheet.png")]) == 0
    report = json.loads(capsys.readouterr().out)
    (sample,) = report["samples"]
    assert sample["scores"]["all"]["clips"] == 2
    assert sum(part["clips"] for name, part in sample["scores"].items() if name != "all") == 2
    assert (tmp_path / "sheet-5.png").is_file()
    assert report["vae_psnr"] > 30


@pytest.mark.parametrize("wrong", [["--pairs", "0"], ["--model", "nowhere"], ["--size", "13"]])
def test_bad_input(tiny_checkpoint, wrong, capsys):
    assert evaluate.main(["--model", str(tiny_checkpoint), *wrong]) == 2
    assert capsys.readouterr().err.startswith("qsjax.tiny.evaluate: ")
