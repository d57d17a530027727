"""supabase-ai.js beside the real supabase-js: answers that type themselves, and are found again."""

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from infra.local import parts
from infra.local.stack import Stack
from tests.browser.browsers import Tab, tab
from tests.browser.wires import Cable, NoRenewals, NoStreams, cable
from tests.commands import load_knowledge
from tests.functions.test_deferred import queue_of
from tests.realtime_clients import token
from tests.stand_ins import ANSWER, USAGE, Model, Proxy, serving
from tests.users import User

MODULE = parts.ROOT / "infra/playground/supabase-ai.js"
HERE = Path(__file__).parent
TEXT = "".join(ANSWER)
QUESTION = "What is TON token?"

pytestmark = pytest.mark.timeout(120)  # the first of them waits for a stack, functions and a worker


@pytest.fixture(scope="module")
def served_model() -> Iterator[Model]:
    stand_in = Model()
    with serving(stand_in.app()) as stand_in.url:
        yield stand_in


@pytest.fixture
def model(served_model: Model) -> Iterator[Model]:
    """The model, which holds what it is told to hold."""
    served_model.let_go.clear()
    yield served_model
    served_model.let_go.set()


@pytest.fixture(scope="module")
def origin(stack: Stack, served_model: Model) -> Iterator[str]:
    """The functions and their worker, with the stand-in for a model."""
    load_knowledge(stack.environment)
    with queue_of(stack) as queue:
        settings = {
            "MODEL_BASE_URL": f"{served_model.url}/v1",
            "MODEL_NAME": "stand-in",
            "QUEUE_URL": queue.url,
        }
        with stack.functions(**settings) as url, stack.worker(**settings):
            yield url


@pytest.fixture(scope="module")
def ann(stack: Stack) -> User:
    return User.sign_up(stack)


@pytest.fixture(scope="module")
def page(stack: Stack, origin: str, ann: User) -> Iterator[Tab]:
    """A tab of ann's, with nothing in its way."""
    with tab(stack, ann, origin) as opened:
        yield opened


@pytest.fixture
def ann_page(page: Tab) -> Tab:
    """The same, which has heard nothing yet."""
    page.heard.clear()
    return page


@pytest.fixture
def wire(origin: str) -> Iterator[Cable]:
    with cable(origin) as laid:
        yield laid


@pytest.fixture
def marker() -> str:
    """A word no other test says."""
    return uuid.uuid4().hex


def rows(stack: Stack, marker: str) -> list[dict[str, Any]]:
    """The conversations whose question has the marker."""
    with psycopg.connect(stack.database_url) as connection:
        query = "select to_jsonb(c) from public.conversations c where message like %s"
        return [row for (row,) in connection.execute(query, [f"%{marker}%"])]


def ids(sources: list[dict[str, Any]]) -> list[int]:
    return [source["id"] for source in sources]


def eventually(check: Any, seconds: float = 15) -> Any:
    limit = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < limit:
        time.sleep(0.05)
    assert found
    return found


def test_is_a_module_that_typescript_accepts() -> None:
    compiler = [parts.node(), str(parts.ROOT / "node_modules/typescript/bin/tsc")]

    checked = subprocess.run([*compiler, "-p", str(MODULE.parent)], capture_output=True, text=True, timeout=55)

    assert (checked.returncode, checked.stdout) == (0, "")


def test_is_smaller_than_ten_kilobytes() -> None:
    assert MODULE.stat().st_size < 10_000


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_reads_events_however_they_are_cut(size: int) -> None:
    stream = (
        '\ufeff: a comment\r\nevent: token\r\ndata: {"token": "é€😀"}\r\n\r\n'
        "data: two\ndata:  lines\n\nevent: without data\n\ndata: old\r\rdata\n\nid: 1\nretry: 5\ndata: a: b\n\n"
        "event: broken off\ndata: here\n"
    )

    command = [parts.node(), str(HERE / "sse.mjs"), str(size)]
    read = subprocess.run(command, input=stream.encode(), capture_output=True, check=True, timeout=30)

    assert [json.loads(line) for line in read.stdout.splitlines()] == [
        {"event": "token", "data": '{"token": "é€😀"}'},
        {"event": "message", "data": "two\n lines"},
        {"event": "message", "data": "old"},
        {"event": "message", "data": ""},
        {"event": "message", "data": "a: b"},
    ]


