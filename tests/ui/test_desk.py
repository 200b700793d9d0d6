"""What the page does and shows, without Gradio and without a browser."""

import re
import sys

import pytest
from videos import CAPTION, SIZE

from qsjax.cli import main
from qsjax.serving import TaskQueue
from qsjax.settings import Settings
from qsjax.ui import html
from qsjax.ui.desk import FIELDS, Desk

EVIL = '<img src=x onerror="alert(1)">'


@pytest.fixture
def queue(maker):
    queue = TaskQueue(maker, limit=1)
    yield queue
    queue.close()


@pytest.fixture
def desk(maker, queue):
    return Desk(maker, queue)


def form(**changes):
    empty = dict.fromkeys(FIELDS)
    return {**empty, "prompt": CAPTION, "recipe": "", "compare": False, "seed": "", **SIZE, **changes}  # fmt: skip


def finished(queue):
    (task,) = queue.tasks[-1:]
    return queue.wait(task.id, 120.0)


def test_a_video_from_the_form_is_shown_and_its_settings_come_back(desk, queue, maker):
    view, last = desk.view("", "")
    assert "Describe a video" in view.result
    assert (view.busy, view.chosen, last) == (False, "", "")
    assert desk.generate(form(seed="7", prompt=EVIL, shift=3)) == ""
    task = finished(queue)
    view, last = desk.view("", "")
    assert view.chosen == last == task.id
    assert f'src="videos/{task.id}.mp4"' in view.result
    assert "5 frames of 24 x 16 · 4 steps · seed 7" in view.result
    assert view.status == ""
    assert f'data-id="{task.id}" data-action="again"' in view.history
    for part in (view.result, view.history, html.running(task)):
        assert "<img src=x" not in part
        assert "&lt;img src=x onerror=&quot;" in part
    values = desk.settings_of(task.id)
    assert {name: values[name] for name in SIZE} == SIZE
    assert (values["prompt"], values["seed"], values["shift"]) == (EVIL, "7", 3.0)
    assert set(values) == set(FIELDS)
    assert desk.generate(values | {"compare": False}) == ""
    again = finished(queue)
    assert again.path.read_bytes() == task.path.read_bytes()
    # The page of another process has it all from the folder.
    other = Desk(maker, TaskQueue(maker, limit=1))
    assert [again.id, task.id] == re.findall(r'data-id="([^"]+)" data-action="show"', other.view("", "")[0].history)  # fmt: skip
    assert "made in" not in other.view(task.id, "")[0].result


def test_what_a_page_has_it_need_not_get_again(desk, queue):
    first, last = desk.view("", "")
    assert desk.view(first.chosen, last)[0].parts == first.parts
    desk.generate(form())
    finished(queue)
    assert all(a != b for a, b in zip(desk.view("", "")[0].parts[1:], first.parts[1:], strict=True))


def test_a_second_video_waits_for_the_first_and_all_is_cancelled(desk, queue):
    assert desk.generate(form(steps=8)) == ""
    assert desk.generate(form()) == "a video is being made; wait for it or cancel it"
    view, _ = desk.view("", "")
    assert view.busy
    assert 'role="progressbar"' in view.status
    assert "8 full attention" in view.status
    desk.cancel()
    assert finished(queue).state in ("cancelled", "completed")
    assert not desk.view("", "")[0].busy


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "  "}, "the prompt is empty; describe the video in a few words"),
        ({"prompt": None}, "the prompt is empty"),
        ({"prompt": "x" * 70_000}, "the text has 70000 characters"),
        ({"prompt": ["a"]}, "prompt: expected str"),
        ({"frames": 6}, "frames=6: must be 4k+1; the nearest valid number is 5"),
        ({"frames": 5.5}, "frames: expected int"),
        ({"frames": True}, "frames: expected int"),
        ({"width": -16}, "width"),
        ({"width": 1 << 40}, "width"),
        ({"steps": 9}, "steps=9: at most 8 are made here"),
        ({"steps": "8"}, "steps: expected int"),
        ({"shift": float("nan")}, "shift"),
        ({"fps": 0}, "fps"),
        ({"seed": "-1"}, "the seed is a whole number from 0 on"),
        ({"seed": "9" * 24}, "seed"),
        ({"seed": "9" * 25}, "the seed is a whole number"),
        ({"seed": "\u0663"}, "the seed is a whole number"),
        ({"recipe": "../../etc/passwd.toml"}, "no such recipe"),
        ({"recipe": 3}, "the form was not sent as the page has it"),
        ({"compare": "yes"}, "the form was not sent as the page has it"),
        ({"negative_prompt": "blue"}, "a negative prompt was given"),
    ],
)
def test_bad_input_gets_its_sentence(desk, queue, changes, said):
    told = desk.generate(form(**changes))
    assert said in told
    assert "`" not in told
    assert "\n" not in told
    assert not queue.tasks
    assert re.fullmatch(r'<p class="qs-error" role="alert">[^<]+</p>', html.refusal(told))


@pytest.mark.parametrize("name", [None, 3, "", "../x", "video-20260101-000000-0123456789abcdef"])
def test_settings_of_what_is_not_there(desk, name):
    assert desk.settings_of(name) is None


def test_steps_by_kind():
    of = ("dense", "refresh", "sparse", "sparse")
    shown = html.kinds(of, 2)
    assert shown.count("qs-later") == 2
    assert "2 sparse attention" in shown
    assert "1 refresh of the cache" in shown
    assert "refresh or sparse" in html.kinds(("adaptive",), 0)


def test_previews_are_pictures():
    import base64
    import io

    import numpy as np
    from PIL import Image

    frames = np.zeros((3, 4, 6, 3), np.uint8)
    frames[1] = 255
    data = base64.b64decode(html.animated(frames).partition(",")[2])
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size, picture.n_frames) == ("WEBP", (6, 4), 3)


def test_the_page_has_every_field_of_the_form():
    own = {"prompt", "seed", "recipe", "compare"}
    assert set(FIELDS) - own <= set(Settings.__dataclass_fields__)


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    """Before a model is opened or a folder made."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    assert main(["ui", "--model", "nowhere", "--out", str(tmp_path / "videos")]) == 2
    assert "the page needs Gradio; `pip install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
