"""RunPod's jobs over real HTTP: how they are asked for and after, what is an answer, and when they are cancelled."""

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from pydantic import SecretStr
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shared.providers.chat import Ask, Chat, Failure, Message, ProviderFailed, Said, Usage
from shared.providers.runpod import connect
from tests.runpod_stand_in import ANSWER, JOB, RunPod
from tests.stand_ins import serving, until

pytestmark = pytest.mark.anyio
KEY = "rpa_made-up"
MESSAGES: list[Message] = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is TON?"},
]
CHOICES = {"choices": [{"message": {"role": "assistant", "content": "a b"}, "finish_reason": "stop"}]}
TOKENS = [
    {"choices": [{"tokens": ["a", " "]}], "usage": {"input": 40, "output": 2}},
    {"choices": [{"tokens": ["b"]}], "usage": {"input": 40, "output": 9}},
]
TOO_LONG = "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens."
DEEP = "[" * 100_000
TLS = ssl.create_default_context()  # read once, not for each client


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[RunPod]]]:
    """One server for all tests, which does as the last of the list says, and its origin."""
    stand_ins: list[RunPod] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stand_ins[-1].app()(scope, receive, send)

    with serving(app) as origin:
        yield origin, stand_ins


@pytest.fixture
def runpod(server: tuple[str, list[RunPod]]) -> RunPod:
    server[1].append(RunPod())
    return server[1][-1]


@pytest.fixture
def url(server: tuple[str, list[RunPod]], runpod: RunPod) -> str:
    return f"{server[0]}/v2"


async def test_asks_in_the_words_of_several_handlers(runpod: RunPod, url: str) -> None:
    async with opened(url) as chat:
        said = await chat.generate(asking())

    [asked] = runpod.asked
    assert said == Said(ANSWER, cut_off=False, usage=None)
    assert (asked.endpoint, asked.operation, asked.key) == ("abc123-XY", "runsync", f"Bearer {KEY}")
    assert asked.body == {
        "input": {
            "messages": MESSAGES,
            "prompt": "Answer briefly.\n\nWhat is TON?",
            "max_tokens": 24,
            "sampling_params": {"max_tokens": 24, "temperature": 0},
        },
        "policy": {"executionTimeout": 20_000, "ttl": 20_000},
    }


@pytest.mark.parametrize(
    ("seconds", "wait", "execution", "ttl"),
    [(0.5, 1_000, 6_000, 10_000), (9, 8_000, 9_000, 10_000), (900, 300_000, 900_000, 900_000)],
)
async def test_asks_for_no_times_that_runpod_refuses(
    runpod: RunPod, url: str, seconds: float, wait: int, execution: int, ttl: int
) -> None:
    async with opened(url) as chat:
        await chat.generate(asking(timeout_seconds=seconds))

    [asked] = runpod.asked
    assert asked.query == {"wait": str(wait)}
    assert asked.body["policy"] == {"executionTimeout": execution, "ttl": ttl}


async def test_sends_no_half_characters(runpod: RunPod, url: str) -> None:
    async with opened(url) as chat:
        await chat.generate(asking(messages=[{"role": "user", "content": "a\ud800b\0c"}]))

    assert runpod.asked[0].body["input"]["prompt"] == "a?bc"


@pytest.mark.parametrize("model", ["", "../v1/user", "abc/run", "abc?x", "abc def", "абв", "abc\n"])
async def test_refuses_what_is_no_endpoints_id(runpod: RunPod, url: str, model: str) -> None:
    async with opened(url) as chat:
        generated, streamed = await failures(chat, asking(model=model))

    assert (generated.failure, streamed.failure) == (Failure.REFUSED, Failure.REFUSED)
    assert runpod.asked == []


async def test_asks_after_a_job_that_runsync_left_unfinished(runpod: RunPod, url: str) -> None:
    runpod.polls = 1
    async with opened(url) as chat:
        said = await chat.generate(asking())

    assert said.text == ANSWER
    assert runpod.operations == ["runsync", "status"]
    assert runpod.asked[1].job == JOB


