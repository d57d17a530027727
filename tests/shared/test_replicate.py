"""Chat on Replicate over real HTTP: what it is asked, when an answer is whole, and what becomes of a failure."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from pydantic import SecretStr
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shared.providers import replicate
from shared.providers.chat import Ask, Chat, Failure, Message, ProviderFailed, Said, Usage
from tests.replicate_stand_in import ANSWER, DONE, Replicate, output, refusing, saying
from tests.stand_ins import serving, until

pytestmark = pytest.mark.anyio
KEY = "r8_made_up"
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a client would take 50 ms to make its own
WHOLE = "".join(ANSWER)
VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"
MESSAGES: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is TON?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[Replicate]]]:
    """One server for all tests, which does as the last of the list says, and its origin."""
    providers: list[Replicate] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await providers[-1].app()(scope, receive, send)

    with serving(app) as origin:
        yield origin, providers


@pytest.fixture
def provider(server: tuple[str, list[Replicate]]) -> Replicate:
    server[1].append(Replicate())
    return server[1][-1]


@pytest.fixture
def url(server: tuple[str, list[Replicate]], provider: Replicate) -> str:
    return f"{server[0]}/v1"


@asynccontextmanager
async def connected(url: str, transport: httpx.AsyncBaseTransport | None = None) -> AsyncIterator[Chat]:
    async with httpx.AsyncClient(transport=transport, trust_env=False, verify=TLS) as http:
        yield replicate.connect(http, url, SecretStr(KEY))


def ask(model: str = "meta/meta-llama-3-70b-instruct", **differently: Any) -> Ask:
    return Ask(**{"model": model, "messages": MESSAGES, "max_tokens": 64, "timeout_seconds": 10.0, **differently})


async def generated(url: str, question: Ask | None = None) -> Said:
    async with connected(url) as chat:
        return await chat.generate(question or ask())


async def streamed(url: str, question: Ask | None = None) -> list[str | Usage]:
    async with connected(url) as chat:
        return [piece async for piece in chat.stream(question or ask())]


@pytest.mark.parametrize(
    ("model", "path", "version"),
    [
        ("meta/llama-4", "/models/meta/llama-4/predictions", None),
        ("openai/gpt-4.1", "/models/openai/gpt-4.1/predictions", None),
        ("deployments/acme/ton-7b", "/deployments/acme/ton-7b/predictions", None),
        (f"acme/ton-7b:{VERSION}", "/predictions", f"acme/ton-7b:{VERSION}"),
        (VERSION, "/predictions", VERSION),
    ],
)
async def test_asks_where_a_models_name_says(
    provider: Replicate, url: str, model: str, path: str, version: str | None
) -> None:
    provider.looks = 0

    said = await generated(url, ask(model))

    [created] = provider.created
    assert said == Said(WHOLE, cut_off=False, usage=Usage(40, 9))
    assert (created.path, created.body.get("version")) == (path, version)
    assert created.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("model", ["gpt-4o", "../account", "a/b/c", "meta/llama?x=1", "meta/..", VERSION[:-1], ""])
async def test_refuses_what_is_no_models_name_and_asks_nobody(provider: Replicate, url: str, model: str) -> None:
    with pytest.raises(ProviderFailed) as failed:
        await generated(url, ask(model))

    assert failed.value.failure is Failure.REFUSED
    assert provider.created == []


async def test_gives_the_system_message_its_own_input(provider: Replicate, url: str) -> None:
    provider.looks = 0

    await generated(url)

    assert provider.created[0].body["input"] == {
        "prompt": "What is TON?", "system_prompt": "Be brief.", "max_tokens": 64, "temperature": 0,
    }  # fmt: skip


@pytest.mark.parametrize("model", ["deepseek-ai/deepseek-r1", "xai/grok-4", f"meta/llama-2-70b:{VERSION}"])
async def test_puts_the_system_message_before_the_prompt_where_a_model_takes_none(
    provider: Replicate, url: str, model: str
) -> None:
    provider.looks = 0

    await generated(url, ask(model))

    asked = provider.created[0].body["input"]
    assert asked["prompt"] == "Be brief.\n\nWhat is TON?"
    assert "system_prompt" not in asked


@pytest.mark.parametrize(
    ("model", "limit"),
    [("openai/gpt-4o", "max_completion_tokens"), ("openai/gpt-oss-120b", "max_tokens"), (VERSION, "max_tokens")],
)
async def test_limits_the_answer_by_the_models_name_for_it(
    provider: Replicate, url: str, model: str, limit: str
) -> None:
    provider.looks = 0

    await generated(url, ask(model))

    asked = provider.created[0].body["input"]
    assert {name: value for name, value in asked.items() if "tokens" in name} == {limit: 64}


async def test_sends_no_half_characters(provider: Replicate, url: str) -> None:
    provider.looks = 0

    await generated(url, ask(messages=[{"role": "user", "content": "a\ud800b\0c"}]))

    assert provider.created[0].body["input"]["prompt"] == "a?bc"


@pytest.mark.parametrize(
    ("timeout_seconds", "wait", "life"),
    [(300.0, "wait=60", "300s"), (10.5, "wait=9", "11s"), (2.0, "wait=1", "5s"), (1.5, None, "5s")],
)
async def test_has_the_server_wait_for_less_than_there_is_time(
    provider: Replicate, url: str, timeout_seconds: float, wait: str | None, life: str
) -> None:
    provider.looks = 0

    await generated(url, ask(timeout_seconds=timeout_seconds))

    [created] = provider.created
    assert (created.headers.get("prefer"), created.headers["cancel-after"]) == (wait, life)


async def test_takes_neither_a_2xx_nor_an_output_for_the_end(provider: Replicate, url: str) -> None:
    provider.looks = 2

    said = await generated(url)

    assert said == Said(WHOLE, cut_off=False, usage=Usage(40, 9))
    assert len(provider.looked) == 2
    assert {asked.headers["authorization"] for asked in provider.looked} == {f"Bearer {KEY}"}
    assert provider.canceled == []


async def test_looks_less_and_less_often(provider: Replicate, url: str) -> None:
    provider.looks = 9

    with pytest.raises(ProviderFailed):
        await generated(url, ask(timeout_seconds=0.9))

    assert len(provider.looked) == 2  # after 0.25 and 0.625 seconds


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("TON", "TON"),
        (["T", "O", "N"], "TON"),
        ({"text": "TON"}, "TON"),
        ({"text": ["T", "ON"], "tokens": 2}, "TON"),
        ({"output": "TON"}, "TON"),
        ([], ""),
        ("", ""),
        (None, ""),
        ("T\0O\ud800N", "TO?N"),
        (["\ud83d", "\ude00"], "??"),
    ],
    ids=repr,
)
async def test_reads_every_shape_of_output(provider: Replicate, url: str, said: Any, text: str) -> None:
    provider.looks = 0
    provider.instead["create"] = [lambda: Response(json.dumps({"status": "succeeded", "output": said}))]

    answer = await generated(url)

    assert answer == Said(text, cut_off=False, usage=None)


@pytest.mark.parametrize("said", [1, True, {}, {"text": 1}, {"text": {"text": "x"}}, [1], ["a", None]], ids=repr)
async def test_takes_any_other_output_for_a_failure(provider: Replicate, url: str, said: Any) -> None:
    provider.looks, provider.output = 0, said

    with pytest.raises(ProviderFailed) as failed:
        await generated(url)

    assert failed.value.failure is Failure.FAILING
    assert provider.canceled == []


@pytest.mark.parametrize(
    "metrics",
    [
        None,
        [],
        "9",
        {},
        {"input_token_count": 40},
        {"input_token_count": 40, "output_token_count": -1},
        {"input_token_count": 2**31, "output_token_count": 9},
        {"input_token_count": True, "output_token_count": 9},
        {"input_token_count": "40", "output_token_count": 9.5},
    ],
    ids=repr,
)
async def test_takes_odd_metrics_for_no_report(provider: Replicate, url: str, metrics: Any) -> None:
    provider.looks, provider.metrics = 0, metrics

    said = await generated(url)

    assert said == Said(WHOLE, cut_off=False, usage=None)


@pytest.mark.parametrize(("max_tokens", "cut_off"), [(10, False), (9, True), (8, True)])
async def test_says_that_an_answer_was_cut_off(provider: Replicate, url: str, max_tokens: int, cut_off: bool) -> None:
    provider.looks = 0

    said = await generated(url, ask(max_tokens=max_tokens))

    assert said.cut_off is cut_off


@pytest.mark.parametrize(
    ("status", "error", "failure"),
    [
        ("failed", "CUDA out of memory", Failure.FAILING),
        ("failed", None, Failure.FAILING),
        ("failed", {"detail": ["odd"]}, Failure.FAILING),
        ("failed", "Prediction took too long", Failure.FAILING),
        ("failed", "This model's maximum context length is 8192 tokens", Failure.TOO_LONG),
        ("failed", "The prompt is too long for this model", Failure.TOO_LONG),
        ("canceled", None, Failure.FAILING),
        ("aborted", None, Failure.FAILING),
    ],
)
async def test_says_why_a_prediction_gave_nothing(
    provider: Replicate, url: str, status: str, error: Any, failure: Failure
) -> None:
    provider.looks, provider.status, provider.error, provider.output = 0, status, error, None

    with pytest.raises(ProviderFailed) as failed:
        await generated(url)

    assert failed.value.failure is failure
    assert provider.canceled == []


@pytest.mark.parametrize(
    ("status", "detail", "failure"),
    [
        (400, "Bad request", Failure.UNACCEPTABLE),
        (401, "You did not pass a valid authentication token", Failure.REFUSED),
        (402, "You have insufficient credit", Failure.REFUSED),
        (403, "Forbidden", Failure.REFUSED),
        (404, "The requested resource could not be found.", Failure.REFUSED),
        (408, "Timeout", Failure.FAILING),
        (413, "Too large", Failure.UNACCEPTABLE),
        (422, "- input.max_tokens: Must be less than or equal to 4096", Failure.UNACCEPTABLE),
        (422, "- input.prompt: Your prompt is too long", Failure.TOO_LONG),
        (422, "Input exceeds the context window", Failure.TOO_LONG),
        (429, "Request was throttled.", Failure.BUSY),
        (500, "Internal", Failure.FAILING),
        (503, "Unavailable", Failure.FAILING),
        (302, "Elsewhere", Failure.FAILING),
    ],
)
async def test_says_what_a_refusal_means(
    provider: Replicate, url: str, status: int, detail: str, failure: Failure
) -> None:
    provider.instead["create"] = [refusing(status, detail)] * 2

    for answer in (generated, streamed):
        with pytest.raises(ProviderFailed, match=str(status)) as failed:
            await answer(url)

        assert (failed.value.failure, failed.value.retry_after_seconds) == (failure, None)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7", "ratelimit-reset": "8"}, 7.0),
        ({"ratelimit-reset": "8"}, 8.0),
        ({}, 30.0),
        ({"retry-after": "nan"}, 30.0),
        ({"retry-after": "-1"}, 30.0),
        ({"retry-after": "inf", "ratelimit-reset": "soon"}, 30.0),
    ],
)
async def test_says_when_a_busy_server_may_be_asked_again(
    provider: Replicate, url: str, headers: dict[str, str], seconds: float
) -> None:
    throttled = refusing(429, "Request was throttled. Your rate limit resets in ~30s.", headers)
    provider.instead["create"] = [throttled]

    with pytest.raises(ProviderFailed) as failed:
        await generated(url)

    assert (failed.value.failure, failed.value.retry_after_seconds) == (Failure.BUSY, seconds)


@pytest.mark.parametrize(
    "content",
    [
        "<html>maintenance</html>",
        "",
        "null",
        "NaN",
        "[]",
        "{}",
        '{"status": []}',
        '{"status": NaN, "urls": null}',
        "[" * 100_000,
        "9" * 10_000,
    ],
    ids=lambda content: str(content)[:60],
)
async def test_takes_an_answer_that_is_not_the_apis_for_a_failure(provider: Replicate, url: str, content: str) -> None:
    provider.instead["create"] = [saying(content)]

    with pytest.raises(ProviderFailed) as failed:
        await generated(url)

    assert failed.value.failure is Failure.FAILING


@pytest.mark.parametrize("address", [1, True, {}, [[]], "http://[", "\0", "nowhere", "https://"], ids=repr)
async def test_takes_an_address_that_is_none_for_a_failure(provider: Replicate, url: str, address: Any) -> None:
    provider.urls = {"stream": address or "/", "cancel": address}

    with pytest.raises(ProviderFailed) as failed:
        await streamed(url)

    assert failed.value.failure is Failure.FAILING


@pytest.mark.parametrize("answer", [refusing(503), saying("<html>")])
async def test_stops_a_prediction_it_can_not_look_at(
    provider: Replicate, url: str, answer: Callable[[], Response]
) -> None:
    provider.instead["get"] = [answer]

    with pytest.raises(ProviderFailed) as failed:
        await generated(url)

    assert failed.value.failure is Failure.FAILING
    assert [asked.headers["authorization"] for asked in provider.canceled] == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("get", "http://localhost:{port}"),
        ("stream", "http://localhost:{port}"),
        ("stream", "https://replicate.com.example"),
        ("stream", "https://api.replicate.com@example.com"),
        ("stream", "http://stream.replicate.com"),
    ],
)
async def test_sends_the_key_to_nobody_else(provider: Replicate, url: str, name: str, origin: str) -> None:
    port = httpx.URL(url).port
    provider.urls = {"stream": None, name: f"{origin.format(port=port)}/v1/predictions/heat2o"}

    with pytest.raises(ProviderFailed, match="isn't Replicate's") as failed:
        await streamed(url)

    assert failed.value.failure is Failure.FAILING
    assert (provider.looked, provider.streamed) == ([], [])
    assert len(provider.canceled) == 1


@pytest.mark.parametrize(
    ("host", "key"), [("stream.replicate.com", f"Bearer {KEY}"), ("stream-b.svc.ric1.c.replicate.net", None)]
)
async def test_reads_a_stream_at_replicates_other_hosts(
    provider: Replicate, url: str, host: str, key: str | None
) -> None:
    provider.urls = {"stream": f"https://{host}/v1/streams/heat2o"}

    async with connected(url, Everywhere(url)) as chat:
        pieces = [piece async for piece in chat.stream(ask())]

    assert pieces == [*ANSWER, Usage(40, 9)]
    assert [asked.headers.get("authorization") for asked in provider.streamed] == [key]


async def test_is_late_within_its_time_and_stops_the_prediction(provider: Replicate, url: str) -> None:
    provider.looks, provider.instead["cancel"] = 99, [saying("<html>", 500)]
    clock = asyncio.get_running_loop().time
    start = clock()

    with pytest.raises(ProviderFailed) as failed:
        await generated(url, ask(timeout_seconds=0.3))

    assert failed.value.failure is Failure.LATE
    assert clock() - start < 1
    assert len(provider.canceled) == 1


@pytest.mark.parametrize("answer", [generated, streamed])
async def test_stops_a_prediction_it_no_longer_waits_for_while_it_is_created(
    provider: Replicate, url: str, answer: Callable[[str, Ask], Any]
) -> None:
    provider.creation_seconds = 0.2

    with pytest.raises(ProviderFailed) as failed:
        await answer(url, ask(timeout_seconds=0.1))

    assert failed.value.failure is Failure.LATE
    assert len(provider.canceled) == 1


@pytest.mark.parametrize("answer", [generated, streamed])
async def test_stops_the_prediction_when_the_caller_leaves(
    provider: Replicate, url: str, answer: Callable[[str], Any]
) -> None:
    provider.looks, provider.events = 99, [output("TON"), 9.0]
    asking = asyncio.create_task(answer(url))
    await until(lambda: bool(provider.looked or provider.streamed))

    asking.cancel()
    await asyncio.wait([asking])

    assert asking.cancelled()
    assert len(provider.canceled) == 1


@pytest.mark.parametrize("answer", [generated, streamed])
async def test_stops_the_prediction_when_the_callers_scope_ends(
    provider: Replicate, url: str, answer: Callable[[str], Any]
) -> None:
    provider.looks, provider.events = 99, [output("TON"), 9.0]

    with anyio.move_on_after(0.2) as scope:
        await answer(url)

    assert scope.cancelled_caught
    assert len(provider.canceled) == 1


async def test_a_cancellation_stays_one_where_the_creation_fails(provider: Replicate, url: str) -> None:
    provider.creation_seconds, provider.instead["create"] = 0.2, [refusing(500)]
    asking = asyncio.create_task(generated(url))
    await until(lambda: bool(provider.created))

    asking.cancel()
    await asyncio.wait([asking])

    assert asking.cancelled()


async def test_says_that_nobody_answers() -> None:
    with pytest.raises(ProviderFailed) as failed:
        await generated("http://127.0.0.1:9/v1")

    assert failed.value.failure is Failure.FAILING


async def test_streams_pieces_as_they_come_and_then_the_usage(provider: Replicate, url: str) -> None:
    provider.events = [output(ANSWER[0]), 0.2, output(ANSWER[1]), output(ANSWER[2]), DONE]
    clock = asyncio.get_running_loop().time

    async with connected(url) as chat:
        came = [(piece, clock()) async for piece in chat.stream(ask())]

    assert [piece for piece, _ in came] == [*ANSWER, Usage(40, 9)]
    assert came[1][1] - came[0][1] > 0.1
    assert provider.created[0].body["stream"] is True
    assert "prefer" not in provider.created[0].headers
    assert provider.streamed[0].headers["accept"] == "text/event-stream"
    assert provider.canceled == []


@pytest.mark.parametrize(
    ("events", "pieces"),
    [
        ([output("one\n\ntwo"), DONE], ["one\n\ntwo"]),
        (["event: output\r\ndata:  led\r\n\r\n", DONE], [" led"]),
        (["event: output\rdata: cr\r\r", DONE, "\n"], ["cr"]),
        (["event: out", "put\nda", "ta: in parts\n", "\n", DONE], ["in parts"]),
        ([b"event: output\ndata: \xe2\x82", 0.05, b"\xac\n\n", DONE], ["€"]),
        ([output("a\u2028b\x85c\x0cd"), DONE], ["a\u2028b\x85c\x0cd"]),
        ([": a comment\n\n", output(""), "event: logs\ndata: odd\n\n", output("x"), DONE], ["x"]),
        ([output("a\0b"), b"event: output\ndata: \xff\n\n", DONE], ["ab", "�"]),
        ([output("x"), 'event: done\ndata: {"reason": ""}\n\n'], ["x"]),
        ([output("x"), "event: done\ndata:\n\n"], ["x"]),
        ([DONE], []),
    ],
)
async def test_reads_events_however_they_are_cut(
    provider: Replicate, url: str, events: list[str | bytes | float], pieces: list[str]
) -> None:
    provider.events = events

    assert await streamed(url) == [*pieces, Usage(40, 9)]


@pytest.mark.parametrize(
    ("event", "failure", "cancels"),
    [
        ('event: error\ndata: {"detail": "out of memory"}\n\n', Failure.FAILING, 1),
        ('event: error\ndata: {"detail": "context length exceeded"}\n\n', Failure.TOO_LONG, 1),
        ('event: done\ndata: {"reason": "error"}\n\n', Failure.FAILING, 0),
        ('event: done\ndata: {"reason": "canceled"}\n\n', Failure.FAILING, 0),
        ("event: done\ndata: []\n\n", Failure.FAILING, 0),
        ("event: done\ndata: {\n\n", Failure.FAILING, 0),
        ("event: done\ndata: {}\n", Failure.FAILING, 1),
        ("", Failure.FAILING, 1),
    ],
)
async def test_tells_a_broken_answer_from_a_whole_one(
    provider: Replicate, url: str, event: str, failure: Failure, cancels: int
) -> None:
    provider.events = [output("TON is "), event]
    pieces = []

    with pytest.raises(ProviderFailed) as failed:
        async with connected(url) as chat:
            async for piece in chat.stream(ask()):
                pieces.append(piece)

    assert failed.value.failure is failure
    assert pieces == ["TON is "]
    assert len(provider.canceled) == cancels


@pytest.mark.parametrize(("status", "failure"), [(404, Failure.REFUSED), (429, Failure.BUSY), (502, Failure.FAILING)])
async def test_stops_a_prediction_whose_stream_is_refused(
    provider: Replicate, url: str, status: int, failure: Failure
) -> None:
    provider.instead["stream"] = [refusing(status)]

    with pytest.raises(ProviderFailed) as failed:
        await streamed(url)

    assert failed.value.failure is failure
    assert len(provider.canceled) == 1


async def test_gives_the_whole_answer_at_once_where_a_model_can_not_stream(provider: Replicate, url: str) -> None:
    provider.urls = {"stream": None}

    assert await streamed(url) == [WHOLE, Usage(40, 9)]
    assert len(provider.looked) == 1


@pytest.mark.parametrize("answer", [refusing(500), saying("null"), lambda: JSONResponse({"metrics": [1]})])
async def test_a_streamed_answer_is_whole_without_its_usage(
    provider: Replicate, url: str, answer: Callable[[], Response]
) -> None:
    provider.instead["get"] = [answer]

    assert await streamed(url) == ANSWER
    assert (len(provider.looked), provider.canceled) == (1, [])


async def test_stops_the_prediction_when_a_stream_is_closed(provider: Replicate, url: str) -> None:
    provider.events = [output("TON is "), 9.0]

    async with connected(url) as chat, aclosing(chat.stream(ask())) as pieces:
        assert await anext(pieces) == "TON is "

    assert len(provider.canceled) == 1


async def test_a_stream_that_stalls_is_late(provider: Replicate, url: str) -> None:
    provider.events = [output("TON is "), 9.0]

    with pytest.raises(ProviderFailed) as failed:
        await streamed(url, ask(timeout_seconds=0.3))

    assert failed.value.failure is Failure.LATE
    assert len(provider.canceled) == 1


async def test_the_time_of_a_stream_does_not_go_off_in_its_reader(provider: Replicate, url: str) -> None:
    provider.events = [output("TON is "), 9.0]

    async with connected(url) as chat, aclosing(chat.stream(ask(timeout_seconds=0.3))) as pieces:
        await anext(pieces)
        await asyncio.sleep(0.4)
        with pytest.raises(ProviderFailed) as failed:
            await anext(pieces)

    assert failed.value.failure is Failure.LATE


async def test_the_secret_key_shows_nowhere(url: str) -> None:
    async with connected(url) as chat:
        assert KEY not in repr(chat)


class Everywhere(httpx.AsyncHTTPTransport):
    """Every host is the stand-in's."""

    def __init__(self, url: str):
        super().__init__(verify=TLS)
        self.home = httpx.URL(url)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(scheme=self.home.scheme, host=self.home.host, port=self.home.port)
        return await super().handle_async_request(request)
