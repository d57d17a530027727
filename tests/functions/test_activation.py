"""deploy-model: which versions have users, from the gate before it to a canary's end, and back."""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infra.local.stack import Stack
from shared.canary import LEAST
from tests.functions.delivery import deliver, queued
from tests.functions.deployments import Registry, clients
from tests.functions.test_deferred import queue_of
from tests.hosting_stand_ins import KEY, HuggingFace
from tests.scripted_models import Models
from tests.shared.model_files import CONFIG, weights
from tests.sql import retire
from tests.stand_ins import serving
from tests.users import User

EXAMPLES = [
    {"id": f"q{n}", "question": f"What is TON? ({n})", "passages": [{"content": "TON is a coin."}], "expected": [said]}
    for n, said in enumerate(["native coin", "The Open Network", "coin"])
]


@dataclass(slots=True)
class Tuned(Models):
    """Versions that answer as all stand-ins do, but those whose name begins with `bad`, which know nothing."""

    arrived: set[str] = field(default_factory=set)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.arrived.add(body["model"])
        while body["model"] in self.held:  # noqa: ASYNC110  # the test's own thread lets it go
            await asyncio.sleep(0.01)
        if not body["model"].startswith("bad"):
            return await Models.complete(self, request)
        self.asked.append(body)
        if body["model"].startswith("bad-fails"):
            return JSONResponse({"error": {"message": "out of memory"}}, status_code=500)
        message = {"role": "assistant", "content": "Turtles are nice."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49}
        return JSONResponse({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


@pytest.fixture(scope="module")
def provider() -> Iterator[Tuned]:
    models = Tuned()
    with serving(models.app()) as models.url:
        yield models


@pytest.fixture(scope="module")
def settings(provider: Tuned) -> dict[str, str]:
    return {"MODEL_CHAIN": "tuned:chained", **provider.providers("tuned")}


@pytest.fixture(scope="module")
def origin(stack: Stack, settings: dict[str, str], knowledge: None) -> Iterator[str]:
    with stack.functions(**settings) as url:
        yield url


@pytest.fixture
def registry(stack: Stack, origin: str) -> Iterator[Registry]:
    """A model with an evaluation set of its own, none of whose versions are served when the test is over."""
    own = Registry(stack, origin, *clients(stack))
    lines = "\n".join(map(json.dumps, EXAMPLES))
    own.storage.put_object(Bucket="ai-models", Key=f"{own.name}/evaluation.jsonl", Body=lines.encode())
    yield own
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        retire(database, own.name)


def answered_by(registry: Registry, settings: dict[str, str], *users: User) -> list[str]:
    """Who answers each user now."""
    with registry.stack.functions(**settings) as origin:  # others know within five seconds whom users are sent to
        return [str(user.ask(origin, "What is TON?").json()["model"]) for user in users]


def test_a_good_version_passes_the_gate_and_has_all_users(registry: Registry) -> None:
    registry.ready("v1")

    answer = registry.activate("v1", reason="the first")

    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["active"], told["weight"], told["evaluation"]["verdict"]) == ("v1", 1, "passed")
    assert told["evaluation"]["candidate"]["contains"] == 1
    assert registry.served() == {"v1": 1}
    step = registry.row("v1")["history"][0]
    assert (step["action"], step["actor"], step["reason"]) == ("activated", "secret key", "the first")
    assert step["numbers"]["verdict"] == "passed"


def test_a_bad_version_is_refused_with_the_comparison_unless_it_is_forced(registry: Registry) -> None:
    registry.ready("v1", "bad-2")
    assert registry.activate("v1").status_code == 200

    refused = registry.activate("bad-2")

    assert (refused.status_code, refused.json()["code"]) == (409, "gate_refused")
    evaluation = refused.json()["evaluation"]
    assert evaluation["candidate"]["score"] < evaluation["active"]["score"]
    assert evaluation["comparison"]["difference"] < 0
    assert registry.served() == {"v1": 1}
    assert registry.row("bad-2")["performanceMetrics"]["evaluation"]["verdict"] == "failed"
    assert registry.actions("bad-2") == ["registered", "refused"]

    forced = registry.activate("bad-2", force=True, reason="a demonstration")
    assert forced.status_code == 200
    assert registry.served() == {"bad-2": 1}
    assert registry.row("bad-2")["history"][0]["numbers"] == {"forced": True}


def test_an_evaluation_counts_as_long_as_nothing_changes(registry: Registry, provider: Tuned) -> None:
    registry.ready("v1", "v2")
    registry.activate("v1")
    registry.activate("v2", weight=0.1)
    provider.asked.clear()

    assert registry.activate("v2").status_code == 200

    assert provider.asked == []
    assert registry.actions("v2") == ["registered", "canary", "promoted"]


def both_at_once(registry: Registry, provider: Tuned, **how: Any) -> list[httpx.Response]:
    """The answers to two activations, of which neither is done before both have seen what is active."""
    registry.ready("v1", "v2", "v3")
    registry.activate("v1")
    provider.arrived.clear()
    provider.held |= {"v2", "v3"}
    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(registry.activate, version, **how) for version in ("v2", "v3")]
        for _ in range(1000):  # until both are evaluated beside v1
            if provider.arrived >= {"v2", "v3"}:
                break
            time.sleep(0.01)
        provider.held.clear()
        return [each.result() for each in asking]


