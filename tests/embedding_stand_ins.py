"""A stand-in for embedding providers on loopback: OpenAI's wire and Hugging Face's, with the answers a test wants."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

Body = dict[str, Any]


@dataclass(slots=True)
class Embeddings:
    """Gives each text the vector `vector_of(text)`, after `seconds`; before that, one answer of `instead` a request.

    `abandoned` counts the requests whose client didn't wait so long.
    """

    dimensions: int = 4
    instead: list[Callable[[Body], Response]] = field(default_factory=list)
    seconds: float = 0
    asked: list[Body] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    abandoned: int = 0
    together: int = 0
    most_together: int = 0

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/v1/embeddings", self.answer, methods=["POST"]),
                Route("/models/{model:path}/pipeline/feature-extraction", self.answer, methods=["POST"]),
            ]
        )

    @property
    def texts(self) -> list[str]:
        """All that was to be embedded."""
        return [text for body in self.asked for text in body.get("input") or body["inputs"]]

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.paths.append(request.url.path)
        self.keys.append(request.headers["authorization"])
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            if self.instead:
                return self.instead.pop(0)(body)
            await self._wait(request)
            return self._vectors(body)
        finally:
            self.together -= 1

    async def _wait(self, request: Request) -> None:
        for _ in range(round(self.seconds * 20)):
            if await request.is_disconnected():
                self.abandoned += 1
                return
            await asyncio.sleep(0.05)

    def _vectors(self, body: Body) -> Response:
        size = body.get("dimensions", self.dimensions)
        if "inputs" in body:
            return JSONResponse([vector_of(text, size) for text in body["inputs"]])
        return openai_answer([vector_of(text, size) for text in body["input"]])


def vector_of(text: str, dimensions: int = 4) -> list[float]:
    """A vector that is the text's own."""
    return [float(sum(text.encode())), 1.0, *[0.0] * (dimensions - 2)]


def openai_answer(vectors: list[Any]) -> Response:
    """The vectors on OpenAI's wire, last first: the field index says which is whose. NaN is written as NaN."""
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    body = {"object": "list", "data": data[::-1], "model": "stand-in", "usage": usage}
    return Response(json.dumps(body), media_type="application/json")


def giving(*vectors: Any) -> Callable[[Body], Response]:
    """These vectors, whatever is asked."""
    return lambda _: openai_answer(list(vectors))


def refusing(
    status: int, message: str = "refused", headers: Mapping[str, str] | None = None
) -> Callable[[Body], Response]:
    """An error in the shape of OpenAI and Together."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return lambda _: JSONResponse(body, status_code=status, headers=headers)


def saying(content: str, status: int = 200, media_type: str = "application/json") -> Callable[[Body], Response]:
    """This body."""
    return lambda _: Response(content, status, media_type=media_type)