def test_an_answer_types_itself(ann_page: Tab, model: Model, stack: Stack, marker: str) -> None:
    ann_page.do("ask", message=f"{QUESTION} [hold] {marker}")
    first = [ann_page.hears("sources"), ann_page.hears("token")]
    model.let_go.set()
    answer = ann_page.hears("answer")["answer"]

    assert first[0]["sources"][0]["tokenSymbol"] == "TON"
    assert first[1] == {"heard": "token", "token": ANSWER[0], "text": ANSWER[0]}
    told = [line for line in ann_page.heard if line["heard"] == "token"]
    assert [(line["token"], line["text"]) for line in told] == [
        (piece, "".join(ANSWER[: number + 1])) for number, piece in enumerate(ANSWER)
    ]
    (row,) = rows(stack, marker)
    assert (answer["conversationId"], answer["threadId"]) == (row["id"], row["thread_id"])
    assert {**answer, **first[0]} == {**answer, "heard": "sources"}  # told before the first word
    assert (answer["response"], answer["usage"], answer["model"], answer["flags"]) == (TEXT, USAGE, "stand-in", [])


@pytest.mark.parametrize("is_old", [False, True])
def test_finds_the_functions_where_supabase_js_does(stack: Stack, origin: str, ann: User, is_old: bool) -> None:
    with tab(stack, ann, isOld=is_old) as opened:
        answer = opened.asks("Name a recipe for borscht")

    assert "found nothing" in answer["response"]


def test_continues_a_thread(ann_page: Tab, stack: Stack, marker: str) -> None:
    first = ann_page.asks(f"{QUESTION} first {marker}")
    second = ann_page.asks(f"{QUESTION} second {marker}", threadId=first["threadId"], fields={"matchCount": 1})

    assert second["threadId"] == first["threadId"]
    assert (len(first["sources"]), len(second["sources"])) == (3, 1)


def test_the_same_key_finds_the_same_answer(ann_page: Tab, model: Model, stack: Stack, marker: str) -> None:
    answers = [ann_page.asks(f"{QUESTION} {marker}", idempotencyKey=marker) for _ in range(2)]

    assert answers[0]["conversationId"] == answers[1]["conversationId"]
    assert answers[0]["response"] == answers[1]["response"] == TEXT
    assert model.count(marker) == len(rows(stack, marker)) == 1


def test_waits_for_an_answer_that_is_under_way_already(
    ann_page: Tab, model: Model, stack: Stack, origin: str, ann: User, marker: str
) -> None:
    with tab(stack, ann, origin) as another:
        another.do("ask", message=f"{QUESTION} [hold] {marker}", idempotencyKey=marker)
        another.hears("token")
        ann_page.do("ask", message=f"{QUESTION} [hold] {marker}", idempotencyKey=marker)
        ann_page.hears("restart")
        model.let_go.set()
        answers = [opened.hears("answer")["answer"] for opened in (another, ann_page)]

    assert answers[0]["conversationId"] == answers[1]["conversationId"]
    assert [answer["response"] for answer in answers] == [TEXT, TEXT]
    assert model.count(marker) == 1


