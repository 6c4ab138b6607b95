"""What a page can ask for: each address is one function; every number comes from a named question
or the store's reader."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pyarrow as pa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from featurestore.errors import FeatureStoreError, UsageError
from featurestore.explorer import baskets, live
from featurestore.explorer.answers import Answers
from featurestore.explorer.directions import nearest_directions
from featurestore.explorer.overview import overview
from featurestore.explorer.pictures import Pictures, media_type, samples_table
from featurestore.explorer.tables import as_json, download
from featurestore.store import Store

SQL_ROWS = 10_000
SQL_SECONDS = 60.0
DOWNLOAD_ROWS = 2_000_000
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
_NEVER = {"Cache-Control": "no-store"}
Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """The addresses under ``/api``, and pictures."""

    def __init__(
        self, store: Store, answers: Answers, studio: live.Studio, memory_limit: str
    ) -> None:
        self.store, self.answers, self.studio, self.memory = store, answers, studio, memory_limit
        self.pictures = Pictures(store)

    def routes(self) -> list[Route]:
        """Return the routes."""
        get: dict[str, Endpoint] = {
            "/api/state": self.state,
            "/api/overview": self.overview,
            "/api/samples": self.samples,
            "/api/ask/{name}": self.ask,
            "/api/directions/{sae}/{feature:int}": self.directions,
            "/api/tables": self.tables,
            "/api/draw/{job}/events": self.events,
            "/pictures/{sample}/{size}": self.picture,
            "/drawn/{key}.png": self.drawn,
        }
        post: dict[str, Endpoint] = {
            "/api/sql": self.sql,
            "/api/basket": self.basket,
            "/api/basket/load": self.load,
            "/api/draw": self.draw,
        }
        pairs = [(path, call, "GET") for path, call in get.items()] + [
            (path, call, "POST") for path, call in post.items()
        ]
        return [Route(path, refusing(call), methods=[method]) for path, call, method in pairs]

    async def state(self, request: Request) -> Response:
        """Return a name for what the store holds now."""
        return JSONResponse({"state": self.answers.state()}, headers=_NEVER)

    async def overview(self, request: Request) -> Response:
        """Return what is in the store."""
        found = await self.answers.get(
            ("overview",), lambda: overview(self.store), size=lambda _: 100_000
        )
        more = {
            "state": self.answers.state(),
            "model": self.studio.name,
            "live": self.studio.name is not None,
        }
        return JSONResponse({**found, **more}, headers=_NEVER)

    async def samples(self, request: Request) -> Response:
        """Return the samples with their labels."""
        table = await self.answers.get(("samples",), lambda: samples_table(self.store), size=_bytes)
        return await self._table(request, table, "samples", {})

    async def ask(self, request: Request) -> Response:
        """Return the answer to a named question."""
        from queries import ask
        from queries.questions import find_question

        name = request.path_params["name"]
        given: dict[str, str | int | float | None] = {
            k: v for k, v in request.query_params.items() if k != "format"
        }
        asked, began = find_question(name), time.perf_counter()
        table = await self.answers.get(
            ("ask", name, tuple(sorted(given.items()))),
            lambda: ask(self.store, name, given, memory_limit=self.memory),
            gone=request.is_disconnected,
            size=_bytes,
        )
        options = " ".join(f"-p {key}={value}" for key, value in given.items())
        about = {
            "sql": asked.sql,
            "parameters": given,
            "command": f"featurestore query {self.store.root} {name} {options}".strip(),
            "seconds": round(time.perf_counter() - began, 4),
        }
        return await self._table(request, table, name, about)

    async def directions(self, request: Request) -> Response:
        """Return the features whose decoder rows lie nearest."""
        sae, feature = request.path_params["sae"], request.path_params["feature"]
        top = _whole(request.query_params.get("top", "10"), "top")
        found = await self.answers.get(
            ("directions", sae, feature, top),
            lambda: nearest_directions(self.store, sae, feature, top),
            size=_bytes,
        )
        return await self._table(request, found, "directions", {})

    async def tables(self, request: Request) -> Response:
        """Return the views that a statement can name, with their columns."""
        return JSONResponse(
            await self.answers.get(("views",), self._views, size=lambda _: 10_000), headers=_NEVER
        )

    def _views(self) -> list[dict[str, Any]]:
        from queries import connect

        with connect(self.store, verify=False) as connection:
            rows = connection.execute(
                "select table_name, column_name, data_type from information_schema.columns "
                "where table_schema = 'main' order by table_name, ordinal_position"
            ).fetchall()
        views: dict[str, list[dict[str, str]]] = {}
        for view, column, kind in rows:
            views.setdefault(view, []).append({"name": column, "type": kind.lower()})
        return [{"name": view, "columns": columns} for view, columns in views.items()]

    async def sql(self, request: Request) -> Response:
        """Run a user's statement: the first rows, or as a file more of them; stopped when the page
        leaves or cancels."""
        from queries import sql

        given = await _body(request)
        statement = given.get("statement")
        if not isinstance(statement, str) or len(statement) > 100_000:
            raise UsageError("a statement is text of at most 100,000 characters.")
        rows = DOWNLOAD_ROWS if request.query_params.get("format") else SQL_ROWS
        began = time.perf_counter()
        table = await self.answers.get(
            ("sql", statement, rows),
            lambda: sql(self.store, statement, memory_limit=self.memory, rows=rows + 1),
            gone=request.is_disconnected,
            seconds=SQL_SECONDS,
            size=_bytes,
        )
        more = {
            "truncated": table.num_rows > rows,
            "seconds": round(time.perf_counter() - began, 4),
        }
        return await self._table(request, table.slice(0, rows), "answer", more)

    async def _table(
        self, request: Request, table: pa.Table, name: str, more: dict[str, Any]
    ) -> Response:
        form = request.query_params.get("format")
        if form:
            data, kind = await asyncio.to_thread(download, table, form)
            return Response(
                data,
                headers={"Content-Disposition": f'attachment; filename="{name}.{form}"', **_NEVER},
                media_type=kind,
            )
        text = await asyncio.to_thread(
            as_json, table, {"name": name, "state": self.answers.state(), **more}
        )
        return Response(text, media_type="application/json", headers=_NEVER)

    async def picture(self, request: Request) -> Response:
        """Return a sample's picture, or its thumbnail."""
        sample, size = (
            _whole(request.path_params[name].partition(".")[0], name) for name in ("sample", "size")
        )
        data = await asyncio.to_thread(self.pictures.get, sample, size)
        return Response(data, media_type=media_type(data), headers=_FOREVER)

    async def basket(self, request: Request) -> Response:
        """Return a basket's selections as files, with the commands and lines that make the same
        pictures."""
        given = await _body(request)
        entries = baskets.parse_basket(given.get("entries"))
        form = given.get("format", "json")
        chosen = [await self._selection(entry) for entry in entries]
        names = baskets.file_names(chosen, form)
        files = await asyncio.to_thread(_files, chosen, names)
        run = self.store.run or {}
        asked = {
            "model": self.studio.name or run.get("model", "MODEL"),
            "prompt": str(given.get("prompt") or "PROMPT"),
            "seed": _number(given, "seed", 0),
            "steps": _number(given, "steps", run.get("n_steps", 50)),
            "guidance": float(given.get("guidance") or run.get("guidance", 1.0)),
        }
        found = {
            "files": [
                {"name": name, "text": text, "rows": one.rows.num_rows}
                for one, (name, text) in zip(chosen, files, strict=True)
            ],
            "commands": baskets.commands(self.store, entries, names, asked),
            "python": baskets.python_lines(self.store, entries, names, asked),
        }
        return JSONResponse(found, headers=_NEVER)

    async def _selection(self, entry: baskets.Entry) -> Any:
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
            lambda: baskets.selection(self.store, entry, self.memory),
            size=lambda one: one.rows.nbytes,
        )

    async def load(self, request: Request) -> Response:
        """Return the basket entry of a selection file."""
        name = request.query_params.get("name", "selection.json")
        data = await request.body()
        entry, note = await asyncio.to_thread(baskets.load_entry, self.store, name, data)
        return JSONResponse({"entry": entry, "note": note}, headers=_NEVER)

    async def draw(self, request: Request) -> Response:
        """Begin to draw a prompt before and after; the events say how far it is."""
        given = await _body(request)
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
        entries = baskets.parse_basket(given.get("entries"))
        chosen = [(entry, await self._selection(entry)) for entry in entries]
        guidance = given.get("guidance")
        job = live.Job(
            secrets.token_hex(8),
            prompt,
            _number(given, "seed", 0),
            _number(given, "steps", 0) or None,
            None if guidance is None else float(guidance),
            chosen,
            [float(factor) for factor in factors],
        )
        self.studio.start(job)
        return JSONResponse({"job": job.id}, headers=_NEVER)

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

        return StreamingResponse(stream(), media_type="text/event-stream", headers=_NEVER)

    async def drawn(self, request: Request) -> Response:
        """Return a drawn picture."""
        return Response(
            self.studio.picture(request.path_params["key"]),
            media_type="image/png",
            headers=_FOREVER,
        )