def test_of_two_activations_at_once_one_wins(registry: Registry, provider: Tuned) -> None:
    answers = both_at_once(registry, provider)

    assert sorted(answer.status_code for answer in answers) == [200, 409]
    [won] = [answer.json()["active"] for answer in answers if answer.status_code == 200]
    [lost] = [answer.json() for answer in answers if answer.status_code == 409]
    assert lost["code"] == "conflict"
    assert registry.served() == {won: 1}


def test_an_evaluation_that_answers_were_missing_from_does_not_count(registry: Registry, provider: Tuned) -> None:
    registry.ready("v1", model="down")
    provider.scripts["down"] = [lambda: Response(status_code=401)] * 100
    assert registry.activate("v1").json()["code"] == "gate_refused"

    provider.scripts.clear()
    answer = registry.activate("v1")

    assert (answer.status_code, answer.json()["active"]) == (200, "v1"), answer.text


def test_an_evaluation_counts_for_the_model_that_was_asked(registry: Registry, stack: Stack) -> None:
    registry.ready("v1", model="bad-1")
    assert registry.activate("v1").json()["code"] == "gate_refused"
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        database.execute(
            "update public.model_metadata set provider_model = 'good' where model_name = %s", [registry.name]
        )

    assert registry.activate("v1").status_code == 200


def test_of_two_canaries_at_once_one_wins(registry: Registry, provider: Tuned) -> None:
    answers = both_at_once(registry, provider, weight=0.1)

    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert len(registry.served()) == 2


def test_a_version_that_cannot_be_asked_is_not_forced_on_users(registry: Registry) -> None:
    registry.deploy(registry.put({"config.json": CONFIG}), provider="no-such", providerModel="m")

    answer = registry.activate("v1", force=True)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "provider" in answer.json()["error"]
    assert registry.served() == {}


@pytest.mark.parametrize("weight", [0, -0.1, 1.5, "half"])
def test_a_weight_is_a_share(registry: Registry, weight: Any) -> None:
    registry.ready("v1")

    answer = registry.activate("v1", weight=weight)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "weight" in answer.json()["error"]


