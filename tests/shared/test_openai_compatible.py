"""Chat on OpenAI's wire over real HTTP, with each provider's odd ways: what is asked, read, counted and refused."""

import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shared.providers import openai_compatible
from shared.providers.chat import Ask, Chat, Failure, Message, ProviderFailed, Said, Usage
from tests.openai_like_stand_ins import (
    ANSWER,
    KEY,
    PROVIDERS,
    REASONING,
    USAGE,
    LikeOpenAI,
    chunk,
    error,
    event,
    saying,
)
from tests.stand_ins import serving

pytestmark = pytest.mark.anyio
TLS = ssl.create_default_context()  # read once, not for each client
MESSAGES: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is TON?"}]
StandingIn = Callable[[str], tuple[LikeOpenAI, str]]
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[LikeOpenAI]]]:
    """One server for all tests, which does as the last of the list says, and its origin."""
    stand_ins: list[LikeOpenAI] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stand_ins[-1].app()(scope, receive, send)

    with serving(app) as origin:
        yield origin, stand_ins


@pytest.fixture
def standing_in(server: tuple[str, list[LikeOpenAI]]) -> StandingIn:
    """A provider's stand-in and its base URL."""

    def stand_in(name: str) -> tuple[LikeOpenAI, str]:
        provider = LikeOpenAI(PROVIDERS[name])
        server[1].append(provider)
        return provider, f"{server[0]}{provider.provider.prefix}"

    return stand_in


@asynccontextmanager
async def connected(url: str, key: str = KEY) -> AsyncIterator[Chat]:
    async with httpx.AsyncClient(trust_env=False, verify=TLS) as http:
        yield openai_compatible.connect(http, url, SecretStr(key))


def ask(model: str, **differently: Any) -> Ask:
    return Ask(**{"model": model, "messages": MESSAGES, "max_tokens": 64, "timeout_seconds": 10.0, **differently})


async def generated(url: str, question: Ask, key: str = KEY) -> Said:
    async with connected(url, key) as chat:
        return await chat.generate(question)


async def streamed(url: str, question: Ask, key: str = KEY) -> list[str | Usage]:
    async with connected(url, key) as chat:
        return [piece async for piece in chat.stream(question)]


async def failures(url: str, question: Ask, key: str = KEY) -> list[ProviderFailed]:
    """How the call fails, whole and streamed."""
    failed = []
    for answer in (generated, streamed):
        with pytest.raises(ProviderFailed) as raised:
            await answer(url, question, key)
        failed.append(raised.value)
    return failed


@pytest.mark.parametrize("name", PROVIDERS)
async def test_every_provider_answers_whole_and_piece_by_piece(standing_in: StandingIn, name: str) -> None:
    stand_in, url = standing_in(name)

    for model in stand_in.provider.models:
        said, pieces = await generated(url, ask(model)), await streamed(url, ask(model))

        assert said == Said(ANSWER, cut_off=False, usage=Usage(40, 20), model="m")
        assert ("".join(map(str, pieces[:-1])), pieces[-1]) == (ANSWER, Usage(40, 20))


@pytest.mark.parametrize("name", PROVIDERS)
async def test_every_provider_is_told_how_long_an_answer_may_be(standing_in: StandingIn, name: str) -> None:
    stand_in, url = standing_in(name)
    model = stand_in.provider.models[0]

    said = await generated(url, ask(model, max_tokens=5))

    assert said == Said("TON is the native coin ", cut_off=True, usage=Usage(40, 20), model="m")


@pytest.mark.parametrize(
    ("refusal", "failure"),
    [
        ("unauthorized", Failure.REFUSED),
        ("unknown_model", Failure.REFUSED),
        ("busy", Failure.BUSY),
        ("too_long", Failure.TOO_LONG),
    ],
)
@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_refusal_means_the_same_in_every_providers_words(
    standing_in: StandingIn, name: str, refusal: str, failure: Failure
) -> None:
    stand_in, url = standing_in(name)
    stand_in.instead = [getattr(stand_in.provider, refusal)] * 2

    failed = await failures(url, ask(stand_in.provider.models[0]))

    assert [one.failure for one in failed] == [failure, failure]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_wrong_key_is_refused_and_shows_nowhere(standing_in: StandingIn, name: str) -> None:
    stand_in, url = standing_in(name)

    failed = await failures(url, ask(stand_in.provider.models[0]), key="sk-wrong")

    assert [one.failure for one in failed] == [Failure.REFUSED, Failure.REFUSED]
    assert "sk-wrong" not in f"{failed!r}"


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("openai", 7.0), ("groq", 5.289), ("together", None), ("huggingface", None), ("runpod", None)],
)
async def test_a_busy_provider_says_when_it_may_be_asked_again(
    standing_in: StandingIn, name: str, seconds: float | None
) -> None:
    stand_in, url = standing_in(name)
    stand_in.instead = [stand_in.provider.busy] * 2

    failed = await failures(url, ask(stand_in.provider.models[0]))

    assert [one.retry_after_seconds for one in failed] == [seconds, seconds]


