"""What a page can ask for: every number comes from a named question or the store's reader."""

import asyncio
import os
import time
from functools import partial
from typing import Any

import pyarrow as pa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from featurestore.errors import UsageError
from featurestore.explorer.ahead import Free
from featurestore.explorer.answers import Answers, Gone
from featurestore.explorer.basket.live import Studio
from featurestore.explorer.directions import nearest_directions, python_lines
from featurestore.explorer.kept import Kept
from featurestore.explorer.overview import overview
from featurestore.explorer.pictures import Pictures, media_type, samples_table
from featurestore.explorer.tables import as_json
from featurestore.explorer.web import (
    FOREVER,
    NEVER,
    Endpoint,
    body,
    routes,
    table_response,
    whole,
)
from featurestore.store import Store
from featurestore.vocabulary import BRANCHES

SQL_ROWS = 10_000
SQL_SECONDS = 60.0
DOWNLOAD_ROWS = 2_000_000
Parameters = dict[str, str | int | float | None]


class Asking:
    """The addresses that answer from the store."""

    def __init__(self, store: Store, answers: Answers, studio: Studio, memory_limit: str) -> None:
        self.store, self.answers, self.studio, self.memory = store, answers, studio, memory_limit
        self.pictures, self.kept = Pictures(store), Kept(store.root)
        self.free = Free()

    def routes(self) -> list[Route]:
        """Return the routes."""
        get: dict[str, Endpoint] = {
            "/api/overview": self.overview,
            "/api/samples": self.samples,
            "/api/ask/{name}": self.ask,
            "/api/directions/{sae}/{feature:int}": self.directions,
            "/api/tables": self.tables,
            "/pictures/{sample}/{size}": self.picture,
        }
        post: dict[str, Endpoint] = {"/api/sql": self.sql}
        polled: dict[str, Endpoint] = {"/api/state": self.state}  # by an open page: nobody waits
        return [
            *routes("GET", {**self.free.counted(get), **polled}),
            *routes("POST", self.free.counted(post)),
        ]

    async def state(self, request: Request) -> Response:
        """Return a name for what the store holds now."""
        return JSONResponse({"state": self.answers.state()}, headers=NEVER)

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
        return JSONResponse({**found, **more}, headers=NEVER)

    async def samples(self, request: Request) -> Response:
        """Return the samples with their labels."""
        table = await self.answers.get(("samples",), lambda: samples_table(self.store), size=_bytes)
        return await self._table(request, table, "samples", {}, key=("samples",))

    async def ask(self, request: Request) -> Response:
        """Return the answer to a named question."""
        from queries.questions import find_question

        name = request.path_params["name"]
        given: Parameters = {k: v for k, v in request.query_params.items() if k != "format"}
        asked, began = find_question(name), time.perf_counter()
        table = await self.answer(name, given, gone=request.is_disconnected)
        options = " ".join(f"-p {key}={value}" for key, value in given.items())
        about = {
            "sql": asked.sql,
            "parameters": given,
            "command": f"featurestore query {self.store.root} {name} {options}".strip(),
            "seconds": round(time.perf_counter() - began, 4),
        }
        key = ("ask", name, tuple(sorted(given.items())))
        return await self._table(request, table, name, about, key=key)

    async def answer(self, name: str, given: Parameters, gone: Gone | None = None) -> pa.Table:
        """Return the answer to a named question: one that is being computed, kept here or on disk,
        or a new one."""
        from queries import ask
        from queries.questions import find_question

        if find_question(name).all_features and "sae" in given:
            await self.by_feature(str(given["sae"]), str(given.get("branch", "cond")), gone)
        if "stats" in find_question(name).relations and given.get("sae") in self.store.names(
            "stats"
        ):
            await self.check_stats(str(given["sae"]), gone)
        state = self.answers.state()
        return await self.answers.get(
            ("ask", name, tuple(sorted(given.items()))),
            lambda: self.kept.get(
                state, name, given, lambda: ask(self.store, name, given, memory_limit=self.memory)
            ),
            gone=gone,
            size=_bytes,
        )

    async def by_feature(self, sae: str, branch: str, gone: Gone | None = None) -> None:
        """Make the tables that are ordered by feature, once for all who wait for them, if they are
        not there."""
        from queries.derived.by_feature import find_by_feature

        await self.answers.get(
            ("by feature", sae, branch),
            lambda: find_by_feature(
                self.store, sae, branch, make=os.access(self.store.root, os.W_OK)
            ),
            gone=gone,
            size=lambda _: 0,
        )

    async def check_stats(self, sae: str, gone: Gone | None = None) -> None:
        """Compare the statistics with their records, once for all whose questions read them."""
        await self.answers.get(
            ("checked", sae),
            lambda: self.store.check(self.store.records(f"stats/{sae}")),
            gone=gone,
            size=lambda _: 0,
        )

    async def prepare(self) -> None:
        """Compute ahead what takes longest, one thing at a time and only while nobody waits for an
        answer: the tables by feature, what Concepts opens with, and whether the statistics are what
        their records say."""
        found = await self.answers.get(("overview",), lambda: overview(self.store))
        families = [one["name"] for one in found["families"] if len(one["concepts"]) > 1]
        for sae in found["saes"]:
            branch = next((name for name in BRANCHES if name in sae["steps"]), None)
            if branch is None:
                continue
            name = sae["name"]
            asked: Parameters = {"sae": name, "branch": branch}
            await self.free.run(partial(self.by_feature, name, branch))
            for family in families:
                for question, top in (("best_scores", "6"), ("overlap_matrix", "2")):
                    given = {**asked, "family": family, "top": top}
                    await self.free.run(partial(self.answer, question, given))
            for record in self.store.records(f"stats/{name}"):
                await self.free.run(
                    partial(
                        self.answers.get,
                        ("checked", name, record.shard),
                        partial(self.store.check, [record]),
                    )
                )

    async def directions(self, request: Request) -> Response:
        """Return the features whose decoder rows lie nearest."""
        sae, feature = request.path_params["sae"], request.path_params["feature"]
        top = whole(request.query_params.get("top", "10"), "top")
        found = await self.answers.get(
            ("directions", sae, feature, top),
            lambda: nearest_directions(self.store, sae, feature, top),
            size=_bytes,
        )
        how = python_lines(self.store, sae, feature, top)
        key = ("directions", sae, feature, top)
        return await self._table(request, found, "directions", {"python": how}, key=key)

    async def tables(self, request: Request) -> Response:
        """Return the views that a statement can name, with their columns."""
        return JSONResponse(
            await self.answers.get(("views",), self._views, size=lambda _: 10_000), headers=NEVER
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

        given = await body(request)
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
        shown = table.slice(0, rows)
        return await self._table(request, shown, "answer", more, key=("sql", statement, rows))

    async def picture(self, request: Request) -> Response:
        """Return a sample's picture, or its thumbnail."""
        sample, size = (
            whole(request.path_params[name].partition(".")[0], name) for name in ("sample", "size")
        )
        data = await asyncio.to_thread(self.pictures.get, sample, size)
        return Response(data, media_type=media_type(data), headers=FOREVER)

    async def _table(
        self,
        request: Request,
        table: pa.Table,
        name: str,
        more: dict[str, Any],
        *,
        key: tuple[Any, ...],
    ) -> Response:
        """Return a table as a page takes it; its text is kept under ``key``, beside the table: that
        of 30,000 rows takes longer to write than to find."""
        more = {"state": self.answers.state(), **more}
        text = partial(self.answers.get, ("text", *key), partial(as_json, table), size=len)
        return await table_response(request, table, name, more, as_text=text)


def _bytes(table: pa.Table) -> int:
    return table.nbytes