def test_an_answer_that_is_cut_is_found_again(
    stack: Stack, origin: str, wire: Cable, model: Model, ann: User, marker: str
) -> None:
    with tab(stack, ann, wire.origin) as opened:
        opened.do("ask", message=f"{QUESTION} [hold] {marker}")
        promised = opened.hears("sources")
        opened.hears("token")
        wire.cut()
        opened.hears("restart")
        model.let_go.set()
        again = opened.hears("token")
        answer = opened.hears("answer")["answer"]

    assert answer["conversationId"] == promised["conversationId"]
    assert (answer["response"], answer["usage"]) == (TEXT, USAGE)
    assert ids(answer["sources"]) == ids(promised["sources"])
    assert again == {"heard": "token", "token": TEXT, "text": TEXT}
    (row,) = rows(stack, marker)
    assert (row["id"], row["status"], row["response"]) == (answer["conversationId"], "complete", TEXT)


def test_a_model_that_goes_on_when_the_connection_is_cut_is_not_asked_again(
    stack: Stack, origin: str, wire: Cable, model: Model, ann: User, marker: str
) -> None:
    with tab(stack, ann, wire.origin) as opened:
        opened.do("ask", message=f"{QUESTION} [hold] {marker}")
        promised = opened.hears("sources")
        opened.hears("token")
        wire.cut(is_noticed=False)
        opened.hears("restart")
        model.let_go.set()
        answer = opened.hears("answer")["answer"]

    assert (answer["conversationId"], answer["response"]) == (promised["conversationId"], TEXT)
    assert model.count(marker) == len(rows(stack, marker)) == 1


def test_a_connection_that_falls_silent_is_lost(
    stack: Stack, origin: str, ann: User, model: Model, marker: str
) -> None:
    with tab(stack, ann, origin) as opened:
        opened.do("ask", message=f"{QUESTION} [hold] {marker}", stallMs=5000)
        opened.hears("token")
        opened.hears("restart")
        model.let_go.set()
        answer = opened.hears("answer")["answer"]

    assert answer["response"] == TEXT
    assert len(rows(stack, marker)) == 1


def test_who_goes_offline_gets_the_answer_once_he_is_back(
    ann_page: Tab, stack: Stack, model: Model, marker: str
) -> None:
    ann_page.do("ask", message=f"{QUESTION} [hold] {marker}")
    ann_page.hears("token")
    ann_page.do("online", **{"is": False})
    ann_page.hears("restart")
    eventually(lambda: [row["status"] for row in rows(stack, marker)] == ["partial"])
    model.let_go.set()
    ann_page.do("online", **{"is": True})
    answer = ann_page.hears("answer")["answer"]

    assert "asked offline" not in ann_page.kinds()
    assert answer["response"] == TEXT
    assert [row["status"] for row in rows(stack, marker)] == ["complete"]


@pytest.mark.parametrize("mints", [False, True])
def test_where_nothing_streams_realtime_tells_of_the_answer(
    stack: Stack, origin: str, ann: User, model: Model, marker: str, mints: bool
) -> None:
    gateway, user, app = NoStreams(origin), (None if mints else ann), ({"token": ann.token} if mints else {})
    with serving(gateway.app()) as url, tab(stack, user, url, polls=False, **app) as opened:
        opened.do("ask", message=f"{QUESTION} [hold] {marker}")
        eventually(lambda: gateway.looks >= 2)  # before and after Realtime listens
        model.let_go.set()
        answer = opened.hears("answer")["answer"]

    assert gateway.asked == ["respond-async"]
    assert (answer["response"], answer["usage"]) == (TEXT, USAGE)
    assert answer["sources"][0]["tokenSymbol"] == "TON"
    told = [kind for kind in opened.kinds() if kind != "minted"]
    assert told == ["ready", "restart", "sources", "token", "answer"]
    assert model.count(marker) == len(rows(stack, marker)) == 1


