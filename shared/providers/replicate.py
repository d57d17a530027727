"""Chat on Replicate's wire: a prediction is created, then looked at until it is over or read as it streams."""

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import httpx
from pydantic import SecretStr

from shared.providers import event_streams
from shared.providers.chat import JOB_SECONDS, Ask, Chat, Failure, ProviderFailed, Said, Usage
from shared.providers.openai_compatible import GARBAGE, clean, is_count

# Only these say that it is over: neither a 2xx nor an output does. Aborted is what never ran (`Cancel-After`).
TERMINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 2.0
LONGEST_WAIT_SECONDS = 60  # of `Prefer: wait`
SHORTEST_LIFE_SECONDS = 5  # of `Cancel-After`
GRACE_SECONDS = 2.0  # for stopping what was given up

# Models without an input `system_prompt`, which would be ignored without a word: Bifrost's list, its names as prefixes.
NO_SYSTEM_PROMPT = (
    "meta/meta-llama-3-8b", "meta/llama-2-70b", "openai/gpt-oss-20b", "openai/o1-mini", "xai/grok-4", "deepseek-ai/",
)  # fmt: skip
MODEL_PATHS = (
    (re.compile(r"deployments/(\w[\w.-]*/\w[\w.-]*)"), "/deployments/{}/predictions"),
    (re.compile(r"(\w[\w.-]*/\w[\w.-]*)"), "/models/{}/predictions"),
)
ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
VERSION = re.compile(r"(\w[\w.-]*/\w[\w.-]*:)?[0-9a-f]{64}")

FAILURES = {
    400: Failure.UNACCEPTABLE,
    401: Failure.REFUSED,
    402: Failure.REFUSED,
    403: Failure.REFUSED,
    404: Failure.REFUSED,
    413: Failure.UNACCEPTABLE,
    422: Failure.UNACCEPTABLE,
    429: Failure.BUSY,
}
# A model that took too long is late; "max_tokens", of which a 422 may speak, is another word.
TOO_LONG = re.compile(r"context[ _](length|window|size)|(?<!took )(?<!taking )\btoo long\b|\btokens\b", re.IGNORECASE)
RESETS = re.compile(r"resets in ~?(\d{1,6}(?:\.\d+)?)\s*s")
SECONDS = re.compile(r"\d{1,6}(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Account:
    """Where Replicate is asked, and with whose key."""

    http: httpx.AsyncClient
    base_url: str
    key: SecretStr


@dataclass(slots=True)
class Prediction:
    """A prediction as last seen; `over` once nothing more will come of it."""

    urls: Mapping[str, Any]
    seen: Mapping[str, Any]
    over: bool


def connect(http: httpx.AsyncClient, base_url: str, key: SecretStr) -> Chat:
    """Replicate's models, named owner/name, owner/name:version, version, or deployments/owner/name."""
    account = Account(http, base_url.rstrip("/"), key)
    return Chat(
        generate=partial(generate, account),
        stream=partial(stream, account),
        submit=partial(submit, account),
        collect=partial(collect, account),
        cancel=partial(cancel, account),
    )


async def generate(account: Account, ask: Ask) -> Said:
    """The whole answer, once the prediction is over."""
    deadline = asyncio.get_running_loop().time() + ask.timeout_seconds
    with _ours():
        async with _prediction(account, ask, deadline, streamed=False) as prediction:
            async with asyncio.timeout_at(deadline):
                await _watch(account, ask, prediction)
            return _said(ask, prediction)


async def stream(account: Account, ask: Ask) -> AsyncGenerator[str | Usage, None]:
    """The answer's pieces as they come, one where the model can't stream; then its usage where it is reported.

    No timeout spans a `yield`: it would go off in whatever the reader is doing.
    """
    deadline = asyncio.get_running_loop().time() + ask.timeout_seconds
    with _ours():
        async with _prediction(account, ask, deadline, streamed=True) as prediction:
            async with aclosing(_pieces(account, ask, prediction)) as pieces:
                while (piece := await _next(pieces, deadline)) is not None:
                    yield piece
            with suppress(ProviderFailed, TimeoutError, httpx.HTTPError, *GARBAGE):  # the answer is whole without it
                async with asyncio.timeout_at(deadline):
                    await _look_for_metrics(account, ask, prediction)
            if usage := _usage(prediction):
                yield usage


async def submit(account: Account, ask: Ask, webhook_url: str) -> str:
    """Create a prediction that Replicate calls back about, and leave it alone."""
    with _ours():
        path, version = _place(ask.model)
        hook = {"webhook": webhook_url, "webhook_events_filter": ["completed"]}
        headers = {"Cancel-After": f"{JOB_SECONDS}s"}
        body = {**version, "input": _input(ask), **hook}
        seen = await _call(account, "POST", f"{account.base_url}{path}", ask.timeout_seconds, headers, body)
        return _checked(seen["id"])


async def collect(account: Account, ask: Ask, job_id: str) -> Said | None:
    """What a prediction has come to."""
    with _ours():
        try:
            seen = await _call(account, "GET", _address(account, job_id), ask.timeout_seconds)
        except ProviderFailed as failed:
            if failed.failure is Failure.REFUSED:
                raise
            return None
        except (TimeoutError, httpx.HTTPError, *GARBAGE):
            return None
        prediction = Prediction({}, seen, seen.get("status") in TERMINAL)
        _raise_if_failed(prediction)
        return _said(ask, prediction) if prediction.over else None


async def cancel(account: Account, ask: Ask, job_id: str) -> None:
    """Stop a prediction."""
    with suppress(ProviderFailed, httpx.HTTPError, *GARBAGE):
        await _call(account, "POST", f"{_address(account, job_id)}/cancel", ask.timeout_seconds)


@contextmanager
def _ours() -> Iterator[None]:
    """The one place where foreign errors become `ProviderFailed`; httpx's own words may hold the key."""
    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as error:
        raise ProviderFailed(Failure.LATE, type(error).__name__) from error
    except (httpx.HTTPError, *GARBAGE) as error:
        raise ProviderFailed(Failure.FAILING, type(error).__name__) from error


@asynccontextmanager
async def _prediction(account: Account, ask: Ask, deadline: float, streamed: bool) -> AsyncIterator[Prediction]:
    """A new prediction, stopped if it is left before it is over.

    Left while Replicate still creates it, its address is waited for; where that takes too long, `Cancel-After`
    stops it.
    """
    creating = asyncio.create_task(_create(account, ask, streamed))
    try:
        async with asyncio.timeout_at(deadline):
            prediction = await asyncio.shield(creating)
        yield prediction
    finally:
        with anyio.move_on_after(GRACE_SECONDS, shield=True), suppress(ProviderFailed, httpx.HTTPError, *GARBAGE):
            await _stop(account, await creating)


async def _create(account: Account, ask: Ask, streamed: bool) -> Prediction:
    path, version = _place(ask.model)
    body = {**version, "input": _input(ask), **({"stream": True} if streamed else {})}
    headers = {"Cancel-After": f"{max(SHORTEST_LIFE_SECONDS, math.ceil(ask.timeout_seconds))}s"}
    # A second less than there is: a prediction whose address never came can't be stopped.
    wait_seconds = min(LONGEST_WAIT_SECONDS, math.floor(ask.timeout_seconds) - 1)
    if wait_seconds >= 1 and not streamed:
        headers["Prefer"] = f"wait={wait_seconds}"
    longest_seconds = ask.timeout_seconds + GRACE_SECONDS
    seen = await _call(account, "POST", f"{account.base_url}{path}", longest_seconds, headers, body)
    return Prediction(seen.get("urls") or {}, seen, seen.get("status") in TERMINAL)


async def _stop(account: Account, prediction: Prediction) -> None:
    if not prediction.over:
        await _call(account, "POST", prediction.urls["cancel"], GRACE_SECONDS)


async def _watch(account: Account, ask: Ask, prediction: Prediction) -> None:
    """Looks at it until it is over; raises where it didn't succeed."""
    pause_seconds = FIRST_PAUSE_SECONDS
    while not prediction.over:
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 1.5, LONGEST_PAUSE_SECONDS)
        prediction.seen = await _look(account, ask, prediction)
        prediction.over = prediction.seen.get("status") in TERMINAL
    _raise_if_failed(prediction)


