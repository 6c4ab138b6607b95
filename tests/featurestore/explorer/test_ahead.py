"""What is computed ahead makes way for what somebody waits for."""

import asyncio

from featurestore.explorer import ahead
from featurestore.explorer.ahead import Free
from featurestore.explorer.answers import CancelledError


def test_what_is_computed_ahead_stops_for_a_request_and_begins_anew_after_it(monkeypatch):
    monkeypatch.setattr(ahead, "FREE_SECONDS", 0)
    free, seen = Free(), []

    async def together():
        answered = asyncio.Event()

        async def endpoint(request):
            await answered.wait()

        (counted,) = free.counted({"/": endpoint}).values()
        requests = []

        async def answer(gone):
            seen.append(await gone())
            if len(seen) > 2:
                return
            requests.append(asyncio.create_task(counted(None)))
            await asyncio.sleep(0)
            seen.append(await gone())
            answered.set()
            raise CancelledError("a request came")

        await free.run(answer)
        await asyncio.gather(*requests)

    asyncio.run(together())
    assert seen == [False, True, False]


def test_nothing_is_begun_just_after_a_request(monkeypatch):
    free = Free()

    async def endpoint(request):
        return None

    async def together():
        before = await free.busy()
        monkeypatch.setattr(ahead, "FREE_SECONDS", float("inf"))
        await next(iter(free.counted({"/": endpoint}).values()))(None)
        return before, await free.busy()

    assert asyncio.run(together()) == (False, True)