async def test_an_account_without_money_is_refused_though_the_status_says_busy(standing_in: StandingIn) -> None:
    stand_in, url = standing_in("openai")
    body = json.dumps(error("You exceeded your current quota.", "insufficient_quota", "insufficient_quota"))
    stand_in.instead = [lambda: Response(body, 429, {"retry-after": "1"})] * 2

    failed = await failures(url, ask("gpt-4o"))

    assert [(one.failure, one.retry_after_seconds) for one in failed] == [(Failure.REFUSED, None)] * 2


async def test_more_than_an_account_may_ask_in_a_minute_is_refused(standing_in: StandingIn) -> None:
    stand_in, url = standing_in("groq")
    body = json.dumps(error("Request too large for model `x` on tokens per minute.", "tokens", "rate_limit_exceeded"))
    stand_in.instead = [lambda: Response(body, 413)] * 2

    failed = await failures(url, ask("llama-3.3-70b-versatile"))

    assert [one.failure for one in failed] == [Failure.REFUSED, Failure.REFUSED]


async def test_an_endpoint_that_starts_from_zero_fails_and_then_answers(standing_in: StandingIn) -> None:
    stand_in, url = standing_in("dedicated")
    stand_in.starts = 2

    failed = await failures(url, ask("tgi"))
    said = await generated(url, ask("tgi"))

    assert [one.failure for one in failed] == [Failure.FAILING, Failure.FAILING]
    assert said.text == ANSWER


@pytest.mark.parametrize("model", REASONING)
async def test_a_model_that_reasons_gets_its_own_limit_and_no_temperature(standing_in: StandingIn, model: str) -> None:
    stand_in, url = standing_in("openai")

    await generated(url, ask(model))

    assert stand_in.asked == [{"model": model, "messages": MESSAGES, "max_completion_tokens": 64}]


@pytest.mark.parametrize(
    ("name", "model", "limit"),
    [
        ("openai", "gpt-4o", "max_tokens"),
        ("openai", "ft:gpt-4o:acme::1", "max_tokens"),
        ("openai", "gpt-5-chat-latest", "max_completion_tokens"),
        ("groq", "openai/gpt-oss-20b", "max_tokens"),
        ("huggingface", "openai/gpt-oss-120b:fastest", "max_tokens"),
        ("runpod", "mistralai/Mistral-7B-Instruct-v0.2", "max_tokens"),
    ],
)
async def test_any_other_model_gets_a_limit_and_a_temperature(
    standing_in: StandingIn, name: str, model: str, limit: str
) -> None:
    stand_in, url = standing_in(name)

    await generated(url, ask(model))

    assert stand_in.asked == [{"model": model, "messages": MESSAGES, limit: 64, "temperature": 0}]