def test_a_canary_needs_an_active_version(registry: Registry) -> None:
    registry.ready("v1")

    answer = registry.activate("v1", weight=0.1)

    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_what_is_not_there_or_cannot_be_asked_is_not_activated(registry: Registry) -> None:
    registry.deploy("upload", files=[{"path": "model.gguf", "sizeBytes": 1, "sha256": "0" * 64}])

    unknown, unready = registry.activate("v9"), registry.activate("v1")

    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert (unready.status_code, unready.json()["code"]) == (409, "conflict")
    source = registry.put({"config.json": CONFIG})
    assert registry.deploy(source).json()["model"]["status"] == "ready"
    unserved = registry.activate("v2")
    assert (unserved.status_code, unserved.json()["code"]) == (422, "invalid_request")
    assert "providerModel" in unserved.json()["error"]


def test_a_served_version_is_not_deleted(registry: Registry) -> None:
    registry.ready("v1", "v2")
    registry.activate("v1")
    registry.activate("v2", weight=0.5)

    for version in ("v1", "v2"):
        answer = registry.call("DELETE", f"/{registry.name}/{version}")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert registry.served() == {"v1": 0.5, "v2": 0.5}


def test_rollbacks_go_back_one_by_one(registry: Registry) -> None:
    registry.ready("v1", "v2", "v3")
    for version in ("v1", "v2"):
        registry.activate(version)
    registry.activate("v3", weight=0.2)

    steps = [registry.call("POST", f"/{registry.name}/rollback", {"reason": "worse"}) for _ in range(3)]

    assert [step.status_code for step in steps] == [200, 200, 409]
    assert [(step.json()["previous"], step.json()["active"]) for step in steps[:2]] == [("v3", "v2"), ("v2", "v1")]
    assert registry.served() == {"v1": 1}
    assert registry.call("POST", "/no-such-model/rollback").status_code == 404


def test_a_rollback_that_names_what_it_takes_back_is_done_once(registry: Registry) -> None:
    registry.ready("v1", "v2", "v3")
    for version in ("v1", "v2", "v3"):
        registry.activate(version)

    first, again = (registry.call("POST", f"/{registry.name}/rollback", {"version": "v3"}) for _ in range(2))

    assert (first.status_code, first.json()["active"]) == (200, "v2")
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert registry.served() == {"v2": 1}


def test_a_worker_evaluates_what_takes_longer_than_a_request(
    registry: Registry, stack: Stack, settings: dict[str, str]
) -> None:
    registry.ready("v1", "bad-2")
    with queue_of(stack) as queue:
        own = {**settings, "DEPLOYMENT_QUEUE_URL": queue.url}
        with stack.functions(**own) as origin, stack.worker("deploy-model", **own):
            later = Registry(stack, origin, registry.training, registry.storage, registry.name)
            for version in ("v1", "bad-2"):
                answer = later.call("POST", f"/{registry.name}/{version}/activate", prefer="respond-async")
                assert (answer.status_code, answer.json()["status"]) == (202, "evaluating")
                _until_over(registry, version)

    assert registry.actions("v1") == ["registered", "activated"]
    assert registry.actions("bad-2") == ["registered", "refused"]
    assert registry.served() == {"v1": 1}


def test_an_activation_that_comes_again_brings_nothing_back(
    registry: Registry, stack: Stack, settings: dict[str, str]
) -> None:
    registry.ready("v1", "v2")
    registry.activate("v1")
    asked = deferred(registry, stack, settings, "v2")
    deliver(stack, "deploy-model", queued(asked), settings)
    assert registry.served() == {"v2": 1}
    registry.call("POST", f"/{registry.name}/rollback")

    deliver(stack, "deploy-model", queued(asked), settings)

    assert registry.served() == {"v1": 1}
    assert registry.actions("v2") == ["registered", "activated", "rolled_back"]


def test_an_evaluation_that_a_worker_has_no_time_for_ends(
    registry: Registry, stack: Stack, settings: dict[str, str], provider: Tuned
) -> None:
    registry.ready("v1", model="slow")
    asked = deferred(registry, stack, settings, "v1")
    provider.held.add("slow")
    with queue_of(stack) as queue:
        own = {**settings, "DEPLOYMENT_QUEUE_URL": queue.url}
        deliver(stack, "deploy-model", queued(asked), own, seconds=6)
        left = queue.take()
    provider.held.clear()

    assert left == []
    assert registry.actions("v1") == ["registered", "not_activated"]
    assert "GATE_EXAMPLES" in registry.row("v1")["history"][0]["reason"]
    assert registry.served() == {}


