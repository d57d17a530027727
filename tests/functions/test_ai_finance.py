"""ai-finance: answers with sources, kept conversations, streams and idempotency keys."""

import asyncio
import json
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from realtime import RealtimePostgresChangesListenEvent
from supabase import acreate_client

from infra.local import parts
from infra.local.stack import Stack
from tests.stand_ins import ANSWER, USAGE, Model
from tests.users import User

ANYTHING = -1.0  # a threshold that every passage passes


@pytest.fixture
def marker() -> str:
    """A word no other test says."""
    return uuid.uuid4().hex


def test_answers_from_the_embedded_model_with_sources_and_keeps_the_conversation(
    stack: Stack, knowledge: None, alice: User
) -> None:
    answered = alice.ask(stack.url, "What is TON token?")

    answer = answered.json()
    assert answered.status_code == 200
    assert answer["response"]
    assert "native cryptocurrency" in answer["sources"][0]["content"]
    assert answer["sources"][0]["tokenSymbol"] == "TON"
    assert answer["sources"][0]["similarity"] > 0.85
    assert answer["usage"]["inputTokens"] > 100
    assert {"auth", "open", "embed", "match", "model", "close"} <= answer["timings"].keys()

    row = alice.conversation(stack, answer["conversationId"])
    assert row["user_id"] == alice.user_id
    assert (row["message"], row["response"], row["status"]) == ("What is TON token?", answer["response"], "complete")
    assert [used["id"] for used in row["context_used"]] == [source["id"] for source in answer["sources"]]
    assert row["model_version"] == answer["model"]


def test_answers_on_the_short_path_too(functions: str, alice: User) -> None:
    answered = httpx.post(
        f"{functions}/ai-finance",
        json={"message": "What is TON token?"},
        headers={"Authorization": f"Bearer {alice.token}"},
        timeout=30,
    )

    assert answered.json()["response"] == "".join(ANSWER)


def test_answers_supabase_functions_invoke(stack: Stack, knowledge: None, alice: User) -> None:
    client = alice.client(stack)
    client.functions.set_auth(alice.token)

    body = {"message": "Name a recipe for borscht", "userId": str(alice.user_id)}
    answer: Any = client.functions.invoke("ai-finance", {"body": body, "responseType": "json"})

    assert "found nothing" in answer["response"]


def test_serves_the_guides_own_client(stack: Stack, knowledge: None, alice: User) -> None:
    script = Path(__file__).with_name("client.mjs")
    arguments = [stack.url, stack.keys.publishable, alice.email, alice.password, str(alice.user_id)]
    command = [parts.node(), "--experimental-websocket", str(script), *arguments, "Name a recipe for borscht"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)

    told = json.loads(done.stdout)
    assert "found nothing" in told["answer"]["response"]
    assert told["pushed"] == told["answer"]["response"]
    assert told["refusal"]["code"] == "invalid_request"


def test_puts_the_best_passage_the_users_swaps_and_the_question_into_the_prompt(
    functions: str, model: Model, alice: User, marker: str
) -> None:
    alice.ask(functions, f"What is TON token? {marker}", matchCount=2)

    prompt = model.question(marker)
    assert prompt.index("Context from knowledge base:") < prompt.index("native cryptocurrency")
    assert prompt.index("User's recent swaps") < prompt.index("swapped 12 TON to USDT")
    assert prompt.rstrip().endswith(f"User question: What is TON token? {marker}\n\nAnswer in one or two sentences:")


def test_knows_the_last_ten_swaps_newest_first_and_no_one_elses(
    functions: str, model: Model, alice: User, bob: User, marker: str
) -> None:
    alice.ask(functions, f"What did I swap last? {marker}")

    prompt = model.question(marker)
    amounts = [prompt.index(f"swapped {amount} TON") for amount in range(12, 2, -1)]
    assert amounts == sorted(amounts)
    assert "swapped 2 TON" not in prompt
    assert "DOGS" not in prompt


def test_remembers_the_thread_and_only_the_thread(functions: str, model: Model, alice: User, marker: str) -> None:
    first = alice.ask(functions, f"What is TON token? first {marker}").json()
    alice.ask(functions, f"What is a validator of TON? elsewhere {marker}")

    alice.ask(functions, f"And who secures TON? later {marker}", threadId=first["threadId"])

    prompt = model.question(f"later {marker}")
    assert f"User: What is TON token? first {marker}" in prompt
    assert f"Assistant: {first['response']}" in prompt
    assert f"elsewhere {marker}" not in prompt


