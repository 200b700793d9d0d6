"""`qsjax ui` in a real browser: type a prompt, click, see a video play, cancel, and read why something is refused.

Needs Chromium, of the system or playwright's own, and `pip install '.[browser]'`. Screenshots are left in the test's
temporary folder (`pytest -m browser --basetemp=pictures`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.browser
CAPTION = "a red circle moves left over a dark background"
PATIENCE = 120_000
"""Milliseconds for what takes seconds: the machine may be busy."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page's address and its folder of videos; Ctrl-C ends it."""
    folder = tmp_path_factory.mktemp("page") / "videos"
    command = [sys.executable, "-m", "qsjax", "ui", "--port", "0", "--json", "--out", str(folder), "--max-steps", "400"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        report = json.loads(process.stdout.readline())
        assert report == {"address": report["address"], "share": None, "out": str(folder)}
        yield report["address"], folder
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if os.path.exists(own) else shutil.which("chromium") or shutil.which("google-chrome")  # fmt: skip
        assert found, "no Chromium is here; `playwright install chromium`"
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=found, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def page(served, chromium, tmp_path):
    """The page in a tab of its own. It asks for nothing from elsewhere, and its scripts have no errors."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 1000})
    tab.set_default_timeout(PATIENCE)
    elsewhere, errors = [], []
    tab.on("request", lambda request: elsewhere.append(request.url))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)  # fmt: skip
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(served[0])
    tab.wait_for_selector("#history .qs-note, #history .qs-card")
    yield tab
    tab.screenshot(path=tmp_path / "end.png", full_page=True)
    tab.close()
    own = (served[0], served[0].replace("127.0.0.1", "localhost"), "data:", "blob:")
    assert [url for url in elsewhere if not url.startswith(own)] == []
    assert errors == []


def fill(page, *, prompt=CAPTION, frames=5, side=32, steps=8, seed="3"):
    page.fill("#prompt textarea", prompt)
    for label, value in (("Frames", frames), ("Width", side), ("Height", side)):
        page.get_by_label(label, exact=True).fill(str(value))
    page.locator("#steps input[type=number]").fill(str(steps))
    page.locator("#steps input[type=number]").blur()
    page.fill("#seed input, #seed textarea", seed)


def plays(page, selector):
    """Every video that matches shows pictures and goes on."""
    page.wait_for_function(
        "selector => { const all = [...document.querySelectorAll(selector)];"
        " return all.length && all.every(v => v.videoWidth && v.currentTime > 0 && !v.paused); }",
        arg=selector,
    )


def test_a_prompt_becomes_a_video_that_plays(page, served, tmp_path):
    """Beside full precision, with previews, figures, and a history whose settings can be taken again."""
    assert page.locator("#cancel").is_disabled()
    fill(page, frames=33, side=64, steps=30)
    page.get_by_label("Beside full precision").check()
    page.click("#recipe input")
    page.get_by_role("option", name="svg-d25", exact=True).click()
    page.screenshot(path=tmp_path / "form.png", full_page=True)
    page.click("#generate")
    page.wait_for_selector("img.qs-preview")
    page.screenshot(path=tmp_path / "running.png", full_page=True)
    plays(page, "#result video")
    assert page.locator("#result video").count() == 2
    assert "dB PSNR" in page.inner_text(".qs-figures")
    assert "SSIM against full precision" in page.inner_text(".qs-figures")
    assert "sparse attention" in page.inner_text("#result .qs-legend")
    assert "seed 3 · svg-d25" in page.inner_text("#result .qs-meta")
    page.screenshot(path=tmp_path / "result.png", full_page=True)
    (first,) = (path for path in served[1].glob("*.mp4") if "full-precision" not in path.name)
    assert page.locator(".qs-card").count() == 1

    fill(page, prompt="a blue square moves up over dark stripes", seed="4")
    page.get_by_label("Beside full precision").uncheck()
    page.click("#generate")
    page.wait_for_function("document.querySelectorAll('.qs-card').length == 2")
    plays(page, "#result video")
    assert page.locator("#result video").count() == 1

    page.locator(f"[data-id={first.stem}][data-action=again]").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('a red')")
    assert page.get_by_label("Frames", exact=True).input_value() == "33"
    assert page.locator("#seed input, #seed textarea").input_value() == "3"
    assert page.get_by_label("Beside full precision").is_checked()
    page.wait_for_function("document.querySelectorAll('#result video').length == 2")


def test_cancel(page, served):
    """Before its end; nothing is left of it."""
    before = sorted(served[1].iterdir())
    fill(page, frames=33, side=64, steps=400)
    page.get_by_label("Beside full precision").uncheck()
    page.click("#generate")
    page.wait_for_selector(".qs-run")
    assert page.locator("#generate").is_disabled()
    page.click("#cancel")
    page.wait_for_selector("text=Cancelled. Nothing was written.")
    assert sorted(served[1].iterdir()) == before
    page.wait_for_selector("#generate:enabled")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "   "}, "the prompt is empty; describe the video in a few words"),
        ({"frames": 6}, "frames=6: must be 4k+1; the nearest valid number is 5"),
        ({"side": 33}, "must be a multiple of"),
        ({"seed": "many"}, "the seed is a whole number from 0 on"),
        ({"frames": 4001}, "at most 270,336 are made here"),
    ],
)
def test_bad_input_shows_its_sentence(page, tmp_path, changes, said):
    fill(page, **changes)
    page.click("#generate")
    page.wait_for_selector(".qs-error")
    assert said in page.inner_text(".qs-error")
    page.screenshot(path=tmp_path / "refused.png", full_page=True)
    fill(page)
    assert page.locator("#generate").is_enabled()


def test_a_prompt_is_text_and_never_script(page):
    fill(page, prompt="<img src=x onerror=document.title='taken'><script>1</script>")
    page.click("#generate")
    page.wait_for_function("document.querySelector('#result .qs-prompt')?.innerText.startsWith('<img')")  # fmt: skip
    assert page.title() == "qsjax"


def test_dark_and_narrow(served, chromium, tmp_path):
    """No part is wider than a telephone."""
    tab = chromium.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    tab.goto(served[0])
    tab.wait_for_selector("#history .qs-note, #history .qs-card", timeout=PATIENCE)
    assert tab.evaluate("document.documentElement.scrollWidth <= 390")
    tab.screenshot(path=tmp_path / "narrow.png", full_page=True)
    tab.close()


def test_what_the_page_serves_to_strangers(served):
    """Videos of ours, and no file else; no uploads; no other machine's name."""
    address, folder = served
    (folder / "secret.txt").write_text("PRIVATE")
    with httpx.Client(base_url=address, trust_env=False) as client:
        for path in (
            *("videos/secret.txt", "videos/..%2Fsecret.txt", "videos/x.mp4", "videos/%00.mp4"),
            f"gradio_api/file={folder / 'secret.txt'}",
            *("gradio_api/file=/etc/passwd", "file=/etc/passwd", f"gradio_api/file={Path(__file__)}"),
            *("docs", "openapi.json", "gradio_api/startup-events/..%2f..%2fetc/passwd"),
        ):  # fmt: skip
            answer = client.get(path)
            assert answer.status_code in (400, 403, 404), path
            assert b"PRIVATE" not in answer.content
        answer = client.post("gradio_api/upload", files={"files": ("a.bin", b"x" * 100)})
        assert answer.status_code in (400, 403, 413)
        assert client.get("", headers={"Host": "evil.example"}).status_code == 400
        (video, *_) = (path for path in folder.glob("video-*.mp4"))
        answer = client.get(f"videos/{video.name}", headers={"Range": "bytes=0-9"})
        assert (answer.status_code, len(answer.content)) == (206, 10)