def test_a_bad_evaluation_set_is_told_of(registry: Registry) -> None:
    registry.ready("v1")
    registry.storage.put_object(Bucket="ai-models", Key=f"{registry.name}/evaluation.jsonl", Body=b"{}\n")

    answer = registry.activate("v1")

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "line 1" in answer.json()["error"]


def test_a_canary_has_its_share_and_users_stay_where_they_are(
    registry: Registry, stack: Stack, settings: dict[str, str]
) -> None:
    registry.ready("v1", "v2")
    registry.activate("v1")
    registry.activate("v2", weight=0.5)
    users = [User.sign_up(stack) for _ in range(14)]

    first, second = answered_by(registry, settings, *users), answered_by(registry, settings, *users)

    assert first == second
    assert set(first) == {f"{registry.name}@v1", f"{registry.name}@v2"}


def simulate(
    registry: Registry, database: psycopg.Connection, version: str, users: int, liked: int, failed: int
) -> None:
    """What users of a version have done: their calls, their thumbs, and what failed."""
    database.execute(
        """
        with people as (
          insert into public.users (auth_user_id) select null from generate_series(1, %(users)s) returning user_id
        ),

        numbered as (select user_id, row_number() over (order by user_id) as number from people),

        answers as (
          insert into public.conversations (user_id, thread_id, message, response, status, model_version, feedback)
          select
            user_id, gen_random_uuid(), 'What is TON?', 'A coin.', 'complete', %(name)s,
            case when number <= %(liked)s then 1 else -1 end
          from numbered
          returning id, user_id, model_version
        )

        insert into public.model_calls (
          id, user_id, function, conversation_id, state, status, model_version, routed_version, latency_ms
        )
        select gen_random_uuid(), user_id, 'ai-finance', id, 'settled', 'complete', %(name)s, %(name)s, 900
        from answers
        """,
        {"users": users, "liked": liked, "name": f"{registry.name}@{version}"},
    )
    database.execute(
        """
        insert into public.model_calls (id, function, state, status, model_version, routed_version)
        select gen_random_uuid(), 'ai-finance', 'settled', 'failed', %(name)s, %(name)s
        from generate_series(1, %(failed)s)
        """,
        {"failed": failed, "name": f"{registry.name}@{version}"},
    )