def test_says_itself_that_nothing_was_found(functions: str, model: Model, stack: Stack, bob: User, marker: str) -> None:
    answer = bob.ask(functions, f"Give me a recipe for borscht {marker}").json()

    assert "found nothing" in answer["response"]
    assert answer["sources"] == []
    assert answer["model"] is None
    assert model.count(marker) == 0
    assert bob.conversation(stack, answer["conversationId"])["status"] == "complete"


def test_takes_as_many_passages_as_asked_for(functions: str, alice: User) -> None:
    answers = [alice.ask(functions, "What is TON?", matchCount=n, matchThreshold=ANYTHING).json() for n in (1, 7)]

    assert [len(answer["sources"]) for answer in answers] == [1, 7]
    assert answers[1]["sources"][0] == answers[0]["sources"][0]


def test_accepts_the_callers_own_id_in_either_form(functions: str, alice: User) -> None:
    ids = [alice.user_id, str(alice.user_id), alice.auth_user_id, alice.auth_user_id.upper()]

    statuses = [alice.ask(functions, "What is TON token?", userId=user_id).status_code for user_id in ids]

    assert statuses == [200] * 4


def test_estimates_usage_the_model_does_not_count(functions: str, alice: User) -> None:
    usage = alice.ask(functions, "What is TON token? [uncounted]").json()["usage"]

    assert usage["estimated"] is True
    assert usage["inputTokens"] > 50
    assert usage["outputTokens"] > 0


def test_ends_an_answer_that_hit_the_limit_at_its_last_sentence(functions: str, alice: User) -> None:
    answer = alice.ask(functions, "What is TON token? [cut]").json()

    assert answer["response"] == "A whole sentence."


@pytest.mark.anyio
async def test_pushes_the_answer_over_realtime_to_its_owner_only(
    stack: Stack, functions: str, alice: User, bob: User, marker: str
) -> None:
    heard: dict[str, list[Any]] = {"alice": [], "bob": []}
    clients = []
    for name, user in (("alice", alice), ("bob", bob)):
        client = await acreate_client(stack.url, stack.keys.publishable)
        await client.realtime.set_auth(user.token)
        subscribed = asyncio.Event()
        channel = client.channel("ai-responses").on_postgres_changes(
            RealtimePostgresChangesListenEvent.Insert,
            schema="public",
            table="conversations",
            filter=f"user_id=eq.{alice.user_id}",
            callback=heard[name].append,
        )
        await channel.subscribe(lambda state, _, event=subscribed: event.set() if state == "SUBSCRIBED" else None)  # type: ignore[misc]
        await asyncio.wait_for(subscribed.wait(), 10)
        clients.append(client)
    await asyncio.sleep(0.5)  # the subscription's own system message comes after the reply

    answer = (await asyncio.to_thread(alice.ask, functions, f"What is TON token? {marker}")).json()

    def pushed() -> list[str]:
        # by id: what an earlier test wrote just before the join may come too
        records = [change["data"]["record"] for change in heard["alice"]]
        return [record["response"] for record in records if record["id"] == answer["conversationId"]]

    for _ in range(100):
        if pushed():
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)

    assert pushed() == [answer["response"]]
    assert {change["data"]["record"]["user_id"] for change in heard["alice"]} == {alice.user_id}
    assert heard["bob"] == []
    for client in clients:
        await client.realtime.close()


def test_flags_what_nobody_told_the_model_and_keeps_the_flags(
    functions: str, model: Model, stack: Stack, alice: User, marker: str
) -> None:
    told, stranger = "https://ton.example/what", "UQCvxJy4eG8hyHBFsZ7eePxrRsUQSFE_jpptRAYBmcG_DEAD"
    choice = {
        "message": {"role": "assistant", "content": f"Not {told}: send it to {stranger}."},
        "finish_reason": "stop",
    }
    model.raw[marker] = json.dumps({"choices": [{"index": 0, **choice}]}).encode()
    question, key = f"What is TON? {marker} {told}", {"Idempotency-Key": marker}

    answer = alice.ask(functions, question, key).json()
    again = alice.ask(functions, question, key).json()
    thread = alice.call(functions, "GET", f"/threads/{answer['threadId']}").json()

    flags = [{"kind": "unknown_address", "text": stranger}]
    assert answer["flags"] == again["flags"] == thread["conversations"][0]["flags"] == flags
    assert alice.conversation(stack, answer["conversationId"])["flags"] == flags


