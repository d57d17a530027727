"""Chat with the providers on OpenAI's wire over real HTTP, each with its own ways, and with all that goes wrong."""

import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shared.providers import openai_compatible
from shared.providers.chat import Ask, Chat, Failure, Message, ProviderFailed, Usage
from tests.openai_like_stand_ins import KEY, KINDS, WORDS, Server, chunk, envelope, error, event
from tests.stand_ins import serving

pytestmark = pytest.mark.anyio
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a client would take 50 ms to make its own
WHOLE = "".join(WORDS)
MESSAGES: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is TON?"}]
BODY = {"model": "m"}
each_provider = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def home() -> Iterator[tuple[str, list[Server]]]:
    """One server for all tests, which is the last of the list, and its origin."""
    servers: list[Server] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await servers[-1].app()(scope, receive, send)

    with serving(app) as origin:
        yield origin, servers


@pytest.fixture
def start(home: tuple[str, list[Server]]) -> Callable[[str], tuple[Server, str]]:
    """A fresh stand-in of a kind, and its base URL."""

    def started(name: str) -> tuple[Server, str]:
        home[1].append(Server(KINDS[name]))
        return home[1][-1], f"{home[0]}{KINDS[name].prefix}"

    return started


@asynccontextmanager
async def connected(url: str, key: str = KEY) -> AsyncIterator[Chat]:
    async with httpx.AsyncClient(trust_env=False, verify=TLS) as http:
        yield openai_compatible.connect(http, url, SecretStr(key))


def ask(model: str = "m", max_tokens: int = 64, messages: list[Message] = MESSAGES) -> Ask:
    return Ask(model, messages, max_tokens, 10.0)


async def told(chat: Chat, question: Ask) -> list[str | Usage]:
    return [part async for part in chat.stream(question)]


async def failure(url: str, key: str = KEY, question: Ask | None = None) -> ProviderFailed:
    async with connected(url, key) as chat:
        with pytest.raises(ProviderFailed) as failed:
            await chat.generate(question or ask())
    return failed.value


async def broken(url: str) -> tuple[str, Failure]:
    """What a stream said, and how it failed."""
    said = ""
    async with connected(url) as chat:
        with pytest.raises(ProviderFailed) as failed:
            async for part in chat.stream(ask()):
                said += str(part)
    return said, failed.value.failure


def stream(*events: str) -> Response:
    return Response("".join(events), media_type="text/event-stream")


@each_provider
async def test_a_whole_answer_has_its_text_and_its_usage(start: Any, name: str) -> None:
    server, url = start(name)

    async with connected(url) as chat:
        said = await chat.generate(ask())

    assert (said.text, said.cut_off) == (WHOLE, False)
    assert said.usage
    assert (said.usage.input_tokens, said.usage.output_tokens, said.usage.estimated) == (40, 27, False)
    assert server.asked[0]["messages"] == MESSAGES


@each_provider
async def test_a_stream_has_its_pieces_and_its_usage_wherever_that_stands(start: Any, name: str) -> None:
    _, url = start(name)

    async with connected(url) as chat:
        *pieces, usage = await told(chat, ask())

    assert pieces == WORDS
    assert isinstance(usage, Usage)
    assert (usage.input_tokens, usage.output_tokens) == (40, 27)


@each_provider
async def test_the_limit_is_always_sent_and_what_it_cut_off_is_known(start: Any, name: str) -> None:
    server, url = start(name)

    async with connected(url) as chat:
        said = await chat.generate(ask(max_tokens=20))

    assert (said.text, said.cut_off) == ("".join(WORDS[:20]), True)
    assert server.asked[0]["max_tokens"] == 20


@each_provider
async def test_a_key_that_is_refused_is_another_providers_turn(start: Any, name: str) -> None:
    _, url = start(name)

    failed = await failure(url, "another key")

    assert failed.failure is Failure.REFUSED
    assert "another key" not in str(failed)