CASES = {
    "better": ((200, 190, 2), "promoted", {"v2": 1}),
    "less liked": ((200, 90, 2), "rolled_back", {"v1": 1}),
    "failing": ((200, 140, 60), "rolled_back", {"v1": 1}),
    "no different": ((200, 145, 2), "kept", {"v1": 0.5, "v2": 0.5}),
    "hardly used": ((LEAST - 1, LEAST - 1, 0), "kept", {"v1": 0.5, "v2": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_canary_is_promoted_kept_or_rolled_back(registry: Registry, stack: Stack, case: str) -> None:
    (users, liked, failed), action, served = CASES[case]
    registry.ready("v1", "v2")
    registry.activate("v1")
    registry.activate("v2", weight=0.5)
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        simulate(registry, database, "v1", 200, 140, 2)
        simulate(registry, database, "v2", users, liked, failed)

    answer = registry.call("POST", "/canaries")

    [decision] = [each for each in answer.json()["decisions"] if each["modelName"] == registry.name]
    assert (decision["action"], decision["version"]) == (action, "v2")
    assert registry.served() == served
    step = registry.row("v2")["history"][0]
    assert (step["action"], step["reason"]) == (action, decision["reason"])
    assert {each["measure"] for each in step["numbers"]["comparisons"]} == {"feedback", "failures", "latency"}


def test_the_schedule_looks_at_canaries(registry: Registry, stack: Stack, settings: dict[str, str]) -> None:
    registry.ready("v1", "v2")
    registry.activate("v1")
    registry.activate("v2", weight=0.5)
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        simulate(registry, database, "v1", 100, 95, 0)
        simulate(registry, database, "v2", 100, 10, 0)

    deliver(stack, "deploy-model", {"source": "aws.scheduler", "detail-type": "Scheduled Event"}, settings)

    assert registry.served() == {"v1": 1}
    assert registry.row("v2")["history"][0]["actor"] == "schedule"


def test_the_whole_way_from_a_training_job_to_users_and_back(
    registry: Registry, stack: Stack, settings: dict[str, str]
) -> None:
    """Train output → event → Storage → registry → gate → canary → promoted → answers; rollback → answers."""
    user = User.sign_up(stack)
    for version in ("2026-10", "2026-11"):
        run = {
            "modelName": registry.name,
            "version": version,
            "baseModel": "llama-3.1-8b",
            "provider": "tuned",
            "providerModel": f"ton-{version}",
        }
        files = {"model.safetensors": weights(30_000), "config.json": CONFIG}
        registry.put({**files, "manifest.json": json.dumps(run).encode()}, f"{registry.name}/{version}")
        assert registry.until(version, "ready")["isActive"] is False
    assert registry.activate("2026-10").status_code == 200
    assert registry.activate("2026-11", weight=0.5).json()["canary"] == "2026-11"
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        simulate(registry, database, "2026-10", 200, 120, 2)
        simulate(registry, database, "2026-11", 200, 190, 2)

    registry.call("POST", "/canaries")

    assert registry.actions("2026-11") == ["registered", "ready", "canary", "promoted"]
    assert answered_by(registry, settings, user) == [f"{registry.name}@2026-11"]
    assert registry.call("POST", f"/{registry.name}/rollback").json()["active"] == "2026-10"
    assert answered_by(registry, settings, user) == [f"{registry.name}@2026-10"]


def deferred(registry: Registry, stack: Stack, settings: dict[str, str], version: str) -> str:
    """The message by which a worker is asked for an activation."""
    with queue_of(stack) as queue, stack.functions(**settings, DEPLOYMENT_QUEUE_URL=queue.url) as origin:
        later = Registry(stack, origin, registry.training, registry.storage, registry.name)
        assert later.call("POST", f"/{registry.name}/{version}/activate", prefer="respond-async").status_code == 202
        [message] = queue.take()
    return message


def _until_over(registry: Registry, version: str) -> None:
    for _ in range(150):
        if len(registry.row(version)["history"]) > 1:
            return
        time.sleep(0.1)
    raise AssertionError(registry.row(version))


@pytest.fixture
def hosting(registry: Registry, stack: Stack, provider: Tuned) -> Iterator[Registry]:
    """Functions whose Inference Endpoints all have the tuned models' address, and v1 with the files of one."""
    hub = HuggingFace(url=provider.url)
    with serving(hub.app()) as url:
        row = {"base_url": f"{url}/v1", "hosting_url": f"{url}/v2", "dedicated": "http://127.0.0.1:*"}
        rows = {"huggingface": row, "tuned": {"base_url": f"{provider.url}/v1"}}
        chosen = {"NAMESPACE": "ton", "REGION": "us-east-1", "INSTANCE_TYPE": "nvidia-l4", "INSTANCE_SIZE": "x1"}
        environment = {f"HUGGINGFACE_{name}": value for name, value in chosen.items()}
        environment |= {"MODEL_PROVIDERS": json.dumps(rows), "HUGGINGFACE_API_KEY": KEY, "TUNED_API_KEY": "key"}
        with stack.functions(MODEL_CHAIN="tuned:chained", **environment) as origin:
            hosted = Registry(stack, origin, registry.training, registry.storage, registry.name)
            hosted.deploy(hosted.put({"config.json": CONFIG}), provider="huggingface")
            yield hosted


def host(hosting: Registry, repository: str, times: int = 1) -> list[httpx.Response]:
    body = {"repository": repository}
    return [hosting.call("POST", f"/{hosting.name}/v1/host", body) for _ in range(times)]


def endpoint_of(hosting: Registry) -> str:
    """What the version's endpoint is called."""
    return str(hosting.row("v1")["providerModel"].partition("#")[2])


def test_a_version_is_hosted_by_its_provider(hosting: Registry, provider: Tuned) -> None:
    answers = host(hosting, "ton/llama-ton", times=3)
    row = hosting.row("v1")
    [bad] = host(hosting, "../x")

    assert [answer.status_code for answer in answers] == [202, 200, 200]
    assert answers[0].json()["status"] == "starting"
    assert row["providerModel"] == answers[-1].json()["providerModel"]
    assert row["providerModel"].startswith(f"{provider.url}/v1#")
    assert (row["hosting"]["repository"], row["hosting"]["status"]) == ("ton/llama-ton", "ready")
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_request")
    assert hosting.row("v1")["hosting"] == row["hosting"]


def test_other_weights_at_the_same_endpoint_are_evaluated_anew(hosting: Registry, provider: Tuned) -> None:
    host(hosting, "ton/good", times=2)
    alone = hosting.activate("v1", weight=0.1)
    assert (alone.status_code, alone.json()["code"]) == (409, "conflict")
    assert hosting.row("v1")["performanceMetrics"]["evaluation"]["verdict"] == "passed"
    provider.scripts[endpoint_of(hosting)] = [lambda: Response(status_code=401)] * 100

    host(hosting, "ton/bad")
    starting = hosting.activate("v1", force=True)
    host(hosting, "ton/bad")
    refused = hosting.activate("v1")

    assert (starting.status_code, starting.json()["code"]) == (409, "conflict")
    assert "starting" in starting.json()["error"]
    assert (refused.status_code, refused.json()["code"]) == (409, "gate_refused")
    assert hosting.served() == {}


def test_weights_that_are_swapped_while_others_are_evaluated_get_no_users(hosting: Registry, provider: Tuned) -> None:
    host(hosting, "ton/good", times=2)
    endpoint = endpoint_of(hosting)
    provider.held.add(endpoint)

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(hosting.activate, "v1")
        for _ in range(1000):
            if endpoint in provider.arrived:
                break
            time.sleep(0.01)
        swapped = host(hosting, "ton/bad", times=2)
        provider.held.clear()
        answer = asking.result()

    assert [each.status_code for each in swapped] == [202, 200]
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict"), answer.text
    assert hosting.served() == {}


def test_a_version_that_a_rollback_may_bring_back_keeps_its_weights(hosting: Registry) -> None:
    host(hosting, "ton/good", times=2)
    hosting.ready("v2")
    for version in ("v1", "v2"):
        assert hosting.activate(version).status_code == 200

    [other], [same] = host(hosting, "ton/bad"), host(hosting, "ton/good")

    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert "rollback" in other.json()["error"]
    assert (same.status_code, same.json()["status"]) == (200, "ready")


def test_a_version_that_is_asked_elsewhere_meanwhile_gets_no_users(
    registry: Registry, provider: Tuned, stack: Stack
) -> None:
    registry.ready("v1", model="good-1")
    provider.held.add("good-1")

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(registry.activate, "v1")
        for _ in range(1000):
            if "good-1" in provider.arrived:
                break
            time.sleep(0.01)
        with psycopg.connect(stack.database_url, autocommit=True) as database:
            database.execute(
                "update public.model_metadata set provider_model = 'bad-1' where model_name = %s", [registry.name]
            )
        provider.held.clear()
        answer = asking.result()

    assert (answer.status_code, answer.json()["code"]) == (409, "conflict"), answer.text
    assert registry.served() == {}