def test_tells_the_answer_as_it_is_said(functions: str, stack: Stack, alice: User) -> None:
    with alice.ask_in_events(functions, "What is TON token?") as events:
        told = list(events)

    names = [name for name, _ in told]
    assert names == ["sources", "token", "token", "token", "done"]
    first, done = told[0][1], told[-1][1]
    assert first["sources"][0]["tokenSymbol"] == "TON"
    assert "".join(data["token"] for name, data in told if name == "token") == "".join(ANSWER)
    assert (first["conversationId"], first["threadId"]) == (done["conversationId"], done["threadId"])
    assert done["usage"] == USAGE
    row = alice.conversation(stack, done["conversationId"])
    assert (row["status"], row["response"]) == ("complete", "".join(ANSWER))


def test_streams_for_the_accept_header(functions: str, alice: User) -> None:
    answered = alice.ask(functions, "What is TON token?", headers={"Accept": "text/event-stream"})

    assert answered.headers["content-type"].startswith("text/event-stream")
    assert answered.text.startswith("event: sources\n")


def test_streams_through_the_gateway_from_the_embedded_model(stack: Stack, knowledge: None, alice: User) -> None:
    with alice.ask_in_events(stack.url, "What is TON token?") as events:
        names = [name for name, _ in events]

    assert names[0] == "sources"
    assert names.count("token") > 3
    assert names[-1] == "done"


def test_streams_that_nothing_was_found(functions: str, bob: User) -> None:
    with bob.ask_in_events(functions, "Give me a recipe for borscht") as events:
        names = [name for name, _ in events]

    assert names == ["sources", "token", "done"]


def test_ends_a_broken_stream_with_an_error_and_keeps_what_was_said(functions: str, stack: Stack, alice: User) -> None:
    key = uuid.uuid4().hex
    with httpx.stream(
        "POST",
        f"{functions}/ai-finance",
        json={"message": "What is TON token? [break]", "stream": True},
        headers={"Authorization": f"Bearer {alice.token}", "Idempotency-Key": key},
        timeout=30,
    ) as response:
        text = response.read().decode()

    assert text.rstrip().rpartition("event: ")[2].startswith("error\n")
    assert '"code":"model_unavailable"' in text
    row = _row_of_key(stack, alice, key)
    assert (row["status"], row["response"]) == ("partial", "".join(ANSWER[:2]).strip())
    assert row["error_code"] == "model_unavailable"


def test_stops_the_model_and_keeps_what_was_said_when_the_client_goes_away(
    functions: str, stack: Stack, model: Model, alice: User, marker: str
) -> None:
    abandoned = model.abandoned
    with alice.ask_in_events(functions, f"What is TON token? [drip] {marker}") as events:
        next(event for event in events if event[0] == "token")

    row = _eventually(lambda: _row_of_message(stack, alice, marker))
    assert row["status"] == "partial"
    assert row["error_code"] == "client_gone"
    assert "".join(ANSWER).startswith(row["response"])
    assert row["response"]
    assert _eventually(lambda: model.abandoned > abandoned)


def test_gives_the_same_answer_for_the_same_key(functions: str, model: Model, alice: User, marker: str) -> None:
    headers = {"Idempotency-Key": marker}

    first, again = (alice.ask(functions, f"What is TON token? {marker}", headers) for _ in range(2))

    told = [{k: v for k, v in answer.json().items() if k != "timings"} for answer in (first, again)]
    assert told[0].pop("sources")[0]["id"] == told[1].pop("sources")[0]["id"]
    assert told[0] == told[1]
    assert model.count(marker) == 1


def test_replays_the_same_key_as_events(functions: str, model: Model, alice: User, marker: str) -> None:
    headers = {"Idempotency-Key": marker, "Accept": "text/event-stream"}

    told = [alice.ask(functions, f"What is TON token? {marker}", headers).text for _ in range(2)]

    assert told[1].count("event: token") == 1
    assert "".join(ANSWER) in told[1]
    assert "event: done" in told[1]
    assert model.count(marker) == 1


def test_makes_a_second_request_with_a_running_key_wait(functions: str, model: Model, alice: User, marker: str) -> None:
    def ask(_: int) -> httpx.Response:
        return alice.ask(functions, f"What is TON token? [slow] {marker}", {"Idempotency-Key": marker})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))

    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 409, 409, 409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["code"] == "turn_running"
    assert refused.json()["retryable"] is True
    assert int(refused.headers["retry-after"]) >= 1
    assert model.count(marker) == 1


