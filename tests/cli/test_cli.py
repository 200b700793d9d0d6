"""The command line: exit status 2 and one sentence for bad input, JSON on stdout, nothing damaged."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from command_lines import COMMANDS, OF_VERB

from qsjax.cli import doctor, main
from qsjax.cli.options import with_config
from qsjax.errors import InputError
from qsjax.text import EncodedPrompt, save_prompts

CAPTION = "a red circle moves left over a dark background"
SMALL = ["--frames", "5", "--height", "16", "--width", "16", "--steps", "1"]


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def helped(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_defaults(capsys, words):
    text = helped(capsys, *words)
    assert "--json" in text
    assert len(text.splitlines()[0]) < 100  # options are listed below, not in the first line
    assert "(default: False)" not in text


@pytest.mark.parametrize("verb", OF_VERB)
def test_a_verb_lists_its_commands(capsys, verb):
    text = helped(capsys, verb)
    assert re.findall(r"^    ([a-z]+)", text, re.MULTILINE) == OF_VERB[verb]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "--promt", "x"], "did you mean --prompt? `qsjax sample --help` lists"),
        (["evaluate", "sparse", "--rws=a"], "`qsjax evaluate sparse` takes no such argument; did you mean --rows?"),
        (["bench", "dit", "--target", "cpu"], "'--target': `qsjax bench dit` takes no such argument; `qsjax bench dit --help`"),
        (["bench", "--json", "dit"], "'--json': options stand after the command, as in `qsjax bench dit --json`"),
        (["doctor", "all"], "'all': `qsjax doctor` takes no such argument"),
    ],
)  # fmt: skip
def test_an_option_of_another_command_is_refused_with_the_nearest(capsys, words, message):
    assert message in refused(capsys, *words)


def test_help_does_not_wait_for_jax():
    code = (
        "import sys; from qsjax.cli import VERBS, build_parser\n"
        "for verb in VERBS: build_parser(verb).format_help()\n"
        "print(*({'jax', 'flax', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_sample_writes_a_video_and_reports_json(capsys, tmp_path, tiny_checkpoint):
    out = tmp_path / "videos" / "a.mp4"
    model = ["sample", "--model", str(tiny_checkpoint), "--modulation", "released"]
    common = [*model, *SMALL, "--out", str(out), "--json"]
    assert main([*common, "--prompt", CAPTION]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["frames"], report["height"], report["width"], report["steps"]) == (5, 16, 16, 1)
    assert report["seconds"]["denoise"] > 0
    before = out.read_bytes()
    assert "--overwrite" in refused(capsys, *common, "--prompt", CAPTION)
    assert out.read_bytes() == before


def test_prompts_are_encoded_once_and_sampled_without_the_encoder(
    capsys, tmp_path, tiny_checkpoint
):
    """With options from a file, over which typed ones win."""
    saved, out, file = (tmp_path / name for name in ("p.safetensors", "a.mp4", "options.toml"))
    model = ["sample", "--model", str(tiny_checkpoint)]
    assert main([*model, "--prompt", CAPTION, "--save-prompt", str(saved)]) == 0
    capsys.readouterr()
    file.write_text("steps = 9\nframes = 5\nheight = 16\nwidth = 16\ntrue-cfg = 1.0\njson = true\n")
    given = ["--encoded-prompt", saved, "--steps", "1", "--out", out, "--config", file]
    assert main([*model, *map(str, given)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "encode" not in report["seconds"]
    assert (report["steps"], report["frames"], report["height"]) == (1, 5, 16)
    assert out.is_file()


def test_a_file_of_two_prompts_is_not_one_video(capsys, tmp_path, tiny_checkpoint):
    arrays = {"text": np.zeros((2, 3, 64)), "mask": np.ones((2, 3)), "pooled": np.zeros((2, 64))}
    encoded = EncodedPrompt(
        **{k: v.astype(bool if k == "mask" else np.float32) for k, v in arrays.items()}
    )
    save_prompts(tmp_path / "p", encoded, ["one", "two"])
    arguments = ["--encoded-prompt", tmp_path / "p", "--out", tmp_path / "a.mp4"]
    message = refused(capsys, "sample", "--model", tiny_checkpoint, *arguments)
    assert "holds 2 prompts, and one video is written" in message


@pytest.mark.parametrize("option", [[], ["--no-verify"]])
@pytest.mark.parametrize(
    "command",
    [["sample", "--prompt", "x"], ["calibrate"], ["evaluate", "compare", "--model", "b"], ["evaluate", "sparse"]],
    ids=" ".join,
)  # fmt: skip
def test_weights_are_compared_unless_told_not_to(monkeypatch, tmp_path, command, option):
    opened = []

    def open_checkpoint(name, **options):
        opened.append(options["verify"])
        if len(opened) == (2 if "compare" in command else 1):
            raise InputError("that is enough")
        return None

    monkeypatch.setattr("qsjax.pipeline.Pipeline.from_checkpoint", open_checkpoint)
    out = ["--out", str(tmp_path / "out")]
    reference = ["--reference", "a"] if command[0] == "evaluate" else ["--model", "a"]
    assert main([*command, *reference, *out, *option]) == 2
    assert opened
    assert set(opened) == {not option}


def test_an_option_typed_at_its_default_wins_over_a_file(monkeypatch, tmp_path):
    """As argparse understands it: shortened, or with an equals sign."""
    file, found = tmp_path / "options.toml", {}
    file.write_text('seed = 5\nmodulation = "released"\nout = "b.mp4"\ndevices = 2\njson = true\n')

    def run(args):
        found.update(vars(with_config(args.options, args)))
        return 0

    monkeypatch.setattr("qsjax.cli.sample.run", run)
    typed = ["--seed", "0", "--modul", "resident", "--out=out.mp4"]
    assert main(["sample", *typed, "--config", str(file)]) == 0
    assert (found["seed"], found["modulation"], str(found["out"])) == (0, "resident", "out.mp4")
    assert (found["devices"], found["json"], found["steps"]) == (2, True, None)


def test_options_in_a_file_are_checked(capsys, tmp_path, tiny_checkpoint):
    file = tmp_path / "options.toml"
    arguments = ["--model", tiny_checkpoint, "--prompt", CAPTION, "--out", tmp_path / "a.mp4"]
    file.write_text("stps = 9\n")
    message = refused(capsys, "sample", *arguments, "--config", file)
    assert "did you mean 'steps'" in message
    file.write_text('frames = "many"\n')
    assert "does not fit" in refused(capsys, "sample", *arguments, "--config", file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--frames", "32"], "nearest valid number is 33"),
        (["--height", "100"], "nearest valid value is 104"),
        (["--prompt", "  "], "give either --prompt"),
    ],
)
def test_bad_settings_are_refused(capsys, tmp_path, tiny_checkpoint, change, message):
    arguments = ["--model", tiny_checkpoint, "--prompt", CAPTION, "--out", tmp_path / "a.mp4"]
    assert message in refused(capsys, "sample", *arguments, *change)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_checkpoint_is_refused(capsys, tmp_path):
    out = tmp_path / "a.mp4"
    assert "no manifest.json" in refused(
        capsys, "sample", "--model", tmp_path, "--prompt", CAPTION, "--out", out
    )


def test_a_checkpoint_of_a_newer_format_is_refused(capsys, tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 99, "components": {}}')
    out = tmp_path / "a.mp4"
    message = refused(capsys, "sample", "--model", tmp_path, "--prompt", CAPTION, "--out", out)
    assert "format 99" in message
    assert "upgrade" in message


def test_unwritable_output_is_refused_before_any_work(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(capsys, "sample", "--prompt", CAPTION, "--out", tmp_path / "file" / "a.mp4")
    assert "cannot be written" in message


def test_doctor_says_what_runs_and_why_not_the_others(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backend"] == "cpu"
    for operation in report["operations"].values():
        assert operation["objections"][operation["chosen"]] is None
    objections = {
        name: reason
        for operation in report["operations"].values()
        for name, reason in operation["objections"].items()
    }
    assert "needs an NVIDIA GPU" in objections["cudnn"]
    assert "only a TPU" in objections["xla_int4"]
    assert {name.split(" ")[0] for name in report["operations"]} == {
        *("dense_attention", "block_sparse_attention", "quantized_matmul", "quantize_tokens"),
        *("rotary_heads", "merge_heads"),
    }
    assert report["videos"] is None  # this backend does not say how much memory it has
    assert main(["doctor"]) == 0
    assert re.search(r"cudnn: no, needs an NVIDIA GPU, not cpu", capsys.readouterr().out)


def test_doctor_names_the_largest_video_that_fits():
    found = doctor.videos(int(15.75e9), "tpu")
    assert found["bf16"] is None
    assert found["quantsparse-w4a8-d15"] == (61, 480, 832)
    assert set(doctor.videos(80 * 10**9, "gpu").values()) == {(129, 720, 1280)}