def _raise_if_failed(prediction: Prediction) -> None:
    if prediction.over and prediction.seen["status"] != "succeeded":
        raise _broken(f"{prediction.seen['status']}: {prediction.seen.get('error')}")
    if prediction.over and prediction.seen.get("data_removed") is True:
        raise ProviderFailed(Failure.FAILING, "the output is deleted")


def _said(ask: Ask, prediction: Prediction) -> Said:
    count = _count(prediction, "output_token_count")
    cut_off = count is not None and count >= ask.max_tokens
    return Said(_text(prediction.seen.get("output")), cut_off, _usage(prediction))


def _address(account: Account, job_id: str) -> str:
    return f"{account.base_url}/predictions/{_checked(job_id)}"


def _checked(job_id: Any) -> str:
    if not isinstance(job_id, str) or not ID.fullmatch(job_id):
        raise ProviderFailed(Failure.FAILING, "not a prediction's id")
    return job_id


async def _look(account: Account, ask: Ask, prediction: Prediction) -> dict[str, Any]:
    return await _call(account, "GET", prediction.urls["get"], ask.timeout_seconds)


async def _look_for_metrics(account: Account, ask: Ask, prediction: Prediction) -> None:
    if not isinstance(prediction.seen.get("metrics"), dict):
        prediction.seen = await _look(account, ask, prediction)


async def _next(pieces: AsyncGenerator[str, None], deadline: float) -> str | None:
    async with asyncio.timeout_at(deadline):
        return await anext(pieces, None)