@pytest.mark.parametrize("code", ["unsupported_parameter", "unsupported_value"])
async def test_a_model_asked_in_the_wrong_words_is_not_the_callers_doing(standing_in: StandingIn, code: str) -> None:
    stand_in, url = standing_in("openai")
    body = error("Unsupported parameter: 'max_tokens' is not supported.", "invalid_request_error", code)
    stand_in.instead = [lambda: Response(json.dumps(body), 400)] * 2

    failed = await failures(url, ask("gpt-4o"))

    assert [one.failure for one in failed] == [Failure.REFUSED, Failure.REFUSED]


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 32}}, Usage(40, 20, cached_tokens=32)),
        ({"completion_tokens_details": {"reasoning_tokens": 16}}, Usage(40, 20, reasoning_tokens=16)),
        ({"prompt_cache_hit_tokens": 30, "prompt_cache_miss_tokens": 10}, Usage(40, 20, cached_tokens=30)),
        (
            {
                "prompt_tokens_details": {"cached_tokens": 41, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 21},
            },
            Usage(40, 20, cached_tokens=40, reasoning_tokens=20),
        ),
        ({"prompt_tokens_details": {"cached_tokens": -1}}, Usage(40, 20)),
        ({"prompt_tokens_details": {"cached_tokens": None}}, Usage(40, 20)),
        ({"prompt_tokens_details": {"cached_tokens": "many"}}, Usage(40, 20)),
        ({"prompt_tokens_details": {"cached_tokens": 3.5}}, Usage(40, 20)),
        ({"prompt_tokens_details": {"cached_tokens": [1]}}, Usage(40, 20)),
        ({"prompt_tokens_details": None, "completion_tokens_details": None}, Usage(40, 20)),
        ({"prompt_tokens_details": 32, "completion_tokens_details": "16"}, Usage(40, 20)),
        ({"prompt_tokens_details": [{"cached_tokens": 32}]}, Usage(40, 20)),
        ({"completion_tokens_details": {}}, Usage(40, 20)),
        ({"prompt_tokens": -1}, None),
        ({"completion_tokens": None}, None),
        ({"prompt_tokens": "many"}, None),
        ({"prompt_tokens": 40.5}, None),
        ({"completion_tokens": {}}, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("name", ["openai", "together", "groq"])
async def test_odd_counts_are_none_and_break_no_answer(
    standing_in: StandingIn, name: str, reported: dict[str, Any], usage: Usage | None
) -> None:
    stand_in, url = standing_in(name)
    stand_in.usage = USAGE | reported
    model = stand_in.provider.models[0]

    said, pieces = await generated(url, ask(model)), await streamed(url, ask(model))

    assert said == Said(ANSWER, cut_off=False, usage=usage, model="m")
    assert [piece for piece in pieces if not isinstance(piece, str)] == ([usage] if usage else [])


@pytest.mark.parametrize("reported", [None, {}, [], "many", 60, [40, 20]], ids=str)
@pytest.mark.parametrize("name", ["openai", "together", "groq", "runpod"])
async def test_an_answer_is_whole_without_its_usage(standing_in: StandingIn, name: str, reported: Any) -> None:
    stand_in, url = standing_in(name)
    stand_in.usage = reported
    model = stand_in.provider.models[0]

    said, pieces = await generated(url, ask(model)), await streamed(url, ask(model))

    assert said == Said(ANSWER, cut_off=False, usage=None, model="m")
    assert "".join(map(str, pieces)) == ANSWER


async def test_groqs_older_place_for_the_usage_is_read_too(standing_in: StandingIn) -> None:
    stand_in, url = standing_in("groq")
    stand_in.instead = [stream_of(chunk({"content": "TON"}), chunk({}, "stop", x_groq={"id": "r", "usage": USAGE}))]

    pieces = await streamed(url, ask("llama-3.3-70b-versatile"))

    assert pieces == ["TON", Usage(40, 20)]


async def test_of_several_usages_the_last_counts(standing_in: StandingIn) -> None:
    stand_in, url = standing_in("runpod")
    counts = [USAGE | {"completion_tokens": count} for count in (1, 2)]
    stand_in.instead = [
        stream_of(
            chunk({"content": "TO"}, usage=counts[0]),
            chunk({"content": "N"}, "stop", usage=counts[1]),
            event({"choices": [], "usage": None}),
        )
    ]

    pieces = await streamed(url, ask("mistralai/Mistral-7B-Instruct-v0.2"))

    assert pieces == ["TO", "N", Usage(40, 2)]


async def test_a_stream_may_open_with_comments_and_end_without_done(standing_in: StandingIn) -> None:
    stand_in, url = standing_in("huggingface")
    stand_in.before, stand_in.says_done = [": keep-alive\n\n", ":\n\n", "\n"], False

    pieces = await streamed(url, ask("openai/gpt-oss-120b"))

    assert ("".join(map(str, pieces[:-1])), pieces[-1]) == (ANSWER, Usage(40, 20))


async def test_a_stream_that_ends_without_a_reason_was_cut_off(standing_in: StandingIn) -> None:
    stand_in, url = standing_in("openai")
    stand_in.interrupted = "data: [DONE]\n\n"

    pieces, failed = await until_it_fails(url, ask("gpt-4o"))

    assert (pieces, failed.failure) == (["TON ", "is "], Failure.FAILING)


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (error("The server had an error.", "server_error"), Failure.FAILING),
        (error("Rate limit reached.", "tokens", "rate_limit_exceeded"), Failure.BUSY),
        (error("You exceeded your current quota.", "insufficient_quota", "insufficient_quota"), Failure.REFUSED),
        (error("Too long.", "invalid_request_error", "context_length_exceeded"), Failure.TOO_LONG),
        (error("At most 4096 tokens.", "BadRequestError", 400), Failure.TOO_LONG),
        (error("Overloaded", "server_error", 503), Failure.FAILING),
        (error("Slow down", "server_error", 429), Failure.BUSY),
        ({"error": "Request failed during generation: CUDA error", "error_type": "generation"}, Failure.FAILING),
        ({"error": {"message": None}}, Failure.FAILING),
        ({"error": ["odd"]}, Failure.FAILING),
        ({"object": "error", "message": "out of memory", "code": 500}, Failure.FAILING),
    ],
    ids=str,
)
async def test_an_error_in_mid_stream_comes_after_the_pieces(
    standing_in: StandingIn, body: dict[str, Any], failure: Failure
) -> None:
    stand_in, url = standing_in("openai")
    stand_in.interrupted = event(body)

    pieces, failed = await until_it_fails(url, ask("gpt-4o"))

    assert (pieces, failed.failure) == (["TON ", "is "], failure)


