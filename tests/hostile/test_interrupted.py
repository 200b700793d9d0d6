"""Conversions and calibrations that are killed, or two at a time: one result, whole, and the same command then exits 0."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from calibration.calibration_models import random_checkpoint

from convert.verification import verify
from qsjax.checkpoint import Manifest

HERE = Path(__file__).parent
pytestmark = pytest.mark.hostile


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A small float checkpoint; the files that it was made from are beside it."""
    return random_checkpoint(tmp_path_factory.mktemp("floats"))


@pytest.fixture(scope="module")
def source(floats):
    return floats.with_name("transformer")


def conversions(what, source, folder, *words):
    """The lines that `conversions.py` prints."""
    command = [sys.executable, HERE / "conversions.py", what, source, folder, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_kills(lines, bits):
    for line in lines:
        assert line["status"] == 0, line
        assert line["bits"] == bits, line
        # Nothing of the work is left, in the checkpoint or beside it.
        assert (line["left"], line["inside"]) == (["checkpoint"], ["dit", "manifest.json"]), line


@pytest.mark.whole
def test_kills(source, tmp_path):
    """At some of all changes of the file system, and at each of the last ones, where the checkpoint gets its name."""
    numbers = [0, 1, 3, 40, -6, -5, -4, -3, -2, -1]
    whole, *lines = conversions("kill", source, tmp_path, *numbers)
    assert whole["killed"] == 0
    assert [line["killed"] for line in lines] == [-9] * len(lines)
    check_kills([whole, *lines], whole["bits"])


@pytest.mark.slow
def test_a_hundred_kills(source, tmp_path):
    (tmp_path / "whole").mkdir()
    [whole] = conversions("kill", source, tmp_path / "whole", 0)
    numbers = sorted({1 + number * (whole["of"] - 1) // 99 for number in range(100)})
    assert len(numbers) == 100
    lines = conversions("kill", source, tmp_path, *numbers)
    assert [line["killed"] for line in lines] == [-9] * 100
    check_kills(lines, whole["bits"])


def check_pairs(lines):
    """Of two alike both end well; of two others the later one is refused, and what is there is whole."""
    for line in lines:
        assert line["statuses"] == ([0, 0] if line["alike"] else [0, 2]), line
        assert line["checked"] == 0, line
        assert (line["left"], line["inside"]) == (["checkpoint"], ["dit", "manifest.json"]), line
    assert len({line["bits"] for line in lines if line["alike"]}) == 1


@pytest.mark.whole
def test_pairs(source, tmp_path):
    check_pairs(conversions("pair", source, tmp_path, 4))


@pytest.mark.slow
def test_a_hundred_pairs(source, tmp_path):
    lines = conversions("pair", source, tmp_path, 100)
    assert len(lines) == 100
    check_pairs(lines)


@pytest.mark.slow
def test_five_pairs_of_calibrations(floats, tmp_path):
    program = "import sys; from end_to_end.four_blocks import main; sys.exit(main(sys.argv[1:]))"
    digests = set()
    for number in range(5):
        out = tmp_path / f"pair-{number}" / "w4a8"
        out.parent.mkdir()
        command = [sys.executable, "-c", program, floats, out]
        pair = [
            subprocess.Popen(command, cwd=HERE.parent, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        errors = [process.communicate()[1] for process in pair]
        assert [process.returncode for process in pair] == [0, 0], errors
        assert [path.name for path in out.parent.iterdir()] == ["w4a8"]
        verify(out, progress=False)
        manifest = Manifest.read(out)
        digests.add(json.dumps([spec["sha256"] for *_, spec in manifest.leaves("dit")]))
    assert len(digests) == 1