async def test_pauses_longer_from_poll_to_poll(runpod: RunPod, url: str) -> None:
    runpod.polls = math.inf
    async with opened(url) as chat:
        with pytest.raises(ProviderFailed) as failed:
            await chat.generate(asking(timeout_seconds=1))

    assert failed.value.failure is Failure.LATE
    assert runpod.operations == ["runsync", "status", "status", "cancel"]  # after 0.25 and 0.75 s


@pytest.mark.parametrize(
    "output",
    [
        "a b",
        ["a", " b"],
        {"text": "a b"},
        {"text": ["a", " b"], "input_tokens": 22},
        {"output": "a b"},
        {"response": "a b"},
        {"text": None, "generated_text": "a b"},
        [{"generated_text": "a b"}],
        CHOICES,
        [CHOICES],
        {"choices": [{"text": "a b"}]},
        TOKENS,
        "a\0 b",
    ],
    ids=repr,
)
async def test_reads_the_shapes_that_handlers_give(runpod: RunPod, url: str, output: Any) -> None:
    runpod.output = output
    async with opened(url) as chat:
        said = await chat.generate(asking())

    assert (said.text, said.cut_off) == ("a b", False)


@pytest.mark.parametrize(
    "output",
    [
        None,
        1,
        True,
        [],
        {},
        [None],
        [["a"]],
        ["a", 1],
        {"text": 1},
        {"text": {"text": "a"}},
        {"text": ["a", None]},
        {"image": "https://image.url"},
        {"choices": None},
        {"choices": []},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"content": {"a": 1}}}]},
        [CHOICES, {}],
    ],
    ids=repr,
)
async def test_takes_an_output_of_no_known_shape_for_a_failure(runpod: RunPod, url: str, output: Any) -> None:
    runpod.output = output
    async with opened(url) as chat:
        with pytest.raises(ProviderFailed) as failed:
            await chat.generate(asking())

    assert failed.value.failure is Failure.FAILING
    assert runpod.operations == ["runsync"]


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49}, Usage(40, 9)),
        ({"input": 40, "output": 9}, Usage(40, 9)),
        ({"input": 0, "output": 0}, Usage(0, 0)),
        ({"prompt_tokens": 40}, None),
        ({"input": -1, "output": 9}, None),
        ({"input": "40", "output": 9}, None),
        ({"input": 40.0, "output": 9}, None),
        ({"input": 40, "output": True}, None),
        ({}, None),
        ([40, 9], None),
        (None, None),
    ],
)
async def test_reports_usage_where_there_is_one(runpod: RunPod, url: str, reported: Any, usage: Usage | None) -> None:
    runpod.output = CHOICES | {"usage": reported}
    async with opened(url) as chat:
        said = await chat.generate(asking())

    assert said == Said("a b", cut_off=False, usage=usage)


@pytest.mark.parametrize(
    "output",
    [
        {"choices": [{"text": "a b", "finish_reason": "length"}]},
        {"text": "a b", "finish_reason": "length"},
        {"text": "a b", "usage": {"input": 40, "output": 24}},
        [{"choices": [{"tokens": ["a b"]}], "usage": {"input": 40, "output": 24}}],
    ],
)
async def test_tells_an_answer_that_was_cut_off(runpod: RunPod, url: str, output: Any) -> None:
    runpod.output = output
    async with opened(url) as chat:
        said = await chat.generate(asking())

    assert (said.text, said.cut_off) == ("a b", True)


@pytest.mark.parametrize(
    ("status", "error", "failure"),
    [
        ("FAILED", "CUDA out of memory", Failure.FAILING),
        ("FAILED", TOO_LONG, Failure.TOO_LONG),
        ("FAILED", {"error_message": [TOO_LONG]}, Failure.FAILING),
        ("CANCELLED", None, Failure.FAILING),
        ("TIMED_OUT", None, Failure.LATE),
    ],
)
async def test_a_job_that_did_not_complete_is_no_answer_and_not_cancelled(
    runpod: RunPod, url: str, status: str, error: Any, failure: Failure
) -> None:
    runpod.status, runpod.error = status, error
    async with opened(url) as chat:
        generated, streamed = await failures(chat)

    assert (generated.failure, streamed.failure) == (failure, failure)
    assert runpod.operations == ["runsync", "run", "stream"]