async def test_cached_and_reasoning_tokens_are_read_whole_and_in_streams(start: Any) -> None:
    _, url = start("openai")

    async with connected(url) as chat:
        said = await chat.generate(ask())
        *_, usage = await told(chat, ask())

    assert said.usage == usage == Usage(40, 27, False, cached_tokens=32, reasoning_tokens=7)


def reported(count: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
    details = {"prompt_tokens_details": {"cached_tokens": count}, "completion_tokens_details": None}
    usage = {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49, **details}
    return envelope("chat.completion", BODY, [choice]) | {"usage": usage}


@pytest.mark.parametrize("count", [None, -1, 41, 1.5, "many"])
async def test_cached_tokens_that_cannot_be_are_none(start: Any, count: Any) -> None:
    server, url = start("openai")
    server.script = [JSONResponse(reported(count))]

    async with connected(url) as chat:
        said = await chat.generate(ask())

    assert said.usage == Usage(40, 9)


@pytest.mark.parametrize("model", ["o3-mini", "o1", "gpt-5-nano"])
async def test_reasoning_models_get_the_limit_under_its_other_name(start: Any, model: str) -> None:
    server, url = start("openai")

    async with connected(url) as chat:
        said = await chat.generate(ask(model, max_tokens=50))

    assert said.text == WHOLE
    assert server.asked[0]["max_completion_tokens"] == 50
    assert not {"max_tokens", "temperature"} & server.asked[0].keys()


@pytest.mark.parametrize("model", ["gpt-4o-mini", "openai/gpt-oss-20b", "meta-llama/Llama-3.3-70B-Instruct:fastest"])
async def test_a_models_name_goes_out_as_it_is(start: Any, model: str) -> None:
    server, url = start("huggingface")

    async with connected(url) as chat:
        await chat.generate(ask(model))

    assert server.asked[0]["model"] == model
    assert (server.asked[0]["max_tokens"], server.asked[0]["temperature"]) == (64, 0)


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("openai", error(429, "You exceeded your current quota.", "insufficient_quota"), Failure.REFUSED),
        ("openai", error(429, "Rate limit reached.", "rate_limit_exceeded", "requests"), Failure.BUSY),
        ("openai", error(404, "The model does not exist.", "model_not_found"), Failure.REFUSED),
        ("openai", error(400, "maximum context length", "context_length_exceeded"), Failure.TOO_LONG),
        ("openai", error(400, "The response was filtered.", "content_filter"), Failure.UNACCEPTABLE),
        ("openai", error(503, "The engine is currently overloaded."), Failure.FAILING),
        ("together", error(402, "Credit limit exceeded.", None, "credit_limit"), Failure.REFUSED),
        ("together", error(422, "`inputs` tokens + `max_new_tokens` must be <= 8193"), Failure.TOO_LONG),
        ("together", error(429, "Too many requests.", None, "rate_limit"), Failure.BUSY),
        ("groq", error(413, "Request too large for model.", "rate_limit_exceeded", "tokens"), Failure.TOO_LONG),
        ("groq", error(498, "Flex tier capacity exceeded.", "capacity_exceeded"), Failure.FAILING),
        ("huggingface", JSONResponse({"error": "You have exceeded your monthly credits."}, 402), Failure.REFUSED),
        ("huggingface", JSONResponse({"error": "The model is too busy."}, 503), Failure.FAILING),
        ("dedicated", HTMLResponse("<html>503 Service Temporarily Unavailable</html>", 503), Failure.FAILING),
        ("runpod vllm", JSONResponse({"detail": "no workers"}, 500), Failure.FAILING),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name if isinstance(value, Failure) else "answer",
)
async def test_each_providers_refusals_are_told_apart(start: Any, name: str, answer: Any, expected: Failure) -> None:
    server, url = start(name)
    server.script = [answer]

    assert (await failure(url)).failure is expected
    assert len(server.asked) == 1


async def test_vllm_says_in_its_own_shape_that_a_prompt_is_too_long(start: Any) -> None:
    _, url = start("runpod vllm")

    failed = await failure(url, question=ask(messages=[{"role": "user", "content": "long " * 1000}]))

    assert failed.failure is Failure.TOO_LONG


