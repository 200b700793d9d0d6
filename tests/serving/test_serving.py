"""Videos on request without any page: order, states, cancellation, history, comparisons, and what is left of a kill."""

import threading
import time
from dataclasses import replace

import pytest
from videos import CAPTION, SIZE

from convert import Sources, convert
from convert.bundled import tiny_model_directory
from qsjax.cli import main
from qsjax.errors import InputError, NotFiniteError
from qsjax.jobs import VideoRequest
from qsjax.pipeline import Pipeline
from qsjax.provenance import read_provenance
from qsjax.serving import (
    Limits,
    Outcome,
    QueueFullError,
    Stopped,
    TaskProgress,
    TaskQueue,
    VideoFolder,
)

OUTCOME = Outcome(kinds=("dense",), skipped=0, seconds={})


class Steps:
    """Stands for a model: a task goes on by a step when the test says so."""

    def __init__(self):
        self.made, self._steps = [], threading.Semaphore(0)

    def __call__(self, task, report):
        for step in range(3):
            report(TaskProgress(stage="denoising", step=step, steps=3))
            self._steps.acquire()
        self.made.append(task.id)
        return OUTCOME

    def go(self, steps=3):
        self._steps.release(steps)


@pytest.fixture
def steps():
    return Steps()


@pytest.fixture
def queue(steps):
    queue = TaskQueue(steps, limit=3)
    yield queue
    steps.go(100)
    queue.close()


def started(queue, task):
    with queue._changed:
        assert queue._changed.wait_for(lambda: queue._tasks[task.id].progress.stage == "denoising", 30)  # fmt: skip


def test_first_in_first_out_and_the_queue_is_bounded(maker, asked, queue, steps):
    tasks = [maker.plan(asked()) for _ in range(4)]
    for task in tasks[:3]:
        queue.submit(task)
    with pytest.raises(QueueFullError, match="3 videos are being made; wait for it or cancel it"):
        queue.submit(tasks[3])
    started(queue, tasks[0])
    assert [task.state for task in queue.tasks] == ["in_progress", "queued", "queued"]
    steps.go()
    assert queue.wait(tasks[0].id, 30.0).state == "completed"
    queue.submit(tasks[3])
    steps.go(100)
    assert queue.wait(tasks[3].id, 30.0).outcome is OUTCOME
    assert steps.made == [task.id for task in tasks]
    assert all(task.is_finished and task.percent == 100 for task in queue.tasks)


def test_what_waits_and_what_runs_is_cancelled_and_the_next_one_runs(maker, asked, queue, steps):
    first, second, third = (maker.plan(asked()) for _ in range(3))
    for task in (first, second, third):
        queue.submit(task)
    started(queue, first)
    assert queue.cancel(second.id).state == "cancelled"
    assert queue.cancel(first.id).state == "in_progress"  # until its next step
    steps.go(1)
    assert queue.wait(first.id, 30.0).state == "cancelled"
    steps.go()
    assert queue.wait(third.id, 30.0).state == "completed"
    assert steps.made == [third.id]
    assert queue.cancel(third.id).state == "completed"
    assert queue.cancel("nobody") is None
    queue.forget(third.id)
    assert queue.get(third.id) is None


def test_the_end_cancels_all_and_takes_no_more(maker, asked, queue, steps):
    tasks = [maker.plan(asked()) for _ in range(2)]
    for task in tasks:
        queue.submit(task)
    started(queue, tasks[0])
    closing = threading.Thread(target=queue.close)
    closing.start()
    assert queue.wait(tasks[1].id, 30.0).state == "cancelled"
    steps.go()
    closing.join(30)
    assert [task.state for task in queue.tasks] == ["cancelled", "cancelled"]
    assert not queue.ready
    with pytest.raises(InputError, match="no more videos"):
        queue.submit(maker.plan(asked()))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotFiniteError("step 3 made numbers that are not finite"), "step 3 made numbers"),
        (MemoryError("out of memory"), "the device refused .out of memory.; ask for fewer frames"),
        (ZeroDivisionError("SECRET"), "^ZeroDivisionError: this should not happen; the log"),
    ],
)
def test_an_error_fails_one_task_and_not_the_queue(maker, asked, error, said, tmp_path, monkeypatch):  # fmt: skip
    import re

    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "cache"))
    errors = [error]

    def make(task, report):
        if errors:
            raise errors.pop()
        return OUTCOME

    queue = TaskQueue(make, limit=2)
    bad, good = maker.plan(asked()), maker.plan(asked())
    queue.submit(bad)
    queue.submit(good)
    assert queue.wait(good.id, 30.0).state == "completed"
    failed = queue.get(bad.id)
    assert (failed.state, failed.outcome) == ("failed", None)
    assert re.search(said, failed.error)
    assert "SECRET" not in failed.error
    queue.close()


