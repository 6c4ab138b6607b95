"""What a basket makes: selections as files, and pictures drawn with and without its features."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from featurestore.errors import UsageError
from featurestore.explorer.answers import Answers
from featurestore.explorer.basket import elsewhere, live
from featurestore.explorer.basket.entries import Entry, load_entry, parse_basket, selection
from featurestore.explorer.web import FOREVER, NEVER, Endpoint, body, number, routes
from featurestore.store import Store


class Drawing:
    """The addresses of the basket."""

    def __init__(
        self, store: Store, answers: Answers, studio: live.Studio, memory_limit: str
    ) -> None:
        self.store, self.answers, self.studio, self.memory = store, answers, studio, memory_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        get: dict[str, Endpoint] = {
            "/api/draw/{job}/events": self.events,
            "/drawn/{key}.png": self.drawn,
        }
        post: dict[str, Endpoint] = {
            "/api/basket": self.basket,
            "/api/basket/load": self.load,
            "/api/draw": self.draw,
        }
        return [*routes("GET", get), *routes("POST", post)]

    async def basket(self, request: Request) -> Response:
        """Return a basket's selections as files, with the commands and lines that make the same
        pictures."""
        given = await body(request)
        entries = parse_basket(given.get("entries"))
        form = given.get("format", "json")
        chosen = [await self._selection(entry) for entry in entries]
        names = elsewhere.file_names(chosen, form)
        files = await asyncio.to_thread(elsewhere.file_texts, chosen, names)
        run = self.store.run or {}
        asked = {
            "model": self.studio.name or run.get("model", "MODEL"),
            "prompt": str(given.get("prompt") or "PROMPT"),
            "seed": number(given, "seed", 0),
            "steps": number(given, "steps", run.get("n_steps", 50)),
            "guidance": float(given.get("guidance") or run.get("guidance", 1.0)),
        }
        found = {
            "files": [
                {"name": name, "text": text, "rows": one.rows.num_rows}
                for one, (name, text) in zip(chosen, files, strict=True)
            ],
            "commands": elsewhere.commands(self.store, entries, names, asked),
            "python": elsewhere.python_lines(self.store, entries, names, asked),
        }
        return JSONResponse(found, headers=NEVER)

    async def _selection(self, entry: Entry) -> Any:
        key = (
            "selection",
            entry.sae,
            entry.family,
            entry.concept,
            entry.branch,
            entry.top,
            entry.features,
        )
        return await self.answers.get(
            key,
            lambda: selection(self.store, entry, self.memory),
            size=lambda one: one.rows.nbytes,
        )

    async def load(self, request: Request) -> Response:
        """Return the basket entry of a selection file."""
        name = request.query_params.get("name", "selection.json")
        data = await request.body()
        entry, note = await asyncio.to_thread(load_entry, self.store, name, data)
        return JSONResponse({"entry": entry, "note": note}, headers=NEVER)

    async def draw(self, request: Request) -> Response:
        """Begin to draw a prompt before and after; the events say how far it is."""
        given = await body(request)
        prompt = given.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > 10_000:
            raise UsageError("a prompt is text of 1 to 10,000 characters.")
        factors = given.get("factors", [1.0])
        if (
            not isinstance(factors, list)
            or len(factors) > 20
            or not all(isinstance(f, (int, float)) for f in factors)
        ):
            raise UsageError("factors: expected a list of at most 20 numbers.")
        entries = parse_basket(given.get("entries"))
        chosen = [(entry, await self._selection(entry)) for entry in entries]
        guidance = given.get("guidance")
        job = live.Job(
            secrets.token_hex(8),
            prompt,
            number(given, "seed", 0),
            number(given, "steps", 0) or None,
            None if guidance is None else float(guidance),
            chosen,
            [float(factor) for factor in factors],
        )
        self.studio.start(job)
        return JSONResponse({"job": job.id}, headers=NEVER)

    async def events(self, request: Request) -> Response:
        """Return the events of a drawing as they come."""
        job = self.studio.job(request.path_params["job"])

        async def stream() -> AsyncIterator[str]:
            sent = 0
            while True:
                over = job.is_over
                for event in job.events[sent:]:
                    yield f"data: {json.dumps(event)}\n\n"
                    sent += 1
                if over or await request.is_disconnected():
                    return
                await asyncio.sleep(0.05)

        return StreamingResponse(stream(), media_type="text/event-stream", headers=NEVER)

    async def drawn(self, request: Request) -> Response:
        """Return a drawn picture."""
        return Response(
            self.studio.picture(request.path_params["key"]),
            media_type="image/png",
            headers=FOREVER,
        )