def test_refuses_a_key_that_came_with_another_message(functions: str, alice: User, marker: str) -> None:
    alice.ask(functions, "What is TON token?", {"Idempotency-Key": marker})

    refused = alice.ask(functions, "What is a jetton?", {"Idempotency-Key": marker})

    assert refused.status_code == 422
    assert refused.json()["code"] == "idempotency_key_reused"


def test_answers_a_failed_key_again_in_the_same_row(functions: str, stack: Stack, alice: User, marker: str) -> None:
    headers = {"Idempotency-Key": marker}
    failed = alice.ask(functions, "What is TON token? [fail]", headers)
    kept = _row_of_key(stack, alice, marker)

    again = alice.ask(stack.url, "What is TON token? [fail]", headers)  # the embedded model doesn't know the word

    assert failed.status_code == 503
    assert kept["status"] == "failed"
    assert again.json()["conversationId"] == kept["id"]
    assert alice.conversation(stack, kept["id"])["status"] == "complete"


def test_keys_of_two_users_do_not_meet(functions: str, alice: User, bob: User, marker: str) -> None:
    headers = {"Idempotency-Key": marker}

    first = alice.ask(functions, "What is TON token?", headers).json()
    second = bob.ask(functions, "What is TON token?", headers).json()

    assert first["conversationId"] != second["conversationId"]


def test_keeps_the_thumb(functions: str, stack: Stack, alice: User) -> None:
    conversation_id = alice.ask(functions, "What is TON token?").json()["conversationId"]

    for feedback in (1, 0, -1):
        rated = alice.call(functions, "POST", "/feedback", {"conversationId": conversation_id, "feedback": feedback})
        assert rated.json() == {"conversationId": conversation_id, "feedback": feedback}
        assert alice.conversation(stack, conversation_id)["feedback"] == feedback


def test_pages_through_threads_and_their_conversations(functions: str, stack: Stack) -> None:
    user = User.sign_up(stack)
    threads = []
    for number in range(3):
        thread = user.ask(functions, f"What is TON token? {number}").json()["threadId"]
        user.ask(functions, f"And validators of TON? {number}", threadId=thread)
        threads.append(thread)

    first = user.call(functions, "GET", "/threads?limit=2").json()
    rest = user.call(functions, "GET", f"/threads?limit=2&before={first['next']}").json()
    newest = user.call(functions, "GET", f"/threads/{threads[0]}?limit=1").json()
    oldest = user.call(functions, "GET", f"/threads/{threads[0]}?limit=1&before={newest['next']}").json()

    assert [thread["threadId"] for thread in first["threads"] + rest["threads"]] == threads[::-1]
    assert rest["next"] is None
    assert first["threads"][0]["title"] == "What is TON token? 2"
    assert first["threads"][0]["conversationCount"] == 2
    assert newest["conversations"][0]["message"] == "And validators of TON? 0"
    assert oldest["conversations"][0]["message"] == "What is TON token? 0"
    assert oldest["conversations"][0]["response"] == "".join(ANSWER)


def test_hides_one_user_from_another(functions: str, model: Model, alice: User, bob: User, marker: str) -> None:
    secret = alice.ask(functions, f"What is TON token? {marker}").json()

    read = bob.call(functions, "GET", f"/threads/{secret['threadId']}")
    listed = bob.call(functions, "GET", "/threads?limit=100")
    rated = bob.call(functions, "POST", "/feedback", {"conversationId": secret["conversationId"], "feedback": -1})
    bob.ask(functions, f"What is TON token? bob {marker}", threadId=secret["threadId"])

    assert read.status_code == 404
    assert secret["threadId"] not in listed.text
    assert rated.status_code == 404
    assert "Assistant:" not in model.question(f"bob {marker}")


def _row_of_key(stack: Stack, user: User, key: str) -> dict[str, Any]:
    rows = user.client(stack).table("conversations").select("*").eq("idempotency_key", key).execute().data
    assert len(rows) == 1
    found: dict[str, Any] = rows[0]  # type: ignore[assignment]
    return found


def _row_of_message(stack: Stack, user: User, marker: str) -> dict[str, Any] | None:
    rows = user.client(stack).table("conversations").select("*").like("message", f"%{marker}%").execute().data
    return rows[0] if rows else None  # type: ignore[return-value]


def _eventually(look: Any) -> Any:
    """What `look` finds within ten seconds."""
    limit = time.monotonic() + 10
    while not (found := look()):
        assert time.monotonic() < limit, "it did not happen"
        threading.Event().wait(0.05)
    return found
