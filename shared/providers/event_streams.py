"""Server-sent events as they come from a provider: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

import codecs
from collections.abc import AsyncGenerator
from io import IncrementalNewlineDecoder

import httpx


async def events(answer: httpx.Response) -> AsyncGenerator[tuple[str, str], None]:
    """Each event's name, often none, and its data. A last one without its empty line was cut off, and is none."""
    event, data = "", list[str]()
    async for line in _lines(answer):
        name, _, value = line.partition(":")
        if name == "event":
            event = value.removeprefix(" ")
        elif name == "data":
            data.append(value.removeprefix(" "))
        elif not line:
            yield event, "\n".join(data)
            event, data = "", []


async def _lines(answer: httpx.Response) -> AsyncGenerator[str, None]:
    """Lines as server-sent events have them: httpx's end at U+2028 too, of which a model is free to speak."""
    decoder = IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
    rest = ""
    async for chunk in answer.aiter_bytes():
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        for line in lines:
            yield line
