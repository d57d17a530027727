"""Answers that come after their request: 202, a worker, and whoever asks again finds the same conversation."""

import asyncio
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import psycopg
import pytest
from botocore.config import Config

from infra.local import parts
from infra.local.stack import Stack
from tests.functions.test_refusals import assert_refused
from tests.realtime_clients import listening
from tests.stand_ins import ANSWER, USAGE, Model, Proxy, serving
from tests.users import User

QUESTION = "What is TON token?"
LATER = {"Prefer": "respond-async"}
LISTENER = Path(__file__).parents[1] / "shared/topic_listener.mjs"

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of a test's own; whatever is on it waits for a worker."""

    sqs: Any
    name: str
    url: str

    def make(self) -> None:
        self.sqs.create_queue(QueueName=self.name, Attributes={"VisibilityTimeout": "1"})

    def empty(self) -> None:
        """Make it anew: SQS purges a queue once a minute only."""
        self.sqs.delete_queue(QueueUrl=self.url)
        self.make()

    def take(self) -> list[str]:
        """The bodies of the messages that are there, which are gone then."""
        messages = self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        for message in messages.get("Messages", []):
            self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
        return [message["Body"] for message in messages.get("Messages", [])]

    def until_done(self) -> None:
        """Wait until all that was on it has been worked on."""
        counts, limit = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"], time.monotonic() + 30
        while set(self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=counts)["Attributes"].values()) != {
            "0"
        }:
            assert time.monotonic() < limit, "there is work left"
            time.sleep(0.05)

    def put(self, *bodies: str) -> None:
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.url, MessageBody=body)


@contextmanager
def queue_of(stack: Stack) -> Iterator[Queue]:
    env = stack.environment
    sqs = boto3.client(
        "sqs",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_REGION"],
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=Config(proxies={}),
    )
    name = uuid.uuid4().hex
    queue = Queue(sqs, name, f"{env['AWS_ENDPOINT_URL']}/123456789012/{name}")
    queue.make()
    yield queue
    sqs.delete_queue(QueueUrl=queue.url)


@pytest.fixture(scope="module")
def kept_queue(stack: Stack) -> Iterator[Queue]:
    with queue_of(stack) as queue:
        yield queue


@pytest.fixture(autouse=True)
def queue(kept_queue: Queue) -> Queue:
    """The module's queue, with nothing on it."""
    kept_queue.empty()
    return kept_queue


