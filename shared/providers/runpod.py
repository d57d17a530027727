"""Chat on RunPod serverless: endpoints with handlers of their own, whose jobs are queued, asked after and cancelled."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import httpx
from pydantic import SecretStr

from shared.providers.chat import JOB_SECONDS, Ask, Chat, Failure, ProviderFailed, Said, Usage
from shared.providers.openai_compatible import clean, read_usage

GOING_ON = ("IN_QUEUE", "IN_PROGRESS", "RUNNING")
FAILED = {"FAILED": Failure.FAILING, "CANCELLED": Failure.FAILING, "TIMED_OUT": Failure.LATE}
ENDED = ("COMPLETED", *FAILED)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 2.0
SPARE_SECONDS = 1  # runsync gives a job's id when it stops waiting, which must leave time to cancel the job
CANCEL_SECONDS = 2

ENDPOINT = re.compile(r"[A-Za-z0-9-]+")
JOB = re.compile(r"[A-Za-z0-9_-]{1,200}")
CONTEXT = re.compile(r"context.?(length|window|size)", re.IGNORECASE)
TOO_MUCH = re.compile(rf"{CONTEXT.pattern}|too.long|\btokens\b", re.IGNORECASE)  # the name max_tokens isn't meant
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

TEXT_KEYS = ("text", "output", "response", "generated_text")


@dataclass(slots=True)
class Job:
    """One call's job: where it is asked after, by when on the loop's clock, and what RunPod said of it last."""

    http: httpx.AsyncClient
    endpoint_url: str
    key: SecretStr
    until: float
    id: str = ""
    status: str = ""


def connect(http: httpx.AsyncClient, base_url: str, key: SecretStr) -> Chat:
    """Endpoints of one account; a model's name is an endpoint's id."""
    return Chat(
        generate=partial(generate, http, base_url, key),
        stream=partial(stream, http, base_url, key),
        submit=partial(submit, http, base_url, key),
        collect=partial(collect, http, base_url, key),
        cancel=partial(cancel, http, base_url, key),
    )


async def generate(http: httpx.AsyncClient, base_url: str, key: SecretStr, ask: Ask) -> Said:
    """The whole answer. Given up before RunPod has told the job's id, the job runs on until its policy ends it."""
    async with _job(http, base_url, key, ask) as job:
        state = await _told(job, "POST", f"runsync?wait={_wait_ms(ask.timeout_seconds)}", request=_request(ask))
        pause = FIRST_PAUSE_SECONDS
        while job.status not in ENDED:
            state = await _told(job, "GET", f"status/{job.id}", pause)
            pause = _longer(pause)
        return _said(_output(state), ask.max_tokens)


async def stream(http: httpx.AsyncClient, base_url: str, key: SecretStr, ask: Ask) -> AsyncGenerator[str | Usage, None]:
    """The answer's pieces, then the usage reported last; all at once where the handler doesn't stream."""
    usage: Usage | None = None
    async with _job(http, base_url, key, ask) as job:
        await _told(job, "POST", "run", request=_request(ask))
        async with aclosing(_outputs(job)) as outputs:
            async for output in outputs:
                said = _said(output, ask.max_tokens)
                usage = said.usage or usage
                if said.text:
                    yield said.text
        if usage:
            yield usage


async def submit(http: httpx.AsyncClient, base_url: str, key: SecretStr, ask: Ask, webhook_url: str) -> str:
    """Queue a job that RunPod calls back about, and leave it alone."""
    job = _new(http, base_url, key, ask)
    await _told(job, "POST", "run", request={**_request(ask), "policy": _policy(JOB_SECONDS), "webhook": webhook_url})
    return job.id


async def collect(http: httpx.AsyncClient, base_url: str, key: SecretStr, ask: Ask, job_id: str) -> Said | None:
    """What a job has come to; RunPod knows it for half an hour after its end."""
    job = _new(http, base_url, key, ask, job_id)
    try:
        state = await _told(job, "GET", f"status/{job.id}")
    except ProviderFailed as failed:
        if failed.failure is Failure.REFUSED:
            raise
        return None
    return _said(_output(state), ask.max_tokens) if job.status in ENDED else None