def test_without_realtime_the_answer_is_looked_for(
    stack: Stack, origin: str, ann: User, model: Model, marker: str
) -> None:
    gateway, supabase = NoStreams(origin, stumbles=True), NoStreams(stack.url)
    with serving(gateway.app()) as url, serving(supabase.app()) as deaf, tab(stack, ann, url, url=deaf) as opened:
        opened.do("ask", message=f"{QUESTION} [hold] {marker}")
        eventually(lambda: gateway.looks >= 2)  # one that stumbles, and one that finds it pending
        model.let_go.set()
        answer = opened.hears("answer")["answer"]

    assert answer["response"] == TEXT
    assert model.count(marker) == len(rows(stack, marker)) == 1


def test_a_gateway_that_gives_up_on_a_stream_loses_no_answer(
    stack: Stack, origin: str, ann: User, model: Model, marker: str
) -> None:
    gateway = NoStreams(origin, gives_up=True)
    with serving(gateway.app()) as url, tab(stack, ann, url) as opened:
        opened.do("ask", message=f"{QUESTION} [hold] {marker}")
        opened.hears("restart")
        eventually(lambda: gateway.asked)
        model.let_go.set()
        answer = opened.hears("answer")["answer"]

    assert answer["response"] == TEXT
    assert model.count(marker) == len(rows(stack, marker)) == 1


def test_an_answer_that_a_gateway_collects_comes_at_once(stack: Stack, origin: str, ann: User, marker: str) -> None:
    with serving(Proxy(origin).app()) as url, tab(stack, ann, url) as opened:
        answer = opened.asks(f"{QUESTION} {marker}")

    assert answer["response"] == TEXT
    assert "restart" not in opened.kinds()


def test_says_what_the_server_says_of_a_failure(ann_page: Tab) -> None:
    ann_page.do("ask", message="")
    failure = ann_page.hears("failure")

    assert (failure["kind"], failure["status"], failure["code"]) == ("SupabaseAIError", 422, "invalid_request")
    assert failure["message"].startswith("message:")
    assert failure["requestId"]
    assert failure["retryable"] is False


def test_says_what_has_broken_an_answer_off(ann_page: Tab, stack: Stack, marker: str) -> None:
    ann_page.do("ask", message=f"{QUESTION} [break] {marker}")
    failure = ann_page.hears("failure")

    assert (failure["status"], failure["code"], failure["retryable"]) == (200, "model_unavailable", True)
    assert ann_page.kinds() == ["sources", "token", "token", "failure"]
    assert [row["status"] for row in rows(stack, marker)] == ["partial"]


def test_says_when_one_may_ask_again(stack: Stack, origin: str) -> None:
    often = User.sign_up(stack)
    often.put_on_plan(stack, requests_per_minute=1)
    with tab(stack, often, origin) as opened:
        opened.asks(QUESTION)
        opened.do("ask", message=QUESTION)
        failure = opened.hears("failure")

    assert (failure["status"], failure["code"], failure["retryable"]) == (429, "rate_limited", True)
    assert 0 < failure["retryAfterSeconds"] <= 60


def test_gives_up_where_nobody_answers(stack: Stack, ann: User) -> None:
    with tab(stack, ann, "http://127.0.0.1:9") as opened:
        opened.do("ask", message=QUESTION, timeoutMs=1500)
        failure = opened.hears("failure")

    assert (failure["status"], failure["code"], failure["retryable"]) == (0, "timeout", True)


def test_abort_stops_the_model_and_keeps_what_was_said(ann_page: Tab, stack: Stack, model: Model, marker: str) -> None:
    abandoned = model.abandoned
    ann_page.do("ask", message=f"{QUESTION} [hold] {marker}")
    ann_page.hears("token")
    ann_page.do("abort")
    failure = ann_page.hears("failure")

    assert failure["kind"] == "AbortError"
    assert "restart" not in ann_page.kinds()
    (row,) = eventually(lambda: rows(stack, marker))
    assert (row["status"], row["error_code"]) == ("partial", "client_gone")
    eventually(lambda: model.abandoned > abandoned)


