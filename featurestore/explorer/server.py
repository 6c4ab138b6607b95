"""The server: one process on this machine, for this machine."""

import asyncio
import contextlib
import secrets
import socket
import threading
import warnings
import webbrowser
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from featurestore.errors import UsageError
from featurestore.explorer.answers import Answers
from featurestore.explorer.asking import Asking
from featurestore.explorer.basket.addresses import Drawing
from featurestore.explorer.basket.ladders import Ladders
from featurestore.explorer.basket.live import Studio
from featurestore.explorer.security import Guard
from featurestore.store import Store

PAGE = Path(__file__).parent / "page"
HOST = "127.0.0.1"
PORT = 8765
MEMORY = "600MB"


class _Page(StaticFiles):
    """The page's files: asked again each time, answered 304 while they stay the same."""

    def file_response(self, *args, **kwargs) -> Response:  # type: ignore[no-untyped-def]
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def make_app(
    store: Store,
    *,
    token: str,
    port: int,
    model: str | None = None,
    memory_limit: str = MEMORY,
    ahead: bool = False,
) -> Starlette:
    """Return the application for a store; it answers whoever has the token, under this port's
    addresses only. ``ahead``: compute what takes longest before it is asked for."""
    answers = Answers(store)
    studio = Studio(model, ladders=Ladders(store.root))
    asking = Asking(store, answers, studio, memory_limit)
    drawing = Drawing(store, answers, studio, memory_limit)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(asking.prepare()) if ahead else None
        yield
        if task is not None:
            task.cancel()
        studio.close()
        answers.close()

    async def index(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-store"})

    pages = [Route("/", index), Mount("/page", _Page(directory=PAGE))]
    routes = [*pages, *asking.routes(), *drawing.routes()]
    guard = Middleware(Guard, token=token, port=port)
    return Starlette(routes=routes, middleware=[guard], lifespan=lifespan)


def listen(port: int | None) -> socket.socket:
    """Return a socket on this machine's own address: the port asked for, else the usual one or any
    that is free.

    Raises:
        UsageError: the port asked for is taken.
    """
    for candidate in (PORT, 0) if port is None else (port,):
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, candidate))
        except OSError as error:
            found.close()
            if port is not None:
                raise UsageError(
                    f"--port {port}: {error.strerror}; leave it out to take one that is free."
                ) from error
            continue
        return found
    raise UsageError("no port is free on this machine.")


def serve(
    store: Store,
    *,
    model: str | None = None,
    port: int | None = None,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a store until Ctrl-C, and open it in a browser; ``say`` is told the address."""
    import uvicorn

    # The page says so beside each interval; here it would be one line of many.
    warnings.filterwarnings("ignore", message=".* few for an interval", category=UserWarning)
    found = listen(port)
    chosen, token = found.getsockname()[1], secrets.token_urlsafe(24)
    address = f"http://{HOST}:{chosen}/?token={token}"
    app = make_app(store, token=token, port=chosen, model=model, ahead=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        ws="none",
    )
    say(address)
    if browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt), found:
        uvicorn.Server(config).run(sockets=[found])