async def cancel(http: httpx.AsyncClient, base_url: str, key: SecretStr, ask: Ask, job_id: str) -> None:
    """End a job."""
    with suppress(ProviderFailed):
        job = _new(http, base_url, key, ask, job_id)
        await _told(job, "POST", f"cancel/{job.id}")


def _new(http: httpx.AsyncClient, base_url: str, key: SecretStr, ask: Ask, job_id: str = "") -> Job:
    if not ENDPOINT.fullmatch(ask.model):
        raise ProviderFailed(Failure.REFUSED, "not an endpoint's id")
    if job_id and not JOB.fullmatch(job_id):
        raise ProviderFailed(Failure.FAILING, "not a job's id")
    until = asyncio.get_running_loop().time() + ask.timeout_seconds
    return Job(http, f"{base_url}/{ask.model}", key, until, job_id)


@asynccontextmanager
async def _job(http: httpx.AsyncClient, base_url: str, key: SecretStr, ask: Ask) -> AsyncIterator[Job]:
    """A job yet to be created; one that is left before it has ended is cancelled, whoever leaves it."""
    job = _new(http, base_url, key, ask)
    try:
        yield job
    finally:
        if job.id and job.status not in ENDED:
            with anyio.move_on_after(CANCEL_SECONDS, shield=True), suppress(httpx.HTTPError):
                await _send(job, "POST", f"cancel/{job.id}")


async def _outputs(job: Job) -> AsyncGenerator[Any, None]:
    """The pieces' outputs; without any, the whole one. RunPod gives each piece once, the last ones after the end."""
    pause, streamed = 0.0, False
    while True:
        state = await _told(job, "GET", f"stream/{job.id}", pause)
        pieces = _pieces(state)
        for piece in pieces:
            yield piece
        _raise_if_failed(state)
        if job.status in ENDED and not pieces:
            break
        pause = FIRST_PAUSE_SECONDS if pieces else _longer(pause)
        streamed = streamed or bool(pieces)
    if not streamed:
        yield _output(await _told(job, "GET", f"status/{job.id}"))


