"""What a process keeps between requests, and what it doesn't."""

import asyncio

import httpx

from shared.clients import Forgetful


def test_no_cookie_is_kept_for_the_next_caller() -> None:
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"set-cookie": "session=alice; Path=/"})

    async def ask_twice() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), cookies=Forgetful()) as http:
            await http.get("http://127.0.0.1/")
            await http.get("http://127.0.0.1/")

    asyncio.run(ask_twice())

    assert sent == [None, None]