def test_a_session_that_has_ended_is_renewed(stack: Stack, origin: str, ann: User) -> None:
    with tab(stack, ann, origin) as opened:
        opened.do("spoil", tokens=["access_token"])
        answer = opened.asks(QUESTION)

    assert answer["response"] == TEXT


def test_a_session_that_cannot_be_renewed_is_a_failure(stack: Stack, origin: str, ann: User) -> None:
    with tab(stack, ann, origin) as opened, tab(stack, None, origin) as stranger:
        opened.do("spoil", tokens=["access_token", "refresh_token"])
        failures = []
        for each in (opened, stranger):
            each.do("ask", message=QUESTION)
            failures.append(each.hears("failure"))

    assert [(failure["status"], failure["code"]) for failure in failures] == [(401, "unauthenticated")] * 2


@pytest.mark.parametrize("spoiled", [{"expires_at": 1}, {"tokens": ["access_token"]}])
def test_nobody_waits_for_a_session_longer_than_he_wants(
    stack: Stack, origin: str, ann: User, spoiled: dict[str, Any]
) -> None:
    auth = NoRenewals(stack.url)
    with serving(auth.app()) as url, tab(stack, ann, origin, url=url) as opened:
        opened.do("spoil", **spoiled)
        opened.do("ask", message=QUESTION)
        eventually(lambda: auth.renewals)
        opened.do("abort")
        aborted = opened.hears("failure")
        opened.do("ask", message=QUESTION, timeoutMs=1000)
        late = opened.hears("failure")
        opened.do("call", name="listThreads", args=[{"stallMs": 1000, "functionsUrl": f"{origin}/functions/v1"}])
        stalled = opened.hears("failure")

    assert aborted["kind"] == "AbortError"
    assert [(failure["status"], failure["code"]) for failure in (late, stalled)] == [(0, "timeout"), (0, "network")]


def test_asks_with_the_tokens_that_an_app_mints(stack: Stack, origin: str, ann: User, marker: str) -> None:
    with tab(stack, None, origin, token=ann.token) as opened:
        answer = opened.asks(f"{QUESTION} {marker}")
        opened.calls("sendFeedback", answer["conversationId"], 1)
        read = opened.calls("loadConversation", answer["conversationId"])
        opened.do("mint", token=ann.token[:-5] + "AAAAA")
        opened.do("ask", message=QUESTION)
        failure = opened.hears("failure")

    assert (read["response"], read["feedback"]) == (TEXT, 1)
    assert (failure["kind"], failure["status"], failure["code"]) == ("SupabaseAIError", 401, "unauthenticated")


def test_listens_with_the_tokens_that_an_app_mints(stack: Stack, origin: str, ann: User, marker: str) -> None:
    tokens = [token(stack, ann.auth_user_id, seconds) for seconds in (5, 600)]
    with tab(stack, None, origin, token=tokens[0]) as opened:
        opened.do("subscribe", userId=ann.user_id)
        opened.hears("status", status="SUBSCRIBED")
        before = opened.kinds()
        opened.do("mint", token=tokens[1])
        ended = opened.hears("status")["status"]
        opened.hears("status", status="SUBSCRIBED")
        answer = ann.ask(origin, f"{QUESTION} {marker}").json()
        row = opened.hears("row")["row"]

    assert "minted" in before  # or it had joined as nobody, and heard nothing
    assert ended in ("CHANNEL_ERROR", "CLOSED")
    assert row["id"] == answer["conversationId"]


