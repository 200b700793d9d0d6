"""Many prompts of a file: what a line may say, one model at a time, failures of one alone, and work that goes on."""

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from small_disk import fill

from qsjax.cli import main
from qsjax.errors import InputError, NotFiniteError
from qsjax.jobs import plan_jobs, read_requests, sample_jobs
from qsjax.jobs.stages import _Stages
from qsjax.jobs.work import FOLDER, Work
from qsjax.locks import lock
from qsjax.pipeline import Pipeline
from qsjax.provenance import read_provenance

SIZE = {"frames": 5, "height": 16, "width": 24, "steps": 4}
"""That of tests/pipeline, which leaves programs on disk."""
CUT = Path(__file__).parents[1] / "end_to_end" / "cut.py"
CAPTIONS = ("a red circle moves left", "a blue square moves up", "a green triangle grows")
WORDS = [word for name, value in SIZE.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return Pipeline.from_checkpoint(tiny_checkpoint, staged=True, progress=False)


@pytest.fixture
def counted(pipeline, monkeypatch):
    """How often each stage ran, and each model was loaded."""
    counts = Counter()
    pipeline.release()
    for name in ("_encode", "_denoise", "_decode"):
        stage = getattr(_Stages, name)
        monkeypatch.setattr(
            _Stages,
            name,
            lambda self, job, name=name, stage=stage: (counts.update([name]), stage(self, job)),
        )
    read = pipeline._models._read
    monkeypatch.setattr(pipeline._models, "_read", lambda load: (counts.update(["load"]), read(load))[1])  # fmt: skip
    return counts


def requests(folder, *lines, suffix=".jsonl"):
    path = folder / f"prompts{suffix}"
    path.write_text("\n".join(lines))
    return read_requests(path)


def jobs_of(pipeline, folder, **arguments):
    """Three jobs whose videos are in `folder / "out"`."""
    out = folder / "out"
    made, refused = requests(folder, *CAPTIONS, suffix=".txt")
    assert not refused
    jobs, refused = plan_jobs(pipeline, made, out, **SIZE, **arguments)
    assert not refused
    return jobs, out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    """The videos of a run that nothing disturbed."""
    jobs, out = jobs_of(pipeline, tmp_path_factory.mktemp("whole"))
    done = sample_jobs(pipeline, jobs, out, progress=False)
    assert list(done.written) == [1, 2, 3]
    assert all(set(seconds) == {"encode", "denoise", "decode"} for seconds in done.written.values())
    found = contents(out)
    assert set(found) == {"0001.mp4", "0002.mp4", "0003.mp4"}
    return found


def test_a_video_of_many_is_that_of_one(pipeline, whole, tmp_path, tiny_checkpoint):
    model = ["sample", "--model", str(tiny_checkpoint), *WORDS, "--out", str(tmp_path / "a.mp4")]
    assert main([*model, "--prompt", CAPTIONS[1]]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == whole["0002.mp4"]


@pytest.mark.parametrize(
    ("where", "second"),
    [
        ("save_encoding", {"_encode": 3, "_denoise": 3, "_decode": 3, "load": 3}),
        ("save_latents", {"_encode": 2, "_denoise": 2, "_decode": 3, "load": 2}),
        ("load_latents", {"_decode": 2, "load": 1}),
    ],
)
def test_a_stop_loses_one_stage_of_one_clip(
    pipeline, whole, counted, tmp_path, monkeypatch, where, second
):
    """Stopped in the second clip of a stage; no model is loaded twice, and none that is not needed any more."""
    jobs, out = jobs_of(pipeline, tmp_path)
    usual, calls = getattr(Work, where), []

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return usual(self, *arguments)

    monkeypatch.setattr(Work, where, stop)
    with pytest.raises(KeyboardInterrupt):
        sample_jobs(pipeline, jobs, out, progress=False)
    assert (out / FOLDER).is_dir()
    # What a killed process leaves of a file that it was writing.
    (out / FOLDER / f"{'0' * 64}.npy.tmp").touch()
    pipeline.release()
    counted.clear()
    done = sample_jobs(pipeline, jobs, out, progress=False)
    assert not done.failed
    assert counted == second
    assert contents(out) == whole


@pytest.mark.whole
def test_killed_at_several_moments(whole, tmp_path, tiny_checkpoint):
    """By the system, at changes of the file system from the first to the last; the same command always goes on."""
    (tmp_path / "p.txt").write_text("\n".join(CAPTIONS))

    def start(at, out):
        words = ["--model", tiny_checkpoint, "--prompts", tmp_path / "p.txt", "--out", out]
        command = [sys.executable, CUT, str(at), out, "sample", *map(str, words), *WORDS]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    complete = start(0, tmp_path / "complete")
    assert complete.returncode == 0, complete.stderr[-2000:]
    assert contents(tmp_path / "complete") == whole
    events, killed = int(complete.stdout.splitlines()[-1]), 0
    for part in range(1, 6):
        # Every start has less to do, and is killed after a sixth of all work, or just before its end.
        done = start(events // 6 if part < 5 else 3, tmp_path / "cut")
        killed += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    assert killed >= 4
    last = start(0, tmp_path / "cut")
    assert last.returncode == 0, last.stderr[-2000:]
    assert contents(tmp_path / "cut") == whole


def test_what_is_there_is_not_made_again_and_something_else_is_not_replaced(
    pipeline, whole, counted, tmp_path
):
    jobs, out = jobs_of(pipeline, tmp_path)
    out.mkdir()
    for name, content in whole.items():
        (out / name).write_bytes(content)
    done = sample_jobs(pipeline, jobs, out, progress=False)
    assert (done.there, done.written, counted) == ([1, 2, 3], {}, {})
    (out / "0002.mp4").write_bytes(b"mine")
    failures = []
    done = sample_jobs(pipeline, jobs, out, progress=False, failed=failures.append)
    assert [one.line for one in failures] == [2]
    assert "0002.mp4: exists already; pass `overwrite=True`" in failures[0].reason
    assert (out / "0002.mp4").read_bytes() == b"mine"
    done = sample_jobs(pipeline, jobs, out, overwrite=True, progress=False)
    assert (done.there, list(done.written)) == ([1, 3], [2])
    assert contents(out) == whole


def test_one_that_fails_leaves_the_others_and_its_work(pipeline, whole, tmp_path, monkeypatch):
    jobs, out = jobs_of(pipeline, tmp_path)
    sample = Pipeline.sample

    def broken(self, prompt, *, seed, **others):
        if len(list((out / FOLDER).glob("*.npy"))) == 1:
            (out / FOLDER / "mine").touch()
            monkeypatch.undo()
            raise NotFiniteError("step 1 of 2 made numbers that are not finite")
        return sample(self, prompt, seed=seed, **others)

    monkeypatch.setattr(Pipeline, "sample", broken)
    done = sample_jobs(pipeline, jobs, out, progress=False)
    assert [(one.line, one.reason[:6]) for one in done.failed] == [(2, "step 1")]
    work = Work(out / FOLDER)
    left = {path.name for path in (out / FOLDER).iterdir()}
    assert left == {"mine", work.encoding(jobs[1], CAPTIONS[1]).name}
    done = sample_jobs(pipeline, jobs, out, progress=False)
    assert (list(done.written), done.there) == ([2], [1, 3])
    # Somebody's file is nobody's to delete.
    assert [path.name for path in (out / FOLDER).iterdir()] == ["mine"]


PAGE = 4096
FULL = {"before": PAGE, "encode": 4 * PAGE, "denoise": 8 * PAGE, "decode": 10 * PAGE}
"""Room that is left: the lock takes a page, an encoding two, latents and a video one each."""


@pytest.mark.parametrize("stage", FULL)
def test_a_full_disk_is_one_sentence_and_the_work_stays(
    stage, pipeline, whole, counted, small_disk, tmp_path, monkeypatch
):
    """The others would find no room either: nothing is computed for them."""
    jobs, _ = jobs_of(pipeline, tmp_path)
    out = small_disk / "out"
    jobs = [replace(job, out=out / job.out.name) for job in jobs]
    fill(small_disk, FULL[stage])
    if stage == "before":
        with pytest.raises(InputError, match=r"out: needs [\d.]+ kB, 0 B are free; make room"):
            sample_jobs(pipeline, jobs, out, progress=False)
        monkeypatch.setattr("qsjax.jobs.stages.require_room", lambda *_: None)
    failures = []
    with pytest.raises(
        InputError, match=r"cannot be written \(No space left on device\); make room"
    ):
        sample_jobs(pipeline, jobs, out, progress=False, failed=failures.append)
    assert not failures
    done = {"before": (1, 0, 0), "encode": (2, 0, 0), "denoise": (3, 2, 0), "decode": (3, 3, 1)}
    assert tuple(counted[f"_{name}"] for name in ("encode", "denoise", "decode")) == done[stage]
    assert not list(out.glob("*.tmp"))
    (small_disk / "somebody's").unlink()
    before = counted.copy()
    assert not sample_jobs(pipeline, jobs, out, progress=False).failed
    again = counted - before
    left = {"before": (3, 3, 3), "encode": (3, 3, 3), "denoise": (2, 2, 3), "decode": (0, 0, 3)}
    assert tuple(again[f"_{name}"] for name in ("encode", "denoise", "decode")) == left[stage]
    assert contents(out) == whole


def test_the_command_says_a_full_disk_once(small_disk, tmp_path, tiny_checkpoint, capsys):
    (tmp_path / "p.txt").write_text("\n".join(CAPTIONS))
    words = ["sample", "--model", str(tiny_checkpoint), *WORDS, "--out", str(small_disk / "out")]
    fill(small_disk, 0)
    assert main([*words, "--prompts", str(tmp_path / "p.txt")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in errors] == [True]
    assert "make room" in errors[0]


def test_two_processes_do_not_make_different_videos_in_one_folder(pipeline, tmp_path):
    jobs, out = jobs_of(pipeline, tmp_path)
    with (
        lock(out / FOLDER, doing="sample", identity="another"),
        pytest.raises(InputError, match="is at work there"),
    ):
        sample_jobs(pipeline, jobs, out, progress=False)


BAD = {
    '{"prompt": "x", "out": "../a.mp4"}': "no path inside the folder",
    '{"prompt": "x", "out": "/a.mp4"}': "no path inside the folder",
    '{"prompt": "x", "out": ".qsjax/a.mp4"}': "no path inside the folder",
    '{"prompt": "x", "out": "a\\u0000.mp4"}': "no path inside the folder",
    '{"prompt": "x", "out": "a.avi"}': "does not end in .mp4",
    '{"prompt": "x", "out": "one.mp4"}': "is that of line 1",
    '{"prompt": "x", "sed": 1}': "did you mean 'seed'",
    '{"prompt": "x", "seed": -1}': "seed -1: must be from 0",
    '{"prompt": "x", "seed": "1"}': "expected int",
    '{"prompt": "x", "seed": 1, "seed": 2}': "occurs twice",
    '{"prompt": "x", "guidance": NaN}': "not finite",
    '{"prompt": "x", "steps": 0}': "at least 1 is needed",
    '{"prompt": "x", "frames": 6}': "nearest valid number",
    '{"prompt": "x", "negative_prompt": "y"}': "does not use it",
    '{"prompt": " "}': "is empty",
    '{"prompt": "\\ud800"}': "not Unicode",
    '{"out": "a.mp4"}': "missing prompt",
    '{"prompt": "x"': "not usable JSON",
    "[1]": "a JSON list",
    "a red circle": "not usable JSON",
    '{"a":' * 3000: "not usable JSON",
    json.dumps({"prompt": "x" * 70_000}): "give at most",
}


def test_bad_lines_are_one_sentence_each_and_the_others_are_made(
    capsys, tmp_path, tiny_checkpoint, whole
):
    good = json.dumps({"prompt": CAPTIONS[0], "out": "one.mp4"})
    (tmp_path / "p.jsonl").write_text("\n".join([good, *BAD]))
    out = tmp_path / "out"
    words = ["sample", "--model", str(tiny_checkpoint), *WORDS, "--out", str(out), "--json"]
    assert main([*words, "--prompts", str(tmp_path / "p.jsonl")]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [one["out"] for one in report["videos"]] == [str(out / "one.mp4")]
    assert (out / "one.mp4").read_bytes() == whole["0001.mp4"]
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(BAD)
    for number, (message, line) in enumerate(zip(BAD.values(), lines, strict=True), 2):
        assert line.startswith(f"error: {tmp_path / 'p.jsonl'} line {number}: ")
        assert message in line
        assert len(line) < 600
    assert [one.name for one in out.iterdir()] == ["one.mp4"]


def test_links_lead_nowhere(pipeline, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "there").symlink_to(tmp_path)
    made, _ = requests(tmp_path, '{"prompt": "x", "out": "there/a.mp4"}')
    jobs, refused = plan_jobs(pipeline, made, tmp_path / "out", **SIZE)
    assert not jobs
    assert "is a link" in refused[0].reason


def test_what_lines_say_wins_over_what_holds_for_all(pipeline, tmp_path):
    own = {"prompt": "x", "seed": 4, "guidance": 2, "true_cfg": 3, "negative_prompt": "y", "steps": 5}  # fmt: skip
    made, _ = requests(tmp_path, "", json.dumps(own), json.dumps({"prompt": "z"}), "")
    jobs, _ = plan_jobs(pipeline, made, Path("out"), seed=9, **SIZE)
    first, second = (job.made for job in jobs)
    assert (first.seed, first.settings.steps, first.settings.guidance) == (4, 5, 2.0)
    assert (jobs[0].negative, first.settings.negative_prompt, jobs[1].negative) == ("y", "y", None)
    assert (second.seed, second.settings.steps) == (9, 4)
    assert [str(job.out) for job in jobs] == ["out/0002.mp4", "out/0003.mp4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no prompt"), (b"\n \n", "holds no prompt"), (b"\xff", "not UTF-8")],
)
def test_files_that_hold_no_prompts(content, message, tmp_path):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_requests(tmp_path / "p.txt")


def test_text_that_is_json_is_no_prompt(tmp_path):
    made, refused = requests(tmp_path, "\ufeffa cat\r", '{"prompt": "a dog"}', suffix=".txt")
    assert made[1].prompt == "a cat"
    assert "looks like JSON" in refused[0].reason


@pytest.mark.parametrize(
    "words",
    [["--prompt", "x"], ["--encoded-prompt", "p"], ["--save-prompt", "p"], ["--like", "a.mp4"], ["--coordinator", "auto"]],
    ids=" ".join,
)  # fmt: skip
def test_options_that_do_not_go_with_it(words, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat")
    typed = ["sample", "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out")]
    assert main([*typed, *words]) == 2
    assert f"{words[0]} does not go with --prompts" in capsys.readouterr().err
    assert main(typed[:3]) == 2
    assert "needs --out DIR" in capsys.readouterr().err
    assert main([*typed[:4], str(tmp_path / "p.txt")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_provenance_is_that_of_the_line(whole, tmp_path):
    (tmp_path / "a.mp4").write_bytes(whole["0003.mp4"])
    assert read_provenance(tmp_path / "a.mp4").prompt == CAPTIONS[2]
