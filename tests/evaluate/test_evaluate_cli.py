"""`qsjax evaluate`: tables, JSON, files; bad input ends in one line before any work."""

import json

import pytest
from evaluate_models import SMALL

from qsjax.calibration import Samples
from qsjax.cli import main
from qsjax.errors import InputError
from qsjax.experiments.calibrations import Calibrations

SIZE = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


def refused(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_compare_checkpoints(capsys, tmp_path, tiny_checkpoint):
    captions = tmp_path / "captions.txt"
    captions.write_text(
        "a red circle moves left over dark stripes\n\na blue square grows over a dark gradient\n"
    )
    arguments = ["evaluate", "compare", "--reference", tiny_checkpoint, "--model", tiny_checkpoint]
    arguments += [*SIZE, "--captions", captions, "--out", tmp_path / "out", "--plots", "--json"]
    assert main(list(map(str, arguments))) == 0
    report = json.loads(capsys.readouterr().out)
    model = report["models"][str(tiny_checkpoint)]
    assert model["psnr"]["mean"] == 100
    assert model["psnr"]["count"] == len(report["captions"]) == 2
    assert model["clips"]["velocity"] == [[0, 0], [0, 0]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("comparison.json", "comparison.md", "comparison.png"),
        *("comparison-figures.png", "comparison-velocity.png"),
        *("comparison-1.mp4", "comparison-2.mp4", "comparison.html"),
    }
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert [page.count(f"data:{kind};base64,") for kind in ("image/png", "video/mp4")] == [3, 2]
    assert "a blue square grows over a dark gradient" in page
    assert "2 clips" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare"], "--model CHECKPOINT is needed"),
        (["compare", "--model", "a", "--plots"], "--plots needs --out"),
        (["compare", "--model", "a", "--captions", "absent.txt"], "--captions absent.txt"),
        (["compare", "--model", "absent", "--captions", "1"], "absent: not a checkpoint folder"),
        (["quantization", "--model", "a"], "'--model': `qsjax evaluate quantization` takes no"),
        (["quantization", "--rows", "W9"], "is found in no row"),
        (["sparse", "--rows", "W9"], "is found in no row"),
        (["quantization", "--seed", "1"], "'--seed': `qsjax evaluate quantization` takes no"),
        (["quantization", "--first-caption", "4"], "takes no such argument"),
        (["sparse", "--lpips"], "takes no such argument"),
        (["quantization", "--lpips"], "LPIPS needs PyTorch and lpips"),
        (["sparse", "--stream", "report", "--first-caption", "1"], "begins at its first caption"),
        (["compare", "--model", "a", "--stream", "choice"], "takes no such argument"),
    ],
)
def test_bad_input(capsys, tmp_path, monkeypatch, tiny_checkpoint, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments, "--reference", tiny_checkpoint)
    assert not list(tmp_path.iterdir())


def test_a_row_that_fails_ends_in_one(capsys, monkeypatch, tmp_path, tiny_checkpoint):
    def broken(*_, **__):
        raise InputError("broken")

    monkeypatch.setattr(Calibrations, "quantized", broken)
    monkeypatch.setattr(Calibrations, "_collect", lambda *_: Samples(*6 * [None]))
    arguments = ["--rows", "W4A8/rtn", "--captions", "1", "--out", tmp_path, *SIZE]
    assert (
        main(
            ["evaluate", "quantization", "--reference", str(tiny_checkpoint), *map(str, arguments)]
        )
        == 1
    )
    assert "failed: broken" in capsys.readouterr().out


def test_options_from_a_file(capsys, tmp_path, tiny_checkpoint):
    file = tmp_path / "options.toml"
    file.write_text('captions = "none.txt"\nmodel = ["a"]\n')
    message = refused(capsys, "compare", "--reference", tiny_checkpoint, "--config", file)
    assert "none.txt" in message
    typed = ["--captions", "8", "--config", file]  # at its default, over the file
    message = refused(capsys, "compare", "--reference", tiny_checkpoint, *typed)
    assert "a: not a checkpoint folder" in message
