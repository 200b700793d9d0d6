"""Makers of videos of a size whose programs tests/pipeline leaves on disk."""

import pytest

from qsjax.jobs import VideoRequest
from qsjax.pipeline import Pipeline
from qsjax.serving import Limits, VideoFolder, VideoMaker

SIZE = {"frames": 5, "height": 16, "width": 24, "steps": 4}
CAPTION = "a red circle moves left"


@pytest.fixture(scope="session")
def resident(tiny_checkpoint):
    """The bundled model, resident."""
    return Pipeline.from_checkpoint(tiny_checkpoint, staged=False, progress=False)


@pytest.fixture
def maker(resident, tmp_path):
    """A maker with a folder of its own, for small videos."""
    limits = Limits.of(resident.settings, pixels=5 * 32 * 32, steps=8)
    return VideoMaker(resident, VideoFolder(tmp_path / "videos"), limits, reference=resident)


@pytest.fixture
def asked():
    """A request of the usual size, with changes."""
    return lambda prompt=CAPTION, **changes: VideoRequest(prompt=prompt, **{**SIZE, **changes})
