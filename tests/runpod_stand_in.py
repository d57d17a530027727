"""A stand-in for RunPod serverless on loopback: jobs that are queued, asked after, streamed and cancelled."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

ANSWER = "TON is the native coin of The Open Network."
JOB = "eaebd6e7-6a92-4bb8-a911-f996ac5ea99d-u1"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: which endpoint was to do what with which job."""

    endpoint: str
    operation: str
    job: str
    query: dict[str, str]
    body: Any
    key: str


@dataclass(slots=True)
class RunPod:
    """Ends each job with `status`, `output` and `error` once it has been asked after `polls` times.

    `pieces` are the outputs that each answer of stream holds; the last come with the end. `instead` holds answers to
    give in an operation's place, each once; to an operation of `silent` there is none for a minute.
    """

    output: Any = ANSWER
    status: Any = "COMPLETED"
    error: Any = None
    polls: float = 0
    pieces: list[list[Any]] = field(default_factory=list)
    instead: dict[str, list[Response]] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    asked: list[Asked] = field(default_factory=list)

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/v2/{endpoint}/{operation:str}", self.create, methods=["POST"]),
                Route("/v2/{endpoint}/cancel/{job}", self.cancel, methods=["POST"]),
                Route("/v2/{endpoint}/{operation}/{job}", self.follow, methods=["GET"]),
            ]
        )

    @property
    def operations(self) -> list[str]:
        """What was asked for, in its order."""
        return [asked.operation for asked in self.asked]

    @property
    def cancelled(self) -> list[str]:
        """The jobs that were to be cancelled."""
        return [asked.job for asked in self.asked if asked.operation == "cancel"]

    async def create(self, request: Request) -> Response:
        operation = await self._note(request)
        return await self._instead(request, operation) or self._state(queued=operation == "run")

    async def follow(self, request: Request) -> Response:
        operation = await self._note(request)
        if answer := await self._instead(request, operation):
            return answer
        return self._stream() if operation == "stream" else self._state()

    async def cancel(self, request: Request) -> Response:
        await self._note(request)
        return await self._instead(request, "cancel") or JSONResponse({"id": JOB, "status": "CANCELLED"})

    async def _note(self, request: Request) -> str:
        path, body = request.path_params, await request.body()
        operation = str(path.get("operation", "cancel"))
        self.asked.append(
            Asked(
                path["endpoint"],
                operation,
                path.get("job", ""),
                dict(request.query_params),
                await request.json() if body else None,
                request.headers["authorization"],
            )
        )
        return operation

    async def _instead(self, request: Request, operation: str) -> Response | None:
        for _ in range(600 if operation in self.silent else 0):
            if await request.is_disconnected():
                break
            await asyncio.sleep(0.1)
        answers = self.instead.get(operation)
        return answers.pop(0) if answers else None

    def _state(self, queued: bool = False) -> Response:
        if queued or self.polls > 0:
            self.polls -= not queued
            return JSONResponse({"id": JOB, "status": "IN_QUEUE" if queued else "IN_PROGRESS"})
        ended = {"id": JOB, "status": self.status, "delayTime": 824, "executionTime": 3391}
        return JSONResponse(ended | ({"error": self.error} if self.error else {"output": self.output}))

    def _stream(self) -> Response:
        if self.pieces:
            outputs = self.pieces.pop(0)
        else:
            outputs, self.polls = [], self.polls - 1
        going_on = bool(self.pieces) or self.polls > 0
        error = {"error": self.error} if self.error and not going_on else {}
        pieces = [{"output": output, "metrics": {"stream_index": index}} for index, output in enumerate(outputs)]
        return JSONResponse({"status": "IN_PROGRESS" if going_on else self.status, "stream": pieces} | error)