async def _told(
    job: Job, method: str, path: str, pause_seconds: float = 0, request: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What RunPod says of the job after a pause, within the call's time; every foreign error becomes ours here.

    Their words stay out: one over a header holds the key.
    """
    try:
        async with asyncio.timeout_at(job.until):
            await asyncio.sleep(pause_seconds)
            response = await _send(job, method, path, request)
        if not response.is_success:
            raise _refusal(response)
        return _noted(job, response.json())
    except (TimeoutError, httpx.TimeoutException) as error:
        raise ProviderFailed(Failure.LATE, type(error).__name__) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
        raise ProviderFailed(Failure.FAILING, type(error).__name__) from error


async def _send(job: Job, method: str, path: str, request: dict[str, Any] | None = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {job.key.get_secret_value()}"}
    return await job.http.request(method, f"{job.endpoint_url}/{path}", json=request, headers=headers, timeout=None)


def _longer(pause_seconds: float) -> float:
    return min(2 * pause_seconds, LONGEST_PAUSE_SECONDS) or FIRST_PAUSE_SECONDS


def _noted(job: Job, state: Any) -> dict[str, Any]:
    """The answer, once it is one about a job; its id is kept even so, for the job to be cancelled."""
    if not isinstance(state, dict):
        raise ProviderFailed(Failure.FAILING, "no object")
    job_id, status = state.get("id"), state.get("status")
    if not job.id and isinstance(job_id, str) and JOB.fullmatch(job_id):
        job.id = job_id
    if not job.id or status not in (*GOING_ON, *ENDED):
        raise ProviderFailed(Failure.FAILING, "no job")
    job.status = status
    return state


def _refusal(response: httpx.Response) -> ProviderFailed:
    status, words = response.status_code, response.text[:1000]
    if status in (401, 402, 403, 404):
        return ProviderFailed(Failure.REFUSED, words)
    if status == 429:
        value = response.headers.get("retry-after", "")
        return ProviderFailed(Failure.BUSY, words, float(value) if SECONDS.fullmatch(value) else None)
    if status in (400, 413, 422):
        return ProviderFailed(Failure.TOO_LONG if TOO_MUCH.search(words) else Failure.UNACCEPTABLE, words)
    return ProviderFailed(Failure.FAILING, words)


def _output(state: dict[str, Any]) -> Any:
    _raise_if_failed(state)
    return state.get("output")


def _raise_if_failed(state: dict[str, Any]) -> None:
    if failure := FAILED.get(state["status"]):
        words = error if isinstance(error := state.get("error"), str) else ""
        raise ProviderFailed(Failure.TOO_LONG if CONTEXT.search(words) else failure, words[:1000])


def _pieces(state: dict[str, Any]) -> list[Any]:
    pieces = state.get("stream") or []
    if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
        raise ProviderFailed(Failure.FAILING, "no pieces")
    return [piece.get("output") for piece in pieces]


def _said(output: Any, max_tokens: int) -> Said:
    """What an output says, in any of the shapes handlers give it; of several usages the last counts them all."""
    parts = output if isinstance(output, list) else [output]
    texts = [text for part in parts if (text := _text(part)) is not None]
    if not parts or len(texts) < len(parts):
        raise ProviderFailed(Failure.FAILING, "an output of no known shape")
    usage = next((usage for part in reversed(parts) if (usage := _usage(part))), None)
    cut_off = any(map(_hit_the_limit, parts)) or (usage is not None and usage.output_tokens >= max_tokens)
    return Said(clean("".join(texts)), cut_off, usage)


def _text(part: Any) -> str | None:
    """The text of a string, an object, or the first choice of one like OpenAI's; None where there is none."""
    if not isinstance(part, dict):
        return part if isinstance(part, str) else None
    if "choices" not in part:
        return _first_text(part.get(key) for key in TEXT_KEYS)
    choice = _choice(part)
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return _first_text([content, choice.get("text"), choice.get("tokens")])


def _first_text(values: Iterable[Any]) -> str | None:
    return next((text for value in values if (text := _joined(value)) is not None), None)


def _joined(value: Any) -> str | None:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "".join(value)
    return value if isinstance(value, str) else None


def _choice(part: dict[str, Any]) -> dict[str, Any]:
    choices = part.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def _hit_the_limit(part: Any) -> bool:
    return isinstance(part, dict) and "length" in (part.get("finish_reason"), _choice(part).get("finish_reason"))


def _usage(part: Any) -> Usage | None:
    """What a handler reports in OpenAI's words, or RunPod's own vLLM worker in its."""
    reported = part.get("usage") if isinstance(part, dict) else None
    if not isinstance(reported, dict):
        return None
    own = {"prompt_tokens": reported.get("input"), "completion_tokens": reported.get("output")}
    return read_usage(reported) or read_usage(own)


def _request(ask: Ask) -> dict[str, Any]:
    """The job, in the words of several handlers at once: each takes what it knows.

    RunPod takes an `executionTimeout` above 5 s and a `ttl` from 10 s to a week.
    """
    messages = [{"role": message["role"], "content": clean(message["content"])} for message in ask.messages]
    return {
        "input": {
            "messages": messages,
            "prompt": "\n\n".join(message["content"] for message in messages),
            "max_tokens": ask.max_tokens,
            "sampling_params": {"max_tokens": ask.max_tokens, "temperature": 0},
        },
        "policy": _policy(ask.timeout_seconds),
    }


def _policy(seconds: float) -> dict[str, int]:
    milliseconds = round(1000 * seconds)
    return {"executionTimeout": max(6_000, milliseconds), "ttl": max(10_000, milliseconds)}


def _wait_ms(timeout_seconds: float) -> int:
    """How long runsync may wait: RunPod takes a second to five minutes."""
    return min(300_000, max(1_000, round(1000 * (timeout_seconds - SPARE_SECONDS))))