async def _pieces(account: Account, ask: Ask, prediction: Prediction) -> AsyncGenerator[str, None]:
    if prediction.over or not prediction.urls.get("stream"):
        await _watch(account, ask, prediction)
        yield _text(prediction.seen.get("output"))
        return
    async with aclosing(_events(account, ask, prediction)) as events:
        async for event, text in events:
            if event == "output" and (piece := clean(text)):
                yield piece
            elif event == "error":
                raise _broken(text)
            elif event == "done":
                prediction.over = True
                if reason := json.loads(text or "{}").get("reason"):
                    raise _broken(f"done: {reason}")
                return
    raise ProviderFailed(Failure.FAILING, "the stream broke off")


async def _events(account: Account, ask: Ask, prediction: Prediction) -> AsyncGenerator[tuple[str, str], None]:
    """Each event's name and data."""
    url = httpx.URL(prediction.urls["stream"])
    headers = {"Accept": "text/event-stream", **_authorization(account, url)}
    async with account.http.stream("GET", url, headers=headers, timeout=ask.timeout_seconds) as answer:
        if not answer.is_success:
            await answer.aread()
            raise _refusal(answer)
        async with aclosing(event_streams.events(answer)) as events:
            async for event in events:
                yield event


async def _call(
    account: Account, method: str, address: str, timeout_seconds: float,
    headers: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    url = httpx.URL(address)
    headers = {**(headers or {}), **_authorization(account, url)}
    answer = await account.http.request(method, url, headers=headers, json=body, timeout=timeout_seconds)
    if not answer.is_success:
        raise _refusal(answer)
    seen = answer.json()
    if not isinstance(seen, dict):
        raise TypeError("no object")
    return seen


def _authorization(account: Account, url: httpx.URL) -> dict[str, str]:
    """The key, for Replicate alone. Its streams at replicate.net need none: who knows such an address may read it."""
    home = httpx.URL(account.base_url)
    if (url.scheme, url.host, url.port) == (home.scheme, home.host, home.port):
        return {"Authorization": f"Bearer {account.key.get_secret_value()}"}
    if url.scheme == "https" and url.host.endswith(".replicate.com"):
        return {"Authorization": f"Bearer {account.key.get_secret_value()}"}
    if url.scheme == "https" and url.host.endswith(".replicate.net"):
        return {}
    raise ProviderFailed(Failure.FAILING, f"an address that isn't Replicate's: {url.host}")


def _place(model: str) -> tuple[str, dict[str, str]]:
    """The path under which a model's predictions are created, and what the body adds to it."""
    for name, path in MODEL_PATHS:
        if match := name.fullmatch(model):
            return path.format(match[1]), {}
    if VERSION.fullmatch(model):
        return "/predictions", {"version": model}
    raise ProviderFailed(Failure.REFUSED, f"not the name of a model at Replicate: {model}")


def _input(ask: Ask) -> dict[str, Any]:
    system = [message["content"] for message in ask.messages if message["role"] == "system"]
    spoken = [message["content"] for message in ask.messages if message["role"] != "system"]
    if ask.model.startswith(NO_SYSTEM_PROMPT):
        system, spoken = [], system + spoken
    prompts = {"prompt": spoken, "system_prompt": system}
    texts = {name: clean("\n\n".join(parts)) for name, parts in prompts.items() if parts}
    return {**texts, _limit(ask.model): ask.max_tokens, "temperature": 0}


def _limit(model: str) -> str:
    """OpenAI's closed models kept their own name for it."""
    closed = model.startswith("openai/") and not model.startswith("openai/gpt-oss")
    return "max_completion_tokens" if closed else "max_tokens"


def _text(output: Any) -> str:
    """A text, its pieces, an object that holds either, or null where the model said nothing."""
    if isinstance(output, dict):
        output = output["text"] if "text" in output else output["output"]
    if output is None:
        return ""
    if not isinstance(output, str | list):
        raise TypeError("neither a text nor its pieces")
    return clean("".join(output))


def _usage(prediction: Prediction) -> Usage | None:
    spent = _count(prediction, "input_token_count"), _count(prediction, "output_token_count")
    return None if spent[0] is None or spent[1] is None else Usage(spent[0], spent[1])


def _count(prediction: Prediction, name: str) -> int | None:
    metrics = prediction.seen.get("metrics")
    count = metrics.get(name) if isinstance(metrics, dict) else None
    return count if is_count(count) else None


def _refusal(answer: httpx.Response) -> ProviderFailed:
    failure = FAILURES.get(answer.status_code, Failure.FAILING)
    if answer.status_code == 422 and TOO_LONG.search(answer.text):
        failure = Failure.TOO_LONG
    wait_seconds = _retry_after(answer) if failure is Failure.BUSY else None
    return ProviderFailed(failure, f"{answer.status_code}: {answer.text}", wait_seconds)


def _retry_after(answer: httpx.Response) -> float | None:
    headers = [answer.headers.get(name, "") for name in ("retry-after", "ratelimit-reset")]
    said = [*headers, *RESETS.findall(answer.text)]
    return next((float(seconds) for seconds in said if SECONDS.fullmatch(seconds)), None)


def _broken(words: str) -> ProviderFailed:
    return ProviderFailed(Failure.TOO_LONG if TOO_LONG.search(words) else Failure.FAILING, words)
