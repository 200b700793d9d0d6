"""The endpoints, around the queue that `qsjax ui` has too."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from qsjax.config import nearest
from qsjax.crash import report_crash
from qsjax.errors import InputError, QsjaxError
from qsjax.server.asked import BodyError, read_create
from qsjax.server.guard import Guard
from qsjax.server.told import Answer, of_file, of_task, refused
from qsjax.serving import QueueFullError, Task, TaskQueue, VideoMaker

logger = logging.getLogger(__name__)

_LOOK = 0.1
"""Seconds from look to look of a client that waits for its video."""
_LATER = {"Retry-After": "10"}
_CLOSE = {"Connection": "close"}
_MOST = 100
"""Records of a list."""
_ORDERS = ("asc", "desc")


@dataclass(frozen=True)
class VideoServer:
    """Answers requests.

    Attributes:
        maker: checks requests.
        queue: of tasks.
        model: name of the served model.
    """

    maker: VideoMaker
    queue: TaskQueue
    model: str

    async def create(self, request: Request) -> Response:
        """`POST /v1/videos`: takes a request; its record, with the id to ask by."""
        task = await self._submit(request)
        return Answer(of_task(task, self.model))

    async def create_sync(self, request: Request) -> Response:
        """`POST /v1/videos/sync`: the video itself, when it is made; a client that leaves cancels it."""
        task = await self._submit(request)
        while not task.is_finished:
            if await request.is_disconnected():
                self.queue.cancel(task.id)
                return Response(status_code=499)
            await asyncio.sleep(_LOOK)
            now = self.queue.get(task.id)
            if now is None:
                raise HTTPException(404, "the video was deleted before it was made")
            task = now
        if task.state != "completed":
            status = 409 if task.state == "cancelled" else 500
            raise HTTPException(status, task.error or "the video was cancelled")
        return self._file(task.id)

    async def status(self, request: Request) -> Response:
        """`GET /v1/videos/{id}`: the record of a video."""
        return Answer(await self._record(request.path_params["id"]))

    async def listing(self, request: Request) -> Response:
        """`GET /v1/videos`: records, the newest first; `limit`, `after` (an id) and `order` (asc, desc)."""
        query = request.query_params
        limit, order, after = query.get("limit", "20"), query.get("order", "desc"), query.get("after")  # fmt: skip
        if not (
            limit.isascii() and limit.isdecimal() and len(limit) < 4 and 0 < int(limit) <= _MOST
        ):
            raise InputError(f"limit: give a whole number from 1 to {_MOST}")
        if order not in _ORDERS:
            raise InputError(f"no such order; {nearest(order[:40], _ORDERS)}")
        data = await run_in_threadpool(self._all)
        if order == "asc":
            data.reverse()
        if after is not None:
            places = [place for place, record in enumerate(data) if record["id"] == after]
            if not places:
                raise HTTPException(404, "no such video")
            data = data[places[0] + 1 :]
        page = data[: int(limit)]
        ids = [record["id"] for record in page] or [None]
        return Answer(
            {
                "object": "list",
                "data": page,
                "first_id": ids[0],
                "last_id": ids[-1],
                "has_more": len(data) > len(page),
            }
        )

    async def content(self, request: Request) -> Response:
        """`GET /v1/videos/{id}/content`: the mp4 file, or a part of it."""
        name = request.path_params["id"]
        record = await self._record(name)
        if record["status"] == "failed":
            raise HTTPException(404, f"there is no video: {record['error']['message']}")
        if record["status"] != "completed":
            raise HTTPException(409, f"the video is {record['status']}; ask again when it is completed")  # fmt: skip
        return self._file(name)

    async def delete(self, request: Request) -> Response:
        """`DELETE /v1/videos/{id}`: deletes a video, and cancels one that is not made yet."""
        name = request.path_params["id"]
        await self._record(name)
        task = self.queue.cancel(name)
        while task is not None and not task.is_finished:  # until its next step or stage
            await asyncio.sleep(_LOOK)
            task = self.queue.get(name)
        await run_in_threadpool(self.maker.folder.delete, name)
        self.queue.forget(name)
        return Answer({"id": name, "object": "video.deleted", "deleted": True})

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: the one that is served."""
        return Answer({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def health(self, request: Request) -> Response:
        """`GET /health`: this process answers."""
        return Answer({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """`GET /ready`: the model is loaded, and requests are worked off."""
        if not self.queue.ready:
            return refused("the model is being loaded", 503, _LATER)
        return Answer({"status": "ready", "waiting": len(self.queue.unfinished)})

    async def _submit(self, request: Request) -> Task:
        asked = await read_create(request)
        if asked.model not in (None, "", self.model):
            raise HTTPException(404, f"no such model; this server has {self.model}")
        pipeline = self.maker.pipeline
        temporal = pipeline.vae_config.temporal_compression_ratio * pipeline.dit_config.patch_size[0]  # fmt: skip
        video = asked.request(fps=pipeline.settings.fps, temporal=temporal)
        task = await run_in_threadpool(self.maker.plan, video, recipe=asked.recipe or "")
        self.queue.submit(task)
        return task

    async def _record(self, name: str) -> dict[str, Any]:
        task = self.queue.get(name)
        if task is not None:
            return of_task(task, self.model)
        try:
            found = await run_in_threadpool(self.maker.folder.find, name)
        except InputError:
            found = None
        if found is None:
            raise HTTPException(404, "no such video")
        return of_file(found, self.model)

    def _all(self) -> list[dict[str, Any]]:
        """All records, the newest first: those of this process in their order, then what was there before."""
        tasks = {task.id: of_task(task, self.model) for task in self.queue.tasks}
        files = [of_file(one, self.model) for one in self.maker.folder.newest(1000) if one.id not in tasks]  # fmt: skip
        return [*reversed(tasks.values()), *files]

    def _file(self, name: str) -> Response:
        path = self.maker.folder.file(name)
        if not path.is_file() or path.is_symlink():
            raise HTTPException(404, "the video was deleted")
        headers = {"X-Content-Type-Options": "nosniff", "X-Video-Id": name}
        return FileResponse(path, media_type="video/mp4", filename=path.name, headers=headers)


def make_app(maker: VideoMaker, queue: TaskQueue, *, model: str, key: str | None) -> Starlette:
    """The application, for uvicorn.

    Args:
        maker: checks and makes videos.
        queue: of tasks.
        model: name of the served model.
        key: that clients send; None is none.
    """
    server = VideoServer(maker, queue, model)
    one = "/v1/videos/{id}"
    routes = [
        Route("/v1/videos", server.create, methods=["POST"]),
        Route("/v1/videos", server.listing, methods=["GET"]),
        Route("/v1/videos/sync", server.create_sync, methods=["POST"]),
        Route(one, server.status, methods=["GET"]),
        Route(one, server.delete, methods=["DELETE"]),
        Route(f"{one}/content", server.content, methods=["GET"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/ready", server.ready, methods=["GET"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, key=key)],
        exception_handlers={QsjaxError: _refuse, HTTPException: _http, Exception: _crash},
    )


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, QueueFullError):
        return refused(str(error), 429, _LATER)
    if isinstance(error, BodyError):
        return refused(str(error), error.status, _CLOSE)
    return refused(str(error), 400)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refused(error.detail, error.status_code, error.headers)


async def _crash(request: Request, error: Exception) -> Response:
    logger.error("%s", await run_in_threadpool(report_crash, error))
    return refused("this should not happen; the log of the server says more", 500)