@pytest.mark.parametrize(
    ("status", "words", "failure"),
    [
        (401, "", Failure.REFUSED),
        (402, "", Failure.REFUSED),
        (403, "", Failure.REFUSED),
        (404, "endpoint not found", Failure.REFUSED),
        (400, "bad request", Failure.UNACCEPTABLE),
        (413, "", Failure.UNACCEPTABLE),
        (422, "max_tokens must be an integer", Failure.UNACCEPTABLE),
        (400, TOO_LONG, Failure.TOO_LONG),
        (413, "the input is too long", Failure.TOO_LONG),
        (422, "at most 4096 tokens", Failure.TOO_LONG),
        (408, "", Failure.FAILING),
        (500, "", Failure.FAILING),
        (503, "<html>maintenance</html>", Failure.FAILING),
        (302, "", Failure.FAILING),
    ],
)
async def test_tells_refusals_apart(runpod: RunPod, url: str, status: int, words: str, failure: Failure) -> None:
    runpod.instead = {operation: [Response(words, status)] for operation in ("runsync", "run")}
    async with opened(url) as chat:
        generated, streamed = await failures(chat)

    assert (generated.failure, streamed.failure) == (failure, failure)
    assert runpod.operations == ["runsync", "run"]


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [("7", 7), ("0.5", 0.5), ("", None), ("soon", None), ("-1", None), ("inf", None)]
)
async def test_says_when_to_ask_a_busy_endpoint_again(
    runpod: RunPod, url: str, retry_after: str, seconds: float | None
) -> None:
    runpod.instead["runsync"] = [Response("slow down", 429, {"retry-after": retry_after})]
    async with opened(url) as chat:
        with pytest.raises(ProviderFailed) as failed:
            await chat.generate(asking())

    assert (failed.value.failure, failed.value.retry_after_seconds) == (Failure.BUSY, seconds)


@pytest.mark.parametrize(
    "content",
    [
        "<html>",
        "",
        "null",
        "1",
        "[]",
        "{}",
        '{"status": null}',
        '{"status": ["COMPLETED"], "output": "a"}',
        '{"status": {"COMPLETED": 1}}',
        '{"status": "LOST"}',
        '{"status": "COMPLETED", "output": "a"}',
        '{"status": "IN_QUEUE"}',
        '{"status": "IN_QUEUE", "id": 7}',
        '{"status": "IN_QUEUE", "id": "../../user"}',
        '{"status": "COMPLETED", "output": "a" "b"}',
        "\ud800".encode("utf-8", "surrogatepass"),
        DEEP,
    ],
    ids=lambda content: repr(content[:40]),
)
async def test_takes_an_answer_that_is_not_the_apis_for_a_failure(
    runpod: RunPod, url: str, content: str | bytes
) -> None:
    runpod.instead = {name: [Response(content, media_type="application/json")] for name in ("runsync", "run")}
    async with opened(url) as chat:
        generated, streamed = await failures(chat)

    assert (generated.failure, streamed.failure) == (Failure.FAILING, Failure.FAILING)
    assert runpod.operations == ["runsync", "run"]


async def test_says_that_nobody_answers() -> None:
    async with opened("http://127.0.0.1:9/v2") as chat:
        generated, streamed = await failures(chat)

    assert (generated.failure, streamed.failure) == (Failure.FAILING, Failure.FAILING)


