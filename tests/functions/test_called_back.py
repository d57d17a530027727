"""Deferred answers that Replicate and RunPod are left alone with: they call back, as often and oddly as they like."""

import base64
import hmac
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import psycopg
import pytest

from infra.local.stack import Stack
from tests.functions.test_deferred import LATER, QUESTION, Queue, model_calls, poll, queue_of, spending
from tests.functions.test_refusals import assert_refused
from tests.replicate_stand_in import Replicate
from tests.runpod_stand_in import JOB, RunPod
from tests.sql import put_versions, retire
from tests.stand_ins import ANSWER, USAGE, Model, serving
from tests.users import User

KEY = b"a secret of Replicate's"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
PUBLIC = "https://gateway.example/functions/v1/ai-finance"


@dataclass(frozen=True, slots=True)
class Place:
    """The functions with a queue of their own, whose first model calls back, and its stand-in."""

    stack: Stack
    origin: str
    queue: Queue
    settings: dict[str, str]
    replicate: Replicate
    runpod: RunPod

    def deferred(self, user: User) -> tuple[int, str]:
        """A question whose provider was left alone with it: the conversation, and the path to call."""
        accepted = user.ask(self.origin, QUESTION, LATER).json()
        with self.stack.worker(**self.settings):
            token = self.until_left_alone(accepted["conversationId"])
        return accepted["conversationId"], next(path for path in self._paths() if path.endswith(token))

    def until_left_alone(self, conversation_id: int) -> str:
        """Wait until a provider has the conversation, and nobody else; gives the job's token."""
        left = (
            "select token::text from private.jobs join public.open_turns using (attempt)"
            " where conversation_id = %s and job_id is not null and claimed_until <= now()"
        )
        limit = time.monotonic() + 30
        with psycopg.connect(self.stack.database_url, autocommit=True) as database:
            while not (job := database.execute(left, [conversation_id]).fetchone()):
                assert time.monotonic() < limit, "nobody was left alone with it"
                time.sleep(0.05)
        return str(job[0])

    def call(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        """A provider's call; Replicate's are signed, unless the headers say otherwise."""
        content = json.dumps(body).encode()
        at = str(int(time.time()))
        digest = hmac.digest(KEY, f"msg_1.{at}.".encode() + content, "sha256")
        signed = {
            "webhook-id": "msg_1",
            "webhook-timestamp": at,
            "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        }
        own = signed if "/replicate/" in path else {}
        return httpx.post(f"{self.origin}/ai-finance{path}", content=content, headers={**own, **(headers or {})})

    def _paths(self) -> list[str]:
        """The paths that the providers were told to call."""
        bodies = [asked.body for asked in self.replicate.created] + [asked.body for asked in self.runpod.asked]
        return [body["webhook"].removeprefix(PUBLIC) for body in bodies if body and "webhook" in body]


@contextmanager
def placed(stack: Stack, model: Model, chain: str) -> Iterator[Place]:
    replicate, runpod = Replicate(looks=10**6), RunPod(polls=10**6)
    with (
        queue_of(stack) as queue,
        serving(replicate.app()) as replicate_url,
        serving(runpod.app()) as runpod_url,
    ):
        providers = {
            "near": {"base_url": f"{replicate_url}/v1", "wire": "replicate"},
            "pod": {"base_url": f"{runpod_url}/v2", "wire": "runpod"},
        }
        settings = {
            "MODEL_CHAIN": chain,
            "MODEL_PROVIDERS": json.dumps(providers),
            "NEAR_API_KEY": "r8",
            "POD_API_KEY": "rpa",
            "MODEL_BASE_URL": f"{model.url}/v1",
            "QUEUE_URL": queue.url,
            "WEBHOOK_URL": PUBLIC,
            "REPLICATE_WEBHOOK_SECRET": SECRET,
        }
        with stack.functions(**settings) as origin:
            yield Place(stack, origin, queue, settings, replicate, runpod)


@pytest.fixture(scope="module")
def place(stack: Stack, model: Model, knowledge: None) -> Iterator[Place]:
    with placed(stack, model, "near:meta/llama, own:stand-in") as place:
        yield place


@pytest.fixture(autouse=True)
def fresh(place: Place) -> None:
    """Nothing was asked yet, and what is asked goes on."""
    for log in (place.replicate.created, place.replicate.looked, place.replicate.canceled):
        log.clear()
    place.replicate.looks, place.replicate.status = 10**6, "succeeded"
    place.queue.empty()


@pytest.fixture
def ann(stack: Stack) -> User:
    return User.sign_up(stack)


def test_replicate_calls_back_and_the_answer_is_there(stack: Stack, place: Place, ann: User) -> None:
    conversation_id, path = place.deferred(ann)
    early = place.call(path, {"id": "heat2o", "status": "processing"})
    place.replicate.looks = 0

    called = place.call(path, {"id": "heat2o", "status": "succeeded", "output": ["believed by nobody"]})

    told = ann.call(place.origin, "GET", f"/conversations/{conversation_id}").json()
    assert (early.status_code, early.json()) == (200, {"over": False})
    assert (called.status_code, called.json()) == (200, {"over": True})
    assert (told["status"], told["response"], told["model"]) == ("complete", "".join(ANSWER), "near:meta/llama")
    assert told["usage"] == USAGE
    assert place.replicate.created[0].body["webhook_events_filter"] == ["completed"]
    assert place.replicate.canceled == []


def test_a_call_that_comes_again_or_out_of_order_changes_nothing(stack: Stack, place: Place, ann: User) -> None:
    conversation_id, path = place.deferred(ann)
    place.replicate.looks = 0
    place.call(path, {"id": "heat2o", "status": "succeeded"})
    first = ann.conversation(stack, conversation_id)

    again = [place.call(path, {"id": "heat2o", "status": status}) for status in ("succeeded", "starting", "failed")]

    assert [answer.status_code for answer in again] == [200] * 3
    assert ann.conversation(stack, conversation_id) == first
    assert len(model_calls(stack, ann)) == 1
    assert spending(stack, ann)["tokens"] == 49


def test_a_call_that_replicate_has_not_signed_is_refused(place: Place, ann: User) -> None:
    conversation_id, path = place.deferred(ann)
    place.replicate.looks = 0
    old = str(int(time.time()) - 301)

    forged = [
        place.call(path, {"id": "heat2o"}, {"webhook-signature": "v1,Zm9yZ2Vk"}),
        place.call(path, {"id": "heat2o"}, {"webhook-timestamp": old}),
        place.call(path, {"id": "heat2o"}, {"webhook-id": ""}),
    ]

    for answer in forged:
        assert_refused(answer, 401, "unauthenticated")
    assert ann.call(place.origin, "GET", f"/conversations/{conversation_id}").json()["status"] == "pending"
    assert place.replicate.looked == []


def test_a_call_about_nothing_is_refused(place: Place, ann: User) -> None:
    _, path = place.deferred(ann)
    looked = len(place.replicate.looked)

    assert_refused(place.call(f"/webhooks/replicate/{uuid.uuid4()}", {"id": "heat2o"}), 404, "not_found")
    assert_refused(place.call(path.replace("/replicate/", "/runpod/"), {"id": "heat2o"}), 404, "not_found")
    assert_refused(place.call("/webhooks/replicate/1", {"id": "heat2o"}), 422, "invalid_request")
    assert_refused(place.call(f"/webhooks/groq/{uuid.uuid4()}", {"id": "heat2o"}), 422, "invalid_request")
    assert len(place.replicate.looked) == looked


@pytest.mark.parametrize("content", ["[" * 50_000, '{"id":' * 9_000, "[]", "", "\ud800"])
def test_a_call_that_is_no_json_object_is_refused(place: Place, content: str) -> None:
    answer = httpx.post(
        f"{place.origin}/ai-finance/webhooks/runpod/{uuid.uuid4()}", content=content.encode(errors="surrogatepass")
    )

    assert_refused(answer, 422, "invalid_request")


@pytest.mark.parametrize("token", ["6f1c0a53-77aa-4a52-9f6e-0a3f1f0a6b1d", "no-uuid-and-yet-a-secret"])
def test_the_token_of_a_call_is_not_logged(stack: Stack, place: Place, token: str) -> None:
    before = set(stack.logs.iterdir())
    with stack.functions(**place.settings) as origin:
        httpx.post(f"{origin}/functions/v1/ai-finance/webhooks/runpod/{token}", json={"id": JOB})
    [log] = set(stack.logs.iterdir()) - before

    paths = [json.loads(line).get("path") for line in log.read_text().splitlines() if line.startswith("{")]
    assert "/functions/v1/ai-finance/webhooks/runpod/{token}" in paths
    assert token not in log.read_text()


def test_a_job_that_failed_goes_on_to_the_next_model(stack: Stack, place: Place, ann: User) -> None:
    conversation_id, path = place.deferred(ann)
    place.replicate.looks, place.replicate.status = 0, "failed"

    called = place.call(path, {"id": "heat2o", "status": "failed"})
    with stack.worker(**place.settings):
        told = poll(ann, place.origin, conversation_id)

    assert called.json() == {"over": True}
    assert (told["status"], told["model"], told["response"]) == ("complete", "stand-in", "".join(ANSWER))
    assert len(place.replicate.created) == 1


def test_a_message_that_comes_again_gives_the_work_away_once(stack: Stack, place: Place, ann: User) -> None:
    accepted = ann.ask(place.origin, QUESTION, LATER).json()
    [body] = place.queue.take()

    place.queue.put(body, body, body)
    with stack.worker(**place.settings), stack.worker(**place.settings):
        place.queue.until_done()
        place.until_left_alone(accepted["conversationId"])
    place.replicate.looks = 0
    place.call(place.replicate.created[0].body["webhook"].removeprefix(PUBLIC), {"id": "heat2o"})

    assert len(place.replicate.created) == 1
    assert poll(ann, place.origin, accepted["conversationId"])["status"] == "complete"


def test_a_call_that_never_comes_is_not_waited_for_for_ever(stack: Stack, place: Place, ann: User) -> None:
    conversation_id, path = place.deferred(ann)
    token = path.rpartition("/")[2]
    place.replicate.looks = 0

    place.queue.put(json.dumps({"job": token}))
    with stack.worker(**place.settings):
        told = poll(ann, place.origin, conversation_id)

    assert (told["status"], told["model"]) == ("complete", "near:meta/llama")


def test_a_worker_that_has_just_started_knows_the_served_version_a_job_is_of(
    stack: Stack, place: Place, ann: User
) -> None:
    name = uuid.uuid4().hex
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        put_versions(database, name, {"1": {"provider": "near", "provider_model": "meta/tuned", "is_active": True}})
        try:
            with stack.functions(**place.settings) as origin:
                conversation_id, path = replace(place, origin=origin).deferred(ann)
            place.replicate.looks = 0
            place.queue.empty()  # of the question itself, which the worker before may not have taken off
            place.queue.put(json.dumps({"job": path.rpartition("/")[2]}))
            with stack.worker(**place.settings):
                told = poll(ann, place.origin, conversation_id)
        finally:
            retire(database, name)
        sent_to = database.execute(
            "select routed_version from public.model_calls where conversation_id = %s", [conversation_id]
        ).fetchall()

    assert (told["status"], told["model"]) == ("complete", f"{name}@1")
    assert sent_to == [(f"{name}@1",)]


def test_a_job_whose_time_is_over_is_cancelled_and_the_next_model_asked(stack: Stack, place: Place, ann: User) -> None:
    conversation_id, path = place.deferred(ann)
    token = path.rpartition("/")[2]
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        database.execute("update private.jobs set expires_at = now() where token = %s", [token])

    place.queue.put(json.dumps({"job": token}))
    with stack.worker(**place.settings):
        told = poll(ann, place.origin, conversation_id)

    assert (told["status"], told["model"]) == ("complete", "stand-in")
    assert len(place.replicate.canceled) == 1


def test_runpod_calls_back_unsigned_and_is_asked_again_before_it_is_believed(
    stack: Stack, model: Model, knowledge: None, ann: User
) -> None:
    with placed(stack, model, "pod:abc123, own:stand-in") as place:
        conversation_id, path = place.deferred(ann)
        early = place.call(path, {"id": JOB, "status": "COMPLETED", "output": "believed by nobody"})
        place.runpod.polls = 0
        called = place.call(path, {"id": "another", "status": "COMPLETED"})
        told = ann.call(place.origin, "GET", f"/conversations/{conversation_id}").json()

    assert (early.json(), called.json()) == ({"over": False}, {"over": True})
    assert (told["status"], told["response"], told["model"]) == ("complete", "".join(ANSWER), "pod:abc123")
    assert told["usage"]["estimated"] is True
    assert [asked.job for asked in place.runpod.asked if asked.operation == "status"] == [JOB, JOB]


def test_without_a_secret_replicate_is_waited_for(stack: Stack, model: Model, knowledge: None, ann: User) -> None:
    with placed(stack, model, "near:meta/llama") as place:
        place.replicate.looks = 1
        settings = {**place.settings, "REPLICATE_WEBHOOK_SECRET": ""}
        with stack.functions(**settings) as origin, stack.worker(**settings):
            told = poll(ann, origin, ann.ask(origin, QUESTION, LATER).json()["conversationId"])
            refused = httpx.post(f"{origin}/ai-finance/webhooks/replicate/{uuid.uuid4()}", json={})

    assert (told["status"], told["model"]) == ("complete", "near:meta/llama")
    assert "webhook" not in place.replicate.created[0].body
    assert_refused(refused, 500, "misconfigured")
