"""What the addresses of the explorer have in common: refusals, bodies, numbers, tables as
answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pyarrow as pa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from featurestore.errors import FeatureStoreError, UsageError
from featurestore.explorer.tables import download, with_more

FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
NEVER = {"Cache-Control": "no-store"}
Endpoint = Callable[[Request], Awaitable[Response]]


def routes(method: str, endpoints: dict[str, Endpoint]) -> list[Route]:
    """Return the routes of addresses that are asked by one method."""
    return [Route(path, refusing(call), methods=[method]) for path, call in endpoints.items()]


def refusing(call: Endpoint) -> Endpoint:
    """Return the endpoint with its errors as one line of JSON."""

    async def endpoint(request: Request) -> Response:
        try:
            return await call(request)
        except FeatureStoreError as error:
            said = {"error": " ".join(str(error).split()), "kind": type(error).__name__}
            return JSONResponse(said, status_code=400, headers=NEVER)

    return endpoint


async def table_response(
    request: Request,
    table: pa.Table,
    name: str,
    more: dict[str, Any],
    *,
    as_text: Callable[[], Awaitable[str]],
) -> Response:
    """Return a table as JSON with what else is said of it, or as a file of the form asked for;
    ``as_text`` gives the table's own JSON."""
    form = request.query_params.get("format")
    if form:
        data, kind = await asyncio.to_thread(download, table, form)
        return Response(
            data,
            headers={"Content-Disposition": f'attachment; filename="{name}.{form}"', **NEVER},
            media_type=kind,
        )
    text = with_more(await as_text(), {"name": name, **more})
    return Response(text, media_type="application/json", headers=NEVER)


def whole(text: str, name: str) -> int:
    """Return the whole number of an address; raises UsageError."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise UsageError(f"{name} {text[:40]!r}: expected a whole number.")
    return int(text)


def number(given: dict[str, Any], name: str, default: int) -> int:
    """Return a whole number of a body, or the default; raises UsageError."""
    value = given.get(name)
    if value is None:
        return int(default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise UsageError(f"{name} {value!r}: expected a whole number.")
    return value


async def body(request: Request) -> dict[str, Any]:
    """Return the object of a request's JSON; raises UsageError."""
    try:
        given = await request.json()
    except ValueError as error:
        raise UsageError(f"the request is no JSON: {error}.") from error
    if not isinstance(given, dict):
        raise UsageError("the request is no JSON object.")
    return given
