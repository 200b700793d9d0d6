"""The examples of the documentation are run: Python as it stands, commands in this process, on the tiny model.

The model is the bundled one, with a smaller video as its default. One folder serves all pages, as it serves a reader who goes
through them: it holds what a page finds when it begins.
"""

import json
import re
import shutil

import pytest
from documentation.commands import commands
from documentation.pages import blocks, pages

from qsjax.cli import main

SMALL = {"frames": 5, "height": 16, "width": 16, "steps": 2}
LEFT_OUT = {
    "hf://": "needs the network",
    "height=480": "a video of the real model's size",
    "qsjax bench": "minutes; tests/bench",
    "qsjax evaluate": "minutes to hours; tests/evaluate and tests/experiments",
    "qsjax demo": "a minute; tests/end_to_end",
    "qsjax calibrate": "half a minute; tests/calibration and tests/end_to_end",
    "qsjax.calibrate": "half a minute; tests/calibration and tests/end_to_end",
    "qsjax doctor": "seconds; tests/cli",
    "--preview": "half a minute to fit the map; tests/preview",
    "qsjax sample ... --devices": "several devices; tests/parallel",
    "mp_rank_00": "a file that we have not; tests/convert",
    "FastHunyuan/": "a folder that we have not; tests/convert",
    "checkpoints/fast": "made of that folder",
    "style.safetensors": "a file that we have not; tests/convert/test_lora.py",
    "dit.safetensors": "files that we have not; tests/convert",
    "4096, 16384": "a gigabyte",
}
"""What is not run, and why: blocks and commands that hold these words, with anything where the dots are."""
VERBS = {"convert", "sample", "plan"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The reader's folder."""
    from convert.bundled import tiny_model_directory
    from qsjax import convert

    folder = tmp_path_factory.mktemp("desk")
    source = folder / "HunyuanVideo"
    shutil.copytree(tiny_model_directory(), source)
    defaults = json.loads((source / "qsjax.json").read_text()) | SMALL
    (source / "qsjax.json").write_text(json.dumps(defaults))
    checkpoints = folder / "checkpoints"
    convert(source, checkpoints / "hunyuan", progress=False)
    convert(source, checkpoints / "w4a8", quantize="rtn-w4a8", progress=False)
    # Pages call a quantized checkpoint by several names, and the README has no folder for them.
    for name in ("quick", "hunyuan-w4a8"):
        (checkpoints / name).symlink_to("w4a8")
    for name in ("hunyuan", "w4a8"):
        (folder / name).symlink_to(f"checkpoints/{name}")
    (folder / "prompts.txt").write_text("a red circle moves left\na blue square moves up\n")
    return folder


@pytest.fixture
def at_the_desk(desk, monkeypatch):
    """In that folder, and the bundled model is the one with small videos."""
    monkeypatch.chdir(desk)
    monkeypatch.setattr("convert.bundled.converted_tiny_model", lambda: desk / "checkpoints/hunyuan")  # fmt: skip


def holds(text, words):
    return re.search(".*".join(map(re.escape, words.split(" ... "))), text) is not None


def is_run(text):
    return not any(holds(text, words) for words in LEFT_OUT)


PYTHON = [block for block in blocks("python") if is_run(block.text)]
COMMANDS = [
    (block, words)
    for block in blocks("sh")
    for words in commands(block)
    if words[:1] == ["qsjax"] and words[1] in VERBS and is_run(" ".join(words))
]


@pytest.mark.usefixtures("at_the_desk")
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs_as_it_stands(block):
    exec(compile(block.text, str(block), "exec"), {"__name__": "example"})


@pytest.mark.usefixtures("at_the_desk")
@pytest.mark.parametrize("block", sorted({block for block, _ in COMMANDS}), ids=str)
def test_commands_run_one_after_the_other(block, capsys):
    for _, words in (found for found in COMMANDS if found[0] == block):
        # A page is read from its top; here its commands meet what others have left.
        replaces = words[1] == "sample" or "--export" in words
        again = ["--overwrite"] if replaces and "--save-prompt" not in words else []
        assert main([*words[1:], *again]) == 0, capsys.readouterr().err


def test_what_is_left_out_is_there():
    """An exception goes with its example."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    assert {words for words in LEFT_OUT if not holds(text, words)} == set()
    assert len(PYTHON) > 5
    assert len(COMMANDS) > 15
