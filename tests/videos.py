"""What tests of the page and of the server share: a resident model, and makers of videos of a size whose programs tests/pipeline leaves on disk."""

import pytest

SIZE = {"frames": 5, "height": 16, "width": 24, "steps": 4}
CAPTION = "a red circle moves left"
SMALL = {"prompt": CAPTION, "size": "24x16", "num_frames": 5, "num_inference_steps": 4}
"""The same as a body of `POST /v1/videos`."""
BASE = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def resident(tiny_checkpoint):
    """The bundled model, resident."""
    from qsjax.pipeline import Pipeline

    return Pipeline.from_checkpoint(tiny_checkpoint, staged=False, progress=False)


@pytest.fixture
def maker(resident, tmp_path):
    """A maker with a folder of its own, for small videos."""
    from qsjax.serving import Limits, VideoFolder, VideoMaker

    limits = Limits.of(resident.settings, pixels=5 * 32 * 32, steps=8)
    return VideoMaker(resident, VideoFolder(tmp_path / "videos"), limits, reference=resident)


@pytest.fixture
def asked():
    """A request of the usual size, with changes."""
    from qsjax.jobs import VideoRequest

    return lambda prompt=CAPTION, **changes: VideoRequest(prompt=prompt, **{**SIZE, **changes})


@pytest.fixture
def server_queue(maker):
    """The queue of `client`."""
    from qsjax.serving import TaskQueue

    queue = TaskQueue(maker, limit=12)
    yield queue
    queue.close()


@pytest.fixture
def client(maker, server_queue):
    """Of a server without a key and without a port."""
    from starlette.testclient import TestClient

    from qsjax.server.app import make_app

    app = make_app(maker, server_queue, model="tiny", key=None)
    return TestClient(app, BASE, raise_server_exceptions=False)