def test_a_model_that_cannot_be_loaded_fails_the_first_task(maker, asked):
    def warm():
        raise InputError("the checkpoint is damaged")

    queue = TaskQueue(lambda task, report: OUTCOME, limit=2, warm=warm)
    task = maker.plan(asked())
    queue.submit(task)
    assert queue.wait(task.id, 30.0).error == "the checkpoint is damaged"
    queue.close()


def test_the_video_is_that_of_the_command_line(maker, asked, tiny_checkpoint, tmp_path):
    """Bit for bit; and its task says what was done."""
    seen = []
    task = maker.plan(asked(seed=7))
    outcome = maker(task, seen.append)
    words = [word for name, value in SIZE.items() for word in (f"--{name}", str(value))]
    typed = ["sample", "--model", str(tiny_checkpoint), "--prompt", CAPTION, "--seed", "7"]
    assert main([*typed, *words, "--out", str(tmp_path / "a.mp4")]) == 0
    assert task.path.read_bytes() == (tmp_path / "a.mp4").read_bytes()
    assert [one.stage for one in seen if one.stage != "denoising"] == [
        *("loading", "encoding", "decoding", "writing")
    ]
    assert [one.step for one in seen if one.stage == "denoising"] == [0, 1, 2, 3, 4]
    assert outcome.kinds == ("dense",) * 4
    assert set(outcome.seconds) >= {"denoise", "decode", "all"}
    assert (outcome.psnr, outcome.ssim) == (None, None)


def test_beside_full_precision(maker, asked, tmp_path):
    """W4A8, rounded to nearest, against the checkpoint that it was made of; both files say how they were made."""
    sources = Sources.find(tiny_model_directory())
    convert(sources, tmp_path / "w4a8", quantize="rtn-w4a8", progress=False)
    quantized = Pipeline.from_checkpoint(tmp_path / "w4a8", progress=False)
    maker = replace(maker, pipeline=quantized)
    assert "quantsparse-w4a8-d15" in maker.recipes
    task = maker.plan(asked(seed=1), compare=True)
    assert (task.percent, task.job.made.seed) == (0, 1)
    outcome = maker(task, lambda progress: None)
    assert 10 < outcome.psnr < 60
    assert 0 < outcome.ssim < 1
    (record,) = maker.folder.newest(5)
    reference = read_provenance(record.reference)
    assert reference.checkpoint == maker.reference.content_digest != record.made.checkpoint
    assert reference.settings == record.made.settings
    assert (record.made.seed, record.made.prompt) == (reference.seed, reference.prompt)
    assert maker.folder.delete(record.id)
    assert not list(maker.folder.place.iterdir())


def test_previews_are_reported(maker, asked, monkeypatch, tmp_path):
    from qsjax.preview import fitting

    monkeypatch.setenv("QSJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "_CLIPS", 3)
    seen = []
    own = replace(maker, preview=2)
    own(own.plan(asked()), seen.append)
    assert [one.preview is None for one in seen if one.stage == "denoising"] == [
        *(True, True, False, False, False)
    ]
    assert seen[-2].preview.shape == (2, 4, 6, 3)


@pytest.mark.parametrize("moment", range(8))
def test_a_stop_at_any_report_leaves_nothing(maker, asked, moment):
    reports = []

    def report(progress):
        reports.append(progress)
        if len(reports) > moment:
            raise Stopped

    with pytest.raises(Stopped):
        maker(maker.plan(asked()), report)
    assert not list(maker.folder.place.iterdir())


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"steps": 9}, {}, "steps=9: at most 8 are made here; ask for fewer"),
        ({"frames": 9}, {}, None),
        ({"frames": 17}, {}, "6,528 pixels, at most 5,120 are made here; ask for fewer frames"),
        ({"frames": 6}, {}, "must be 4k"),
        ({"height": 17}, {}, "must be a multiple of"),
        ({"prompt": "\ud800"}, {}, "is not Unicode"),
        ({"negative_prompt": "blue"}, {}, "a negative prompt was given"),
        ({}, {"recipe": "quantsparse-w4a8-d15"}, "no such recipe; .*known: few-steps"),
        ({}, {"recipe": "/etc/passwd.toml"}, "no such recipe"),
    ],
)
def test_what_cannot_be_made_is_refused_before_it_waits(maker, asked, changes, arguments, said):
    if said is None:
        maker.plan(asked(**changes), **arguments)
        return
    with pytest.raises(InputError, match=said):
        maker.plan(asked(**changes), **arguments)
    assert not list(maker.folder.place.iterdir())


