"""When something may be computed ahead: only while nobody waits for an answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from featurestore.errors import FeatureStoreError
from featurestore.explorer.answers import CancelledError
from featurestore.explorer.web import Endpoint

FREE_SECONDS = 0.3
"""without a request, after which something is computed ahead"""


class Free:
    """Counts the requests that are being answered, and lets computations run between them."""

    def __init__(self) -> None:
        self._requests, self._last = 0, time.monotonic() - FREE_SECONDS

    def counted(self, endpoints: dict[str, Endpoint]) -> dict[str, Endpoint]:
        """Return the endpoints, each of whose requests counts as one that somebody waits for."""
        return {path: self._counted(call) for path, call in endpoints.items()}

    def _counted(self, call: Endpoint) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            self._requests += 1
            try:
                return await call(request)
            finally:
                self._requests -= 1
                self._last = time.monotonic()

        return endpoint

    async def busy(self) -> bool:
        """Say whether somebody waits for an answer, or has just got one and may ask more."""
        return self._requests > 0 or time.monotonic() - self._last < FREE_SECONDS

    async def run(self, answer: Callable[..., Awaitable[Any]]) -> None:
        """Await ``answer(gone=…)`` while nobody waits for another one: it is stopped when a request
        comes, and begun anew after it."""
        while True:
            while await self.busy():
                await asyncio.sleep(FREE_SECONDS / 3)
            try:
                await answer(gone=self.busy)
            except CancelledError:
                continue
            except FeatureStoreError:  # said where it is asked for
                pass
            return