@pytest.mark.parametrize(
    ("content", "failure"),
    [
        (json.dumps(error("Invalid token", "auth", 401)), Failure.REFUSED),
        (json.dumps(PROVIDERS["runpod"].too_long.body), Failure.TOO_LONG),
        (json.dumps(error("Slow down", "busy", "rate_limit_exceeded")), Failure.BUSY),
        ('{"error": "vLLM engine not initialized."}', Failure.FAILING),
        ('{"error": null}', Failure.FAILING),
        ('{"choices": []}', Failure.FAILING),
        ('{"choices": null}', Failure.FAILING),
        ('{"choices": {}}', Failure.FAILING),
        ('{"choices": [null]}', Failure.FAILING),
        ('{"choices": [{"message": null}]}', Failure.FAILING),
        ('{"choices": [{"message": {"content": 1}}]}', Failure.FAILING),
        ("{}", Failure.FAILING),
        ("[]", Failure.FAILING),
        ("null", Failure.FAILING),
        ('"text"', Failure.FAILING),
        ("<html>maintenance</html>", Failure.FAILING),
        ("", Failure.FAILING),
        (DEEP, Failure.FAILING),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_an_answer_that_is_none_is_a_failure_under_a_status_of_200(
    standing_in: StandingIn, content: str, failure: Failure
) -> None:
    stand_in, url = standing_in("runpod")
    stand_in.instead = [saying(content)]

    with pytest.raises(ProviderFailed) as failed:
        await generated(url, ask("mistralai/Mistral-7B-Instruct-v0.2"))

    assert failed.value.failure is failure


@pytest.mark.parametrize("answer", [generated, streamed])
async def test_a_filtered_answer_is_unacceptable(standing_in: StandingIn, answer: Callable[[str, Ask], Any]) -> None:
    stand_in, url = standing_in("openai")
    filtered = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"}
    whole = saying(json.dumps({"choices": [filtered]}))
    stand_in.instead = [whole if answer is generated else stream_of(chunk({}, "content_filter"))]

    with pytest.raises(ProviderFailed) as failed:
        await answer(url, ask("gpt-4o"))

    assert failed.value.failure is Failure.UNACCEPTABLE


@pytest.mark.parametrize("answer", [generated, streamed])
async def test_says_that_nobody_answers(answer: Callable[[str, Ask], Any]) -> None:
    with pytest.raises(ProviderFailed) as failed:
        await answer("http://127.0.0.1:9/v1", ask("gpt-4o"))

    assert failed.value.failure is Failure.FAILING


async def test_a_stream_that_stalls_is_late(standing_in: StandingIn) -> None:
    stand_in, url = standing_in("openai")
    stand_in.pause_seconds = 5

    pieces, failed = await until_it_fails(url, ask("gpt-4o", timeout_seconds=0.3))

    assert (pieces, failed.failure) == (["TON "], Failure.LATE)


async def until_it_fails(url: str, question: Ask) -> tuple[list[str | Usage], ProviderFailed]:
    pieces: list[str | Usage] = []
    with pytest.raises(ProviderFailed) as failed:
        async with connected(url) as chat:
            async for piece in chat.stream(question):
                pieces.append(piece)
    return pieces, failed.value


def stream_of(*lines: str) -> Callable[[], Response]:
    return saying("".join(lines), "text/event-stream")