@pytest.fixture(scope="module")
def settings(model: Model, kept_queue: Queue) -> dict[str, str]:
    return {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in", "QUEUE_URL": kept_queue.url}


@pytest.fixture(scope="module")
def origin(stack: Stack, settings: dict[str, str], knowledge: None) -> Iterator[str]:
    """The functions alone: what is deferred stays on the queue."""
    with stack.functions(**settings) as url:
        yield url


@pytest.fixture
def ann(stack: Stack) -> User:
    return User.sign_up(stack)


def poll(user: User, origin: str, conversation_id: int, seconds: float = 20) -> dict[str, Any]:
    """The conversation, once it is pending no longer."""
    limit = time.monotonic() + seconds
    while True:
        told: dict[str, Any] = user.call(origin, "GET", f"/conversations/{conversation_id}").json()
        if told["status"] != "pending" or time.monotonic() > limit:
            return told
        time.sleep(0.1)


def model_calls(stack: Stack, user: User) -> list[dict[str, Any]]:
    rows: Any = user.client(stack).table("model_calls").select("*").order("created_at").execute().data
    return list(rows)


def spending(stack: Stack, user: User) -> dict[str, Any]:
    rows: Any = user.client(stack).table("spending").select("*").eq("period", "day").execute().data
    return dict(rows[0])


def test_a_deferred_question_is_pending_until_a_worker_answers_it(
    stack: Stack, origin: str, settings: dict[str, str], ann: User
) -> None:
    accepted = ann.ask(origin, QUESTION, LATER)
    pending = ann.call(origin, "GET", accepted.headers["location"].partition("/ai-finance")[2]).json()
    with stack.worker(**settings):
        told = poll(ann, origin, pending["id"])

    assert accepted.status_code == 202
    assert accepted.json() == {"conversationId": pending["id"], "threadId": pending["threadId"], "status": "pending"}
    assert accepted.headers["preference-applied"] == "respond-async"
    assert (pending["status"], pending["response"], pending["message"]) == ("pending", "", QUESTION)
    assert (told["status"], told["response"], told["model"]) == ("complete", "".join(ANSWER), "stand-in")
    assert told["usage"] == USAGE
    assert told["sources"][0]["tokenSymbol"] == "TON"
    assert [call["status"] for call in model_calls(stack, ann)] == ["complete"]
    assert (spending(stack, ann)["tokens"], spending(stack, ann)["requests"]) == (49, 1)


def test_who_waits_long_enough_gets_the_answer_at_once(
    stack: Stack, origin: str, settings: dict[str, str], ann: User
) -> None:
    with stack.worker(**settings):
        answered = ann.ask(origin, QUESTION, {"Prefer": "respond-async, wait=20"})
        slow = ann.ask(origin, f"{QUESTION} [slow]", {"Prefer": "wait=0"})
        told = poll(ann, origin, slow.json()["conversationId"])

    assert answered.status_code == 200
    assert (answered.json()["response"], answered.json()["usage"]) == ("".join(ANSWER), USAGE)
    assert answered.json()["sources"]
    assert answered.headers["x-gateway-cost-usd"] == "0.000067"
    assert (slow.status_code, told["status"]) == (202, "complete")


async def test_the_client_hears_the_answer_as_an_update(
    stack: Stack, origin: str, settings: dict[str, str], ann: User
) -> None:
    mine = f"user_id=eq.{ann.user_id}"
    async with listening(stack, ann.token, "conversations", mine) as listener:
        await asyncio.to_thread(ann.ask, origin, QUESTION, LATER)
        with stack.worker(**settings):
            changes = [await listener.change() for _ in range(2)]

    assert [change["type"].value for change in changes] == ["INSERT", "UPDATE"]
    assert [change["record"]["status"] for change in changes] == ["pending", "complete"]
    assert changes[1]["record"]["response"] == "".join(ANSWER)


def test_pieces_are_broadcast_on_the_users_own_topic(
    stack: Stack, origin: str, settings: dict[str, str], ann: User
) -> None:
    command = [parts.node(), "--experimental-websocket", str(LISTENER), stack.url, stack.keys.publishable, ann.token]
    with subprocess.Popen(
        [*command, f"user:{ann.user_id}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdin and listener.stdout
        state = json.loads(listener.stdout.readline())
        accepted = ann.ask(origin, f"{QUESTION} [drip]", LATER, broadcast=True).json()
        with stack.worker(**settings):
            heard = [json.loads(listener.stdout.readline()) for _ in range(4)]
        listener.stdin.close()

    told = ann.call(origin, "GET", f"/conversations/{accepted['conversationId']}").json()
    assert state == {"status": "SUBSCRIBED"}
    assert [each["event"] for each in heard] == ["token", "token", "token", "done"]
    assert {each["payload"]["conversationId"] for each in heard} == {accepted["conversationId"]}
    assert "".join(each["payload"]["token"] for each in heard[:3]) == "".join(ANSWER) == told["response"]
    assert heard[3]["payload"]["usage"] == USAGE


def test_nobody_else_sees_a_pending_conversation(origin: str, queue: Queue, ann: User, bob: User) -> None:
    accepted = ann.ask(origin, QUESTION, LATER).json()
    queue.take()

    answers = [bob.call(origin, "GET", f"/conversations/{id}") for id in (accepted["conversationId"], 2**62)]
    anonymous = httpx.get(f"{origin}/functions/v1/ai-finance/conversations/{accepted['conversationId']}")

    for answer in answers:
        assert_refused(answer, 404, "not_found")
    assert_refused(anonymous, 401, "unauthenticated")
    assert_refused(ann.call(origin, "GET", "/conversations/0"), 422, "invalid_request")


def test_the_same_key_gives_the_same_pending_conversation(
    stack: Stack, origin: str, settings: dict[str, str], queue: Queue, ann: User
) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}

    first, again = (ann.ask(origin, QUESTION, LATER | key) for _ in range(2))
    impatient = ann.ask(origin, QUESTION, key)
    bodies = queue.take()
    queue.put(*bodies)
    with stack.worker(**settings):
        told = poll(ann, origin, first.json()["conversationId"])
    late = ann.ask(origin, QUESTION, LATER | key)

    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert_refused(impatient, 409, "turn_running")
    assert len(bodies) == 1
    assert (late.status_code, late.json()["response"]) == (200, told["response"])


def test_a_message_that_comes_twice_is_answered_once_and_charged_once(
    stack: Stack, origin: str, settings: dict[str, str], queue: Queue, model: Model, ann: User
) -> None:
    accepted = ann.ask(origin, f"{QUESTION} [slow]", LATER).json()
    [body] = queue.take()
    asked = len(model.asked)

    queue.put(body, body)
    with stack.worker(**settings), stack.worker(**settings):
        told = poll(ann, origin, accepted["conversationId"])
        queue.put(body)
        time.sleep(1.5)

    assert told["status"] == "complete"
    assert len(model.asked) == asked + 1
    assert len(model_calls(stack, ann)) == 1
    assert spending(stack, ann)["tokens"] == 49


def test_a_worker_that_is_killed_leaves_the_answer_to_the_next(
    stack: Stack, origin: str, settings: dict[str, str], queue: Queue, model: Model, ann: User
) -> None:
    accepted = ann.ask(origin, f"{QUESTION} [drip]", LATER | {"x-request-id": "killed"}, broadcast=True).json()
    [body] = queue.take()
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        database.execute(  # as a worker that died while it answered has left it
            "select public.claim_turn(conversation_id, attempt, 2) from public.open_turns where conversation_id = %s",
            [accepted["conversationId"]],
        )

    queue.put(body)
    with stack.worker(**settings):
        told = poll(ann, origin, accepted["conversationId"], 30)

    assert (told["status"], told["response"]) == ("complete", "".join(ANSWER))


@pytest.mark.parametrize("is_broadcast", [False, True])
def test_a_model_that_fails_is_asked_again_and_at_last_given_up(
    stack: Stack, origin: str, settings: dict[str, str], model: Model, ann: User, is_broadcast: bool
) -> None:
    marker = uuid.uuid4().hex
    with stack.worker(**settings, ANSWER_TRIES="2"):
        accepted = ann.ask(origin, f"{QUESTION} [reject] {marker}", LATER, broadcast=is_broadcast).json()
        told = poll(ann, origin, accepted["conversationId"], 30)

    assert model.count(marker) == 2
    assert (told["status"], told["errorCode"], told["response"]) == ("failed", "model_unavailable", "")
    assert [call["status"] for call in model_calls(stack, ann)] == ["failed"]
    assert (spending(stack, ann)["tokens"], spending(stack, ann)["cost_usd"]) == (0, 0)


def test_a_broadcast_answer_that_breaks_off_is_not_asked_for_again_and_charged(
    stack: Stack, origin: str, settings: dict[str, str], model: Model, ann: User
) -> None:
    marker = uuid.uuid4().hex
    with stack.worker(**settings, ANSWER_TRIES="2"):
        accepted = ann.ask(origin, f"{QUESTION} [break] {marker}", LATER, broadcast=True).json()
        told = poll(ann, origin, accepted["conversationId"], 30)

    assert (told["status"], told["response"]) == ("partial", "".join(ANSWER[:2]).strip())
    assert model.count(marker) == 1
    assert told["usage"]["estimated"] is True
    assert spending(stack, ann)["cost_usd"] == told["usage"]["costUsd"] > 0


def test_who_waits_for_an_answer_that_fails_gets_its_error(
    stack: Stack, origin: str, settings: dict[str, str], ann: User
) -> None:
    with stack.worker(**settings, ANSWER_TRIES="1"):
        answered = ann.ask(origin, f"{QUESTION} [reject]", {"Prefer": "wait=20"})

    assert_refused(answered, 503, "model_unavailable")


def test_what_the_queue_does_not_take_is_refused_and_kept_as_failed(
    stack: Stack, settings: dict[str, str], knowledge: None, ann: User
) -> None:
    with stack.functions(**{**settings, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}) as origin:
        refused = ann.ask(origin, QUESTION, LATER)

    assert_refused(refused, 503, "unavailable")
    rows: Any = ann.client(stack).table("conversations").select("status,error_code").execute().data
    assert rows == [{"status": "failed", "error_code": "unavailable"}]
    assert spending(stack, ann)["tokens"] == 0


def test_without_a_queue_the_preference_is_passed_over(
    stack: Stack, settings: dict[str, str], knowledge: None, ann: User
) -> None:
    with stack.functions(**{**settings, "QUEUE_URL": ""}) as origin:
        answered = ann.ask(origin, QUESTION, LATER)

    assert (answered.status_code, answered.json()["response"]) == (200, "".join(ANSWER))
    assert "preference-applied" not in answered.headers


def test_what_needs_no_model_is_answered_at_once(origin: str, queue: Queue, ann: User) -> None:
    answered = ann.ask(origin, "Give me a recipe for borscht", LATER)

    assert answered.status_code == 200
    assert answered.json()["model"] is None
    assert queue.take() == []


def test_refusals_come_before_anything_is_deferred(origin: str, queue: Queue, ann: User) -> None:
    seed = "abandon ability able about above absent absorb abstract absurd abuse access accident"

    assert_refused(ann.ask(origin, seed, LATER), 422, "secret_in_message")
    assert_refused(ann.ask(origin, QUESTION, LATER, model="nobody:has"), 422, "invalid_request")
    assert_refused(ann.ask(origin, QUESTION, LATER, userId=1), 403, "forbidden")
    assert queue.take() == []


def test_an_answer_the_database_does_not_take_comes_by_the_queue(
    stack: Stack, origin: str, settings: dict[str, str], ann: User
) -> None:
    accepted = ann.ask(origin, QUESTION, LATER).json()
    proxy = Proxy(stack.url, refused="/rpc/close_turn")
    with serving(proxy.app()) as url, stack.worker(**settings, SUPABASE_URL=url):
        limit = time.monotonic() + 15
        while not proxy.refusals and time.monotonic() < limit:
            time.sleep(0.1)
        time.sleep(1)  # until the closing is on the queue: one that is killed before is answered anew, after its claim

    with stack.worker(**settings):
        told = poll(ann, origin, accepted["conversationId"])

    assert proxy.refusals
    assert told["response"] == "".join(ANSWER)
    assert len(model_calls(stack, ann)) == 1


def test_many_at_once_are_all_answered(stack: Stack, origin: str, settings: dict[str, str], ann: User) -> None:
    with stack.worker(**settings), ThreadPoolExecutor(12) as pool:
        accepted = list(pool.map(lambda _: ann.ask(origin, f"{QUESTION} [slow]", LATER).json(), range(12)))
        told = [poll(ann, origin, each["conversationId"], 30) for each in accepted]

    assert {each["response"] for each in told} == {"".join(ANSWER)}
    assert spending(stack, ann)["tokens"] == 12 * 49


@pytest.mark.parametrize("body", ["", "[]", "{}", json.dumps({"work": {}}), json.dumps({"job": "x"})])
def test_a_message_that_means_nothing_is_left_to_the_dead_letters(
    stack: Stack, settings: dict[str, str], queue: Queue, body: str
) -> None:
    queue.put(body or " ")
    with stack.worker(**settings) as _:
        time.sleep(1)

    limit = time.monotonic() + 5
    while not (left := queue.take()) and time.monotonic() < limit:
        time.sleep(0.2)
    assert left == [body or " "]