async def test_takes_the_clients_own_timeout_for_lateness() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("no route", request=request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        generated, streamed = await failures(connect(http, "http://runpod/v2", SecretStr(KEY)))

    assert (generated.failure, streamed.failure) == (Failure.LATE, Failure.LATE)


async def test_gives_up_in_time_and_cancels_the_job(runpod: RunPod, url: str) -> None:
    runpod.polls, runpod.silent = math.inf, ("status", "stream")
    clock = asyncio.get_running_loop().time
    async with opened(url) as chat:
        start = clock()
        generated, streamed = await failures(chat, asking(timeout_seconds=0.3))

    assert (generated.failure, streamed.failure) == (Failure.LATE, Failure.LATE)
    assert 0.6 <= clock() - start < 2
    assert runpod.cancelled == [JOB, JOB]


async def test_waits_as_long_as_the_call_may_take_and_not_as_the_client_does(runpod: RunPod, url: str) -> None:
    runpod.silent = ("runsync", "run")
    clock = asyncio.get_running_loop().time
    async with httpx.AsyncClient(verify=TLS, timeout=httpx.Timeout(5, read=0.05)) as http:
        start = clock()
        generated, streamed = await failures(connect(http, url, SecretStr(KEY)), asking(timeout_seconds=0.2))

    assert (generated.failure, streamed.failure) == (Failure.LATE, Failure.LATE)
    assert clock() - start >= 0.4
    assert runpod.operations == ["runsync", "run"]  # nobody can cancel a job whose id wasn't told


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (Response("slow down", 429), Failure.BUSY),
        (Response("oops", 500), Failure.FAILING),
    ],
    ids=["busy", "failing"],
)
async def test_cancels_a_job_that_cannot_be_asked_after(
    runpod: RunPod, url: str, answer: Response, failure: Failure
) -> None:
    runpod.polls, runpod.instead = 1, {"status": [answer], "stream": [answer]}
    async with opened(url) as chat:
        generated, streamed = await failures(chat)

    assert (generated.failure, streamed.failure) == (failure, failure)
    assert runpod.cancelled == [JOB, JOB]


async def test_cancels_a_job_of_unknown_status(runpod: RunPod, url: str) -> None:
    runpod.status = "PAUSED"
    async with opened(url) as chat:
        with pytest.raises(ProviderFailed):
            await chat.generate(asking())

    assert runpod.cancelled == [JOB]


async def test_cancels_the_job_of_a_cancelled_task(runpod: RunPod, url: str) -> None:
    runpod.polls = math.inf
    async with opened(url) as chat:
        task = asyncio.create_task(_generate(chat))
        await until(lambda: "status" in runpod.operations)
        task.cancel()
        await asyncio.wait([task])

    assert task.cancelled()
    assert runpod.cancelled == [JOB]


async def test_cancels_the_job_within_a_cancelled_scope(runpod: RunPod, url: str) -> None:
    runpod.polls = math.inf
    async with opened(url) as chat:
        with anyio.move_on_after(0.3) as scope:  # such a scope cancels every await, not one
            await chat.generate(asking())

    assert scope.cancelled_caught
    assert runpod.cancelled == [JOB]


async def test_cancels_the_job_of_a_closed_stream(runpod: RunPod, url: str) -> None:
    runpod.pieces, runpod.polls = [["a"]], math.inf
    async with opened(url) as chat, aclosing(chat.stream(asking())) as parts:
        first = await anext(parts)

    assert first == "a"
    assert runpod.cancelled == [JOB]


@pytest.mark.parametrize("answer", [Response("oops", 500), None], ids=["failing", "silent"])
async def test_a_cancel_that_fails_changes_nothing(runpod: RunPod, url: str, answer: Response | None) -> None:
    runpod.polls, runpod.instead = math.inf, {"cancel": [answer] if answer else []}
    runpod.silent = () if answer else ("cancel",)
    clock = asyncio.get_running_loop().time
    async with opened(url) as chat:
        start = clock()
        with pytest.raises(ProviderFailed) as failed:
            await chat.generate(asking(timeout_seconds=0.1))

    assert failed.value.failure is Failure.LATE
    assert clock() - start < 3