async def test_groqs_wait_is_read_from_its_header(start: Any) -> None:
    server, url = start("groq")
    answer = error(429, "Please try again in 7.66s.", "rate_limit_exceeded", "tokens")
    answer.headers.update({"retry-after": "8", "x-ratelimit-reset-tokens": "7.66s"})
    server.script = [answer]

    failed = await failure(url)

    assert (failed.failure, failed.retry_after_seconds) == (Failure.BUSY, 8)


async def test_an_endpoint_that_was_scaled_to_zero_answers_once_it_has_started(start: Any) -> None:
    server, url = start("dedicated")
    server.script = [Response("503 Service Temporarily Unavailable", 503)]

    starting = await failure(url)
    async with connected(url) as chat:
        said = await chat.generate(ask())

    assert starting.failure is Failure.FAILING
    assert said.text == WHOLE


async def test_comments_that_keep_a_stream_alive_are_no_pieces(start: Any) -> None:
    server, url = start("openai")
    server.before_stream = ": keep-alive\n\n: keep-alive\n\n"

    async with connected(url) as chat:
        pieces = await told(chat, ask())

    assert pieces[:-1] == WORDS


async def test_a_stream_may_end_without_a_word_once_it_has_said_why(start: Any) -> None:
    server, url = start("openai")
    server.script = [stream(chunk(BODY, {"content": "Yes."}), chunk(BODY, {}, "stop"))]

    async with connected(url) as chat:
        pieces = await told(chat, ask())

    assert pieces == ["Yes."]


async def test_of_several_usages_the_last_one_counts_all(start: Any) -> None:
    server, url = start("runpod vllm")
    usages = [{"prompt_tokens": 40, "completion_tokens": count, "total_tokens": 40 + count} for count in (1, 2)]
    server.script = [
        stream(
            chunk(BODY, {"content": "Yes"}, usage=usages[0]),
            chunk(BODY, {"content": "."}, "stop", usage=usages[1]),
            "data: [DONE]\n\n",
        )
    ]

    async with connected(url) as chat:
        parts = await told(chat, ask())

    assert [part for part in parts if isinstance(part, Usage)][-1] == Usage(40, 2)


@pytest.mark.parametrize(
    ("events", "said", "expected"),
    [
        ([chunk(BODY, {"content": "Yes"})], "Yes", Failure.FAILING),
        ([chunk(BODY, {"content": "Yes"}), event({"error": {"message": "overloaded"}})], "Yes", Failure.FAILING),
        ([chunk(BODY, {"content": "Yes"}), chunk(BODY, {}, "content_filter")], "Yes", Failure.UNACCEPTABLE),
        ([chunk(BODY, {"content": "Yes"}), "data: {broken\n\n"], "Yes", Failure.FAILING),
        ([event({"error": {"message": "overloaded", "code": 503}})], "", Failure.FAILING),
        (["<html>maintenance</html>"], "", Failure.FAILING),
        ([], "", Failure.FAILING),
    ],
    ids=["cut off", "an error inside", "filtered", "no JSON", "an error at once", "a page", "nothing"],
)
async def test_a_stream_that_breaks_keeps_what_it_said(
    start: Any, events: list[str], said: str, expected: Failure
) -> None:
    server, url = start("openai")
    server.script = [stream(*events)]

    assert await broken(url) == (said, expected)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": 1}, {"prompt_tokens": "4"}])
async def test_a_usage_that_tells_nothing_is_none(start: Any, usage: Any) -> None:
    server, url = start("openai")
    whole: dict[str, Any] = reported(0) | {"usage": usage}
    pieces = stream(chunk(BODY, {"content": "Yes."}, "stop", usage=usage), "data: [DONE]\n\n")
    server.script = [Response(json.dumps(whole), media_type="application/json"), pieces]

    async with connected(url) as chat:
        said = await chat.generate(ask())
        parts = await told(chat, ask())

    assert said.usage is None
    assert parts == ["Yes."]
