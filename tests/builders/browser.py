"""A real browser on an explorer that really serves: pages that say what went wrong in them."""

import contextlib
import os
import shutil
import threading
import time

from featurestore.explorer.server import HOST, listen, make_app

TOKEN = "token-of-the-test"
WIDTHS = {"wide": (1280, 900), "phone": (390, 844)}
WAIT = 60_000


def find_browser() -> str | None:
    """The path of Chromium or Chrome; ``FEATURESTORE_BROWSER`` names another."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("FEATURESTORE_BROWSER") or next(
        filter(None, map(shutil.which, names)), None
    )


@contextlib.contextmanager
def serving(store, **kwargs):
    """The address of an explorer that serves a store in a thread of this process."""
    import uvicorn

    socket = listen(0)
    port = socket.getsockname()[1]
    app = make_app(store, token=TOKEN, port=port, **kwargs)
    config = uvicorn.Config(
        app, log_level="error", access_log=False, timeout_graceful_shutdown=1, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://{HOST}:{port}"
    server.should_exit = True
    thread.join(20)
    socket.close()


class Visit:
    """A page of a browser, and what went wrong in it."""

    def __init__(self, context, base: str) -> None:
        self.base, self.problems = base, []
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on(
            "dialog",
            lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()),
        )
        self.page.on("request", self._request)

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def _request(self, request) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.problems.append(f"request elsewhere: {request.url}")

    def open(self, address: str | None = None):
        """Open the explorer by its printed link; or, once that has been followed, at an address."""
        link = f"{self.base}/?token={TOKEN}"
        if address is None:
            self.page.goto(link)
        else:
            assert self.page.context.request.get(link).ok
            self.page.goto(f"{self.base}/{address}")
        return self.settled()

    def go(self, address: str):
        """Change the address of the open page."""
        self.page.evaluate("address => { location.hash = address; }", address)
        return self.settled()

    def settled(self):
        """Wait until nothing on the page is being computed."""
        self.page.locator("main h1, main .problem").first.wait_for()
        self.page.wait_for_timeout(60)
        for waiting in ("main .waiting", "main [aria-busy=true]", "main .older"):
            self.page.locator(waiting).first.wait_for(state="detached")
        return self.page


@contextlib.contextmanager
def browsing(base: str, *, width: str = "wide", dark: bool = False, browser=None):
    """A visit to an explorer in a window of a width, light or dark; it must end without a
    problem."""
    size = WIDTHS[width]
    with contextlib.ExitStack() as stack:
        if browser is None:
            browser = stack.enter_context(chromium())
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            device_scale_factor=1,
        )
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        stack.callback(context.close)
        visit = Visit(context, base)
        yield visit
        assert not visit.problems, visit.problems


@contextlib.contextmanager
def chromium():
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield found
        found.close()