def test_a_comparison_needs_full_precision(maker, asked):
    with pytest.raises(InputError, match="no checkpoint in full precision to compare with"):
        replace(maker, reference=None).plan(asked(), compare=True)


def test_seeds_are_drawn_and_limits_follow_the_checkpoint(maker, asked):
    seeds = {maker.plan(asked()).job.made.seed for _ in range(4)}
    assert len(seeds) == 4
    stored = maker.pipeline.settings
    assert Limits.of(stored).pixels == 2 * stored.frames * stored.height * stored.width


def test_what_is_on_the_disk_is_the_history(maker, asked, tmp_path):
    """Of another process, too; names of strangers, links and videos that say nothing are left alone."""
    first, second = maker.plan(asked("one")), maker.plan(asked("two"))
    maker(first, lambda progress: None)
    place = maker.folder.place
    again = VideoFolder(place)
    record = again.find(first.id)
    assert record.made == first.job.made
    assert record.reference is None
    assert again.find(second.id) is None
    assert [one.id for one in again.newest(5)] == [first.id]
    (place / "cat.mp4").write_bytes(first.path.read_bytes())
    again.file(second.id).symlink_to(place / "cat.mp4")
    assert [one.id for one in again.newest(5)] == [first.id]
    again.file(second.id).unlink()
    again.file(second.id).write_bytes(b"no video")
    assert again.find(second.id) is None
    for name in ("../cat", "cat", "", f"{first.id}/..", first.id.upper(), f"{first.id}.mp4"):
        with pytest.raises(InputError, match="no such video"):
            again.file(name)
    with pytest.raises(InputError, match="is no folder"):
        VideoFolder(place / "cat.mp4")


def test_what_a_kill_left_is_removed_and_one_process_holds_the_folder(maker, asked):
    task = maker.plan(asked())
    place, folder = maker.folder.place, maker.folder
    left = [f"{task.id}.mp4.tmp", f"{task.id}.full-precision.mp4.tmp", f"{task.id}.full-precision.mp4"]  # fmt: skip
    kept = ["cat.mp4.tmp", "cat.full-precision.mp4"]
    for name in [*left, *kept]:
        (place / name).touch()
    with folder.held("ui"):
        assert {path.name for path in place.iterdir()} == {*kept, ".qsjax.lock"}
        with pytest.raises(InputError, match=r"is at work there"), VideoFolder(place).held("serve"):
            pass
    assert {path.name for path in place.iterdir()} == set(kept)


def test_a_reference_is_in_full_precision(maker):
    class Quantized(Pipeline):
        weights = "w4a8"

        def __init__(self):
            pass

    with pytest.raises(InputError, match="is in w4a8; name a checkpoint in full precision"):
        replace(maker, reference=Quantized())


def test_real_tasks_in_a_queue(maker, asked):
    """All of it together: three videos in order, one of them cancelled while it waits."""
    queue = TaskQueue(maker, limit=3, warm=maker.warm)
    tasks = [maker.plan(asked(f"a red circle {n}")) for n in range(3)]
    for task in tasks:
        queue.submit(task)
    queue.cancel(tasks[1].id)
    assert queue.wait(tasks[2].id, 120.0).state == "completed"
    assert queue.ready
    states = [task.state for task in queue.tasks]
    assert states == ["completed", "cancelled", "completed"]
    first, _, last = queue.tasks
    assert first.created <= first.started <= first.finished <= last.started <= time.time()
    assert {path.stem for path in maker.folder.place.iterdir()} == {first.id, last.id}
    queue.close()


def test_a_request_is_checked_by_itself():
    with pytest.raises(InputError, match="the prompt is empty"):
        VideoRequest(prompt=" ")
    with pytest.raises(InputError, match="has 65537 characters"):
        VideoRequest(prompt="x" * 65537)
    with pytest.raises(InputError, match="must be from 0 to"):
        VideoRequest(prompt="a", seed=-1)
    assert VideoRequest(prompt="a", steps=3, fps=8).settings == {"steps": 3, "fps": 8}
