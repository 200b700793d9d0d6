"""`qsjax sample --compare`: the same noise in full precision beside a video, and the page of reports."""

import json
import re

import av
import numpy as np
import pytest
from PIL import Image

from qsjax.cli import main
from qsjax.errors import InputError
from qsjax.evaluate.metrics import PSNR_CAP, psnr
from qsjax.evaluate.side_by_side import SideBySide, write_row
from qsjax.page import Page

SIZE = ["--frames", "5", "--height", "16", "--width", "24", "--steps", "4", "--prompt", "red"]
SPARSE = [
    "--sparsity.mask",
    "topk",
    "--sparsity.density",
    "0.5",
    "--sparsity.block",
    "4",
    "--sparse.interval",
    "2",
]


def videos(seed=0):
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 200, (5, 16, 24, 3)).astype(np.uint8)
    video = reference.copy()
    video[2] += 10
    return reference, video


def decoded(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_sparse_video_beside_the_dense_one(tmp_path, capsys, tiny_checkpoint):
    arguments = ["sample", "--model", str(tiny_checkpoint), *SIZE, *SPARSE]
    arguments += ["--compare", str(tiny_checkpoint), "--out", str(tmp_path / "a.mp4")]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["compare"]
    assert len(report["psnr_by_frame"]) == 5
    assert min(report["psnr_by_frame"]) <= report["psnr"] <= max(report["psnr_by_frame"])
    assert 0 < report["psnr"] < 60  # it is another video, of the same thing
    names = ["a.compare.mp4", "a.compare.png"]
    assert [path.rsplit("/", 1)[1] for path in report["files"]] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "a.mp4"]
    frames = decoded(report["files"][0])
    assert len(frames) == 5
    with av.open(report["files"][0]) as container:
        comment = container.metadata["comment"]
    assert comment == "left: full precision, right: full precision, topk 50 %; seed 0"
    assert main(arguments) == 2  # before anything is sampled: the files are there
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "makes the same video"),
        (["--coordinator", "auto"], "--compare runs on one host"),
        (["--save-prompt", "p"], "--save-prompt stops before there is a video"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, tiny_checkpoint, options, message):
    model = ["--model", str(tiny_checkpoint), "--compare", str(tiny_checkpoint)]
    assert main(["sample", *model, *SIZE, *options, "--out", str(tmp_path / "a.mp4")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_figures_are_those_of_the_frames():
    reference, video = videos()
    pair = SideBySide.of(reference, video, ("a", "b"))
    assert pair.psnr_by_frame.tolist() == pytest.approx(
        [PSNR_CAP] * 2 + [28.13] + [PSNR_CAP] * 2, abs=0.01
    )
    whole = psnr(video[None] / 255.0, reference[None] / 255.0)[0]
    assert pair.psnr == pytest.approx(whole, abs=1e-4)
    assert pair.ssim is not None
    assert 0.5 < pair.ssim < 1
    assert SideBySide.of(reference[:, :8], video[:, :8], ("a", "b")).ssim is None
    with pytest.raises(InputError, match="compare videos of one size"):
        SideBySide.of(reference, video[1:], ("a", "b"))


def test_pictures_hold_both_videos_and_their_names(tmp_path):
    reference, video = videos()
    same = SideBySide.of(reference, video, ("a", "a" * 500))
    strip = np.asarray(Image.open(same.write_strip(tmp_path / "s.png")))
    zoom = -(-160 // 24)
    np.testing.assert_array_equal(
        strip[22 : 22 + 16 * zoom : zoom, : 24 * zoom : zoom], reference[0]
    )
    frame = decoded(same.write_video(tmp_path / "v.mp4", fps=8, comment="why"))[0]
    zoom = -(-256 // 24)
    assert frame.shape == ((16 * zoom + 22) // 2 * 2, (2 * 24 * zoom + 4) // 2 * 2, 3)
    assert frame[:22].min() < 100 < frame[:22].mean()  # black words on white
    large = {"x": np.zeros((1, 72, 1281, 3), np.uint8), "y": np.zeros((1, 72, 1281, 3), np.uint8)}
    assert decoded(write_row(large, tmp_path / "l.mp4", fps=8))[0].shape == (58, 1284, 3)


def test_a_page_is_by_itself_and_escapes_all(tmp_path):
    evil = "<script>alert(1)</script>\"'&\x00\udcff"
    page = Page(evil)
    page.markdown(f"## {evil}\n\n| a | {evil} |\n| --- | --- |\n| 1 | {evil} |\n\n{evil}")
    page.preformatted(evil)
    page.chart({evil: [1.0, float("nan"), 3.0], "b": [2]}, across=evil, up=evil)
    page.chart({"nothing": [float("inf")]}, across="x", up="y")
    reference, video = videos()
    pair = SideBySide.of(reference, video, ("a", "b"))
    page.picture(pair.write_strip(tmp_path / "s.png"), evil)
    page.video(pair.write_video(tmp_path / "v.mp4", fps=8), evil)
    text = page.write(tmp_path / "p.html").read_text("utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;") == 13
    assert text.count("<svg") == 1
    levels = re.findall(r'text-anchor="end">([0-9.]+)</text>', text)
    assert levels == ["0", "0.5", "1", "1.5", "2", "2.5", "3", "3"]  # the last counts the values
    assert "default-src 'none'" in text
    assert re.findall(r'(?:src|href)="(data:[a-z/0-9]+;base64,)?', text) == [
        "data:image/png;base64,",
        "data:video/mp4;base64,",
    ]
    with pytest.raises(InputError, match="exists already"):
        page.write(tmp_path / "p.html", overwrite=False)