async def test_streams_the_pieces_of_several_answers_and_the_usage_last(runpod: RunPod, url: str) -> None:
    runpod.pieces = [["TON ", {"text": "is "}], [_tokens("the ", 3), _tokens("coin", 4), "."]]
    async with opened(url) as chat:
        parts = await streamed_parts(chat)

    assert parts == ["TON ", "is ", "the ", "coin", ".", Usage(40, 4)]
    assert runpod.operations == ["run", "stream", "stream", "stream"]  # the last has no more pieces
    assert runpod.asked[0].body["input"]["messages"] == MESSAGES
    assert runpod.cancelled == []


async def test_gives_the_whole_output_where_the_handler_does_not_stream(runpod: RunPod, url: str) -> None:
    runpod.polls, runpod.output = 2, TOKENS
    async with opened(url) as chat:
        parts = await streamed_parts(chat)

    assert parts == ["a b", Usage(40, 9)]
    assert runpod.operations == ["run", "stream", "stream", "status"]


async def test_streams_no_empty_pieces(runpod: RunPod, url: str) -> None:
    runpod.pieces = [["", "\0", "a", {"choices": [{"tokens": []}]}]]
    async with opened(url) as chat:
        parts = await streamed_parts(chat)

    assert parts == ["a"]


async def test_gives_the_pieces_of_a_job_that_fails_before_the_failure(runpod: RunPod, url: str) -> None:
    runpod.pieces, runpod.status, runpod.error = [["a"], ["b"]], "FAILED", "worker died"
    parts: list[str | Usage] = []
    async with opened(url) as chat:
        with pytest.raises(ProviderFailed) as failed:
            async for part in chat.stream(asking()):
                parts.append(part)

    assert parts == ["a", "b"]
    assert failed.value.failure is Failure.FAILING
    assert runpod.cancelled == []


@pytest.mark.parametrize("pieces", [{"output": "a"}, "a", 1, ["a"], [None], [{}], [{"output": 1}]], ids=repr)
async def test_takes_what_are_no_pieces_for_a_failure(runpod: RunPod, url: str, pieces: Any) -> None:
    runpod.instead["stream"] = [JSONResponse({"status": "IN_PROGRESS", "stream": pieces})]
    async with opened(url) as chat:
        with pytest.raises(ProviderFailed) as failed:
            await streamed_parts(chat)

    assert failed.value.failure is Failure.FAILING
    assert runpod.cancelled == [JOB]


async def test_the_secret_key_shows_nowhere(url: str) -> None:
    async with httpx.AsyncClient(verify=TLS) as http:
        chat = connect(http, url, SecretStr(f"{KEY}\n"))  # no header holds a newline
        generated, streamed = await failures(chat)

    assert (generated.failure, streamed.failure) == (Failure.FAILING, Failure.FAILING)
    assert KEY not in f"{chat!r} {generated!r} {streamed!r}"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Chat]:
    async with httpx.AsyncClient(verify=TLS) as http:
        yield connect(http, url, SecretStr(KEY))


def asking(model: str = "abc123-XY", messages: list[Message] = MESSAGES, timeout_seconds: float = 20) -> Ask:
    return Ask(model, messages, max_tokens=24, timeout_seconds=timeout_seconds)


async def failures(chat: Chat, ask: Ask | None = None) -> tuple[ProviderFailed, ProviderFailed]:
    """How the call fails, whole and streamed."""
    with pytest.raises(ProviderFailed) as generated:
        await chat.generate(ask or asking())
    with pytest.raises(ProviderFailed) as streamed:
        await streamed_parts(chat, ask)
    return generated.value, streamed.value


async def streamed_parts(chat: Chat, ask: Ask | None = None) -> list[str | Usage]:
    return [part async for part in chat.stream(ask or asking())]


async def _generate(chat: Chat) -> Said:
    return await chat.generate(asking())


def _tokens(text: str, so_far: int) -> dict[str, Any]:
    """A batch as RunPod's vLLM worker streams it: its usage counts all tokens so far."""
    return {"choices": [{"tokens": [text]}], "usage": {"input": 40, "output": so_far}}