def test_reads_threads_and_conversations_and_sets_a_thumb(stack: Stack, origin: str) -> None:
    reader = User.sign_up(stack)
    with tab(stack, reader, origin) as opened:
        first, second = opened.asks(QUESTION), opened.asks("What is a validator of TON?")
        opened.calls("sendFeedback", first["conversationId"], 1)
        newest = opened.calls("listThreads", {"limit": 1})
        oldest = opened.calls("listThreads", {"before": newest["next"]})
        thread = opened.calls("loadThread", first["threadId"])
        conversation = opened.calls("loadConversation", first["conversationId"])
        opened.do("call", name="sendFeedback", args=[10**12, 1])
        failure = opened.hears("failure")

    assert [page["threads"][0]["threadId"] for page in (newest, oldest)] == [second["threadId"], first["threadId"]]
    assert oldest["next"] is None
    assert [told["feedback"] for told in (*thread["conversations"], conversation)] == [1, 1]
    assert ids(conversation["sources"]) == ids(first["sources"])
    assert (failure["status"], failure["code"]) == (404, "not_found")


def test_another_tab_hears_of_answers_and_thumbs(
    ann_page: Tab, stack: Stack, origin: str, ann: User, model: Model, marker: str
) -> None:
    with tab(stack, ann, origin) as another:
        another.do("subscribe", userId=ann.user_id)
        another.hears("status", status="SUBSCRIBED")
        at_once = ann_page.asks(f"{QUESTION} {marker}")
        rated = [another.hears("row")]
        ann_page.calls("sendFeedback", at_once["conversationId"], -1)
        rated.append(another.hears("row"))
        later = ann.ask(origin, f"{QUESTION} later {marker}", {"Prefer": "respond-async"}).json()
        deferred = another.hears("row")["row"]
        another.do("unsubscribe")
        another.do("subscribe", userId=ann.user_id)
        another.hears("status", status="SUBSCRIBED")
        more = [ann_page.asks(f"{QUESTION} {number} {marker}")["conversationId"] for number in range(2)]
        heard = [another.hears("row")["row"]["id"] for _ in more]

    assert [line["row"]["feedback"] for line in rated] == [None, -1]
    assert {line["row"]["id"] for line in rated} == {at_once["conversationId"]}
    assert rated[0]["row"]["response"] == TEXT
    assert (deferred["id"], deferred["status"], deferred["response"]) == (later["conversationId"], "complete", TEXT)
    assert heard == more  # once each: the first subscription is over


def test_nobody_hears_of_another_users_answers(
    ann_page: Tab, stack: Stack, origin: str, ann: User, marker: str
) -> None:
    bob = User.sign_up(stack)
    with tab(stack, bob, origin) as curious, tab(stack, bob, origin) as honest:
        curious.do("subscribe", userId=ann.user_id)
        honest.do("subscribe", userId=bob.user_id)
        for opened in (curious, honest):
            opened.hears("status", status="SUBSCRIBED")
        ann_page.asks(f"{QUESTION} {marker}")
        answer = honest.asks(f"{QUESTION} {marker}")
        own = honest.hears("row")["row"]
        curious.asks(f"{QUESTION} {marker}")

    assert own["id"] == answer["conversationId"]
    assert "row" not in curious.kinds()


def test_hears_again_after_the_connection_was_cut(stack: Stack, origin: str, ann: User, marker: str) -> None:
    with cable(stack.url) as wire, tab(stack, ann, origin, url=wire.origin) as opened:
        opened.do("subscribe", userId=ann.user_id)
        opened.hears("status", status="SUBSCRIBED")
        wire.cut()
        broken = opened.hears("status")["status"]
        opened.hears("status", status="SUBSCRIBED")
        answer = ann.ask(origin, f"{QUESTION} {marker}").json()
        row = opened.hears("row")["row"]

    assert broken in ("CHANNEL_ERROR", "CLOSED", "TIMED_OUT")
    assert row["id"] == answer["conversationId"]


def test_serves_the_guides_own_page(stack: Stack, origin: str, ann: User) -> None:
    arguments = [stack.url, stack.keys.publishable, ann.email, ann.password, str(ann.user_id), "Any borscht?"]
    script = str(HERE / "guide_client.mjs")
    command = [parts.node(), "--experimental-websocket", "--no-warnings", script, *arguments]

    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)

    assert "found nothing" in done.stdout
