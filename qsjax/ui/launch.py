"""Opens the page: on this machine alone, unless a link is asked for."""

from collections.abc import Callable
from typing import Any

from qsjax.errors import InputError
from qsjax.serving import TaskQueue, VideoMaker
from qsjax.ui.desk import Desk
from qsjax.ui.page import import_gradio, make_page, style
from qsjax.untrusted import shown

HOST, PORT = "127.0.0.1", 7860


def open_page(
    maker: VideoMaker,
    queue: TaskQueue,
    *,
    where: str,
    examples: tuple[str, ...],
    port: int = PORT,
    share: bool = False,
    said: Callable[[str, str | None], None] = lambda address, link: None,
) -> Callable[[], None]:
    """Open the page in a thread of its own; returns what closes it.

    Args:
        maker: checks and makes videos.
        queue: of one task.
        where: one sentence for the head of the page.
        examples: prompts to click on.
        port: of this machine; 0 takes a free one.
        share: open a public link, which goes through the servers of Gradio's makers.
        said: called with the address, and with the link or None, when the page is there.

    Raises:
        InputError: Gradio is not installed, the port is taken, or there is no link.
    """
    gradio = import_gradio()
    page = make_page(Desk(maker, queue), maker, examples, where)
    page.queue(default_concurrency_limit=16, max_size=256, api_open=False)
    try:
        app, address, link = page.launch(
            server_name=HOST,
            server_port=port or _free_port(),
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            allowed_paths=[],
            max_file_size=1,  # nothing is uploaded
            app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None, "middleware": _only_here(share)},
            **style(gradio),
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"port {port} is taken ({str(error)[:200]}); name another with `port`, or 0 for a free one") from error  # fmt: skip
    _add_videos(app, maker)
    if share and not link:
        page.close(verbose=False)
        raise InputError("no link could be opened; look at the network, or leave `share` out")
    said(address, link)
    return lambda: page.close(verbose=False)


def _only_here(share: bool) -> list[Any]:
    """Requests whose Host is another machine's are refused: a page elsewhere may have had its name lead here."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    hosts = ["*"] if share else [HOST, "localhost"]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]


def _add_videos(app: Any, maker: VideoMaker) -> None:
    """Finished videos under "videos/NAME.mp4"; of the folder nothing else is served."""
    from starlette.responses import FileResponse, PlainTextResponse, Response
    from starlette.routing import Route

    def video(request: Any) -> Response:
        name, dot, kind = request.path_params["file"].removesuffix(".mp4").partition(".")
        try:
            record = maker.folder.find(name)
        except InputError:
            record = None
        path = None if record is None else record.reference if dot else record.path
        if path is None or (dot and kind != "full-precision"):
            return PlainTextResponse(f"no video {shown(name)}", status_code=404)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=86400"}
        return FileResponse(path, media_type="video/mp4", headers=headers)

    app.router.routes.insert(0, Route("/videos/{file}", video))


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