def refusing(call: Endpoint) -> Endpoint:
    """Return the endpoint with its errors as one line of JSON."""

    async def endpoint(request: Request) -> Response:
        try:
            return await call(request)
        except FeatureStoreError as error:
            said = {"error": " ".join(str(error).split()), "kind": type(error).__name__}
            return JSONResponse(said, status_code=400, headers=_NEVER)

    return endpoint


def _files(chosen: list[Any], names: list[str]) -> list[tuple[str, str]]:
    from featurestore.selection_files import FORMATS

    encoded = []
    for one, name in zip(chosen, names, strict=True):
        suffix = name[name.rindex(".") :]
        if suffix not in (".json", ".csv", ".md"):
            raise UsageError(f"format {suffix}: a page saves .json, .csv or .md.")
        encode, _ = FORMATS[suffix]
        encoded.append((name, encode(one.header(), one.rows).decode()))
    return encoded


def _bytes(table: pa.Table) -> int:
    return table.nbytes


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise UsageError(f"{name} {text[:40]!r}: expected a whole number.")
    return int(text)


def _number(given: dict[str, Any], name: str, default: int) -> int:
    value = given.get(name)
    if value is None:
        return int(default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise UsageError(f"{name} {value!r}: expected a whole number.")
    return value


async def _body(request: Request) -> dict[str, Any]:
    try:
        given = await request.json()
    except ValueError as error:
        raise UsageError(f"the request is no JSON: {error}.") from error
    if not isinstance(given, dict):
        raise UsageError("the request is no JSON object.")
    return given
