"""The command line: reports, exit statuses, one sentence for what the caller can mend."""

import json
import subprocess
import sys

import convert_models as models
import pytest

from convert.__main__ import main
from qsjax.checkpoint import Manifest
from qsjax.settings import Settings


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    return models.save_dit(tmp_path_factory.mktemp("cli") / "transformer")


def refused(capsys, *args):
    """The one sentence on stderr."""
    assert main([str(arg) for arg in args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_convert_verify_export(transformer, tmp_path, capsys):
    checkpoint, exported = tmp_path / "checkpoint", tmp_path / "exported"
    assert main([str(transformer), str(checkpoint)]) == 0
    text = capsys.readouterr().out
    assert "safetensors  diffusers" in text
    assert "complete, peak memory" in text

    assert main([str(checkpoint), "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verified"]["leaves"] > 0 == report["verified"]["from_source"]

    assert main([str(transformer), str(checkpoint), "--verify"]) == 0
    assert "made again from the source" in capsys.readouterr().out

    assert main([str(checkpoint), str(exported), "--export", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert str(exported / "transformer/config.json") in files


def test_json_report(transformer, tmp_path, capsys):
    args = ["--transformer", str(transformer), str(tmp_path / "c"), "--json", "--dtype", "float32", "--verify"]  # fmt: skip
    assert main(args) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    part = report["components"]["dit"]
    assert (part["layout"], part["dtypes"], part["ignored"]) == ("diffusers", ["float32"], [])
    assert part["bytes_written"] == 4 * part["parameters"]
    assert report["verified"]["from_source"] == report["verified"]["leaves"]
    assert "convert: 100 %" in captured.err


def test_module_runs_alone(tmp_path):
    command = [sys.executable, "-m", "convert", str(tmp_path / "absent"), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {tmp_path / 'absent'}: does not exist")
    assert result.stderr.count("\n") == 1


def test_existing_output(transformer, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert "pass --overwrite" in refused(capsys, transformer, tmp_path / "out")


def test_unwritable_output(transformer, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, transformer, tmp_path / "file" / "out")


def test_nothing_to_convert(tmp_path, capsys):
    assert "nothing to convert" in refused(capsys, tmp_path / "out")
    assert "--export needs a checkpoint" in refused(capsys, tmp_path / "out", "--export")


def test_export_of_something_else(transformer, tmp_path, capsys):
    assert "not a checkpoint" in refused(capsys, transformer, tmp_path / "out", "--export")
    sentence = refused(capsys, transformer, tmp_path / "out", "--export", "--verify", "--vae", "x")
    assert "run it without --vae, --verify" in sentence


def test_config_files(transformer, tmp_path, capsys):
    weights = transformer / "diffusion_pytorch_model.safetensors"
    other = models.config_file(tmp_path, models.VAE, "vae")
    sentence = refused(capsys, weights, tmp_path / "out", "--config", other)
    assert "has no [dit] table" in sentence
    bad = tmp_path / "config.json"
    bad.write_text(json.dumps(models.DIT.to_diffusers() | {"qk_norm": "layer_norm"}))
    sentence = refused(capsys, weights, tmp_path / "out", "--config", bad)
    assert "qk_norm='layer_norm'" in sentence
    bad.write_text(json.dumps(models.DIT.to_diffusers() | {"num_layers": 2}))
    sentence = refused(capsys, weights, tmp_path / "out", "--config", bad)
    assert "(sizes: config.json)" in sentence
    assert "missing: transformer_blocks.1.norm1.linear.weight [192, 32]" in sentence


def test_text_encoder_without_config(tmp_path, capsys):
    models.save(tmp_path / "model.safetensors", models.tencent())
    (tmp_path / "tokenizer.json").write_text("{}")
    sentence = refused(capsys, "--text-encoder", tmp_path, tmp_path / "out")
    assert "has no config.json beside the weights of the LLaMA text encoder" in sentence


def test_interrupt(transformer, tmp_path, capsys, monkeypatch):
    from qsjax.checkpoint import CheckpointWriter

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointWriter, "write_item", stop)
    assert main([str(transformer), str(tmp_path / "out")]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


def test_unknown_dtype_is_argparse_s(transformer, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([str(transformer), str(tmp_path / "out"), "--dtype", "int8"])
    assert stop.value.code == 2


def test_a_preset_is_how_the_model_is_sampled(transformer, tmp_path, capsys):
    made, plain = tmp_path / "fast", tmp_path / "plain"
    assert main([str(transformer), str(made), "--preset", "fast-hunyuan"]) == 0
    settings = Settings.stored(Manifest.read(made).generation)
    assert (settings.steps, settings.shift, settings.guidance) == (6, 17.0, 6.0)
    assert (settings.frames, settings.height, settings.width) == (125, 720, 1280)
    # The preset is a part of what is asked for: with another one it is another checkpoint.
    assert main([str(transformer), str(plain)]) == 0
    assert Settings.stored(Manifest.read(plain).generation) == Settings()
    capsys.readouterr()
    assert "exists already" in refused(capsys, transformer, plain, "--preset", "fast-hunyuan")
    verify = [transformer, plain, "--verify", "--preset", "fast-hunyuan"]
    assert "has steps None, and --preset fast-hunyuan 6" in refused(capsys, *verify)
    assert main([str(transformer), str(made), "--verify", "--preset", "fast-hunyuan"]) == 0
    capsys.readouterr()
    assert "did you mean 'fast-hunyuan'" in refused(capsys, transformer, tmp_path / "x", "--preset", "fast-hunyan")  # fmt: skip
    assert "run it without --preset" in refused(capsys, plain, tmp_path / "x", "--export", "--preset", "fast-hunyuan")  # fmt: skip
