"""The built template, deployed whole by osls onto ministack, beside the embedded Supabase and models.

What ministack does otherwise than AWS is tested elsewhere: answers that stream, and Function URLs, by a Runtime API. It
answers preflights itself, so they are invoked here.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import psycopg
import pytest

from infra.aws import deploying, local, packaging, stages
from infra.aws.packaging import FUNCTIONS, RUNNING
from infra.aws.stages import Stage, StageError
from infra.local.stack import Stack
from tests.functions.deployments import Registry
from tests.users import User

SERVICE = "supabase-ai-gateway-local"
QUESTION = "What is GRUBLE the token of?"
DOCUMENT = {"id": "gruble", "content": "# GRUBLE\n\nGRUBLE is the token of the Grubler network."}
WAIT_SECONDS = 40
PACKAGES = packaging.FOLDER / local.ARCHITECTURE
CHARGE = {
    **{"function": "ai-with-rag", "status": "complete", "user_id": None, "error_code": None, "model_version": None},
    **{"input_tokens": 1, "cached_tokens": 0, "output_tokens": 1, "reasoning_tokens": 0, "is_estimated": False},
    **{"cost_usd": "0", "latency_ms": 1},
}
PREFLIGHT = Path(__file__).parents[1] / "functions/events/api_gateway_v2.json"
Found = TypeVar("Found")

# The first test waits for the packages, which are made once and kept, and for CloudFormation.
pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True, slots=True)
class Deployed:
    """What osls has deployed: the API's address, the stack's outputs, and AWS's clients for what is beside it."""

    url: str
    outputs: Mapping[str, str]
    stack: Stack

    def aws(self, service: Any) -> Any:
        return deploying.client(local.stage(self.stack.environment), service)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return httpx.request(method, self.url + path, json=body, headers=headers, timeout=WAIT_SECONDS)

    def as_admin(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.call(method, path, body, apikey=self.stack.keys.secret, **headers)

    def invoke(self, function: str, event: Any, kind: Any = "RequestResponse") -> Any:
        name, payload = f"{SERVICE}-{function}", json.dumps(event).encode()
        answer = self.aws("lambda").invoke(FunctionName=name, InvocationType=kind, Payload=payload)
        return json.loads(answer["Payload"].read() or "null")

    def bodies(self, queue: str) -> list[str]:
        """The messages on a queue, which are gone then."""
        sqs = self.aws("sqs")
        url = self.outputs[f"{queue}Url"]
        found = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1).get("Messages", [])
        for message in found:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return [message["Body"] for message in found]


@pytest.fixture(scope="module")
def deployed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    deploying.package(local.stage(stack.environment), RUNNING)
    with pytest.MonkeyPatch.context() as patch, local.ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        for name, value in local.credentials(endpoint).items():
            patch.setenv(name, value)
        outputs = local.deploy(stack.environment, PACKAGES)
        made = Deployed(outputs["HttpApiUrl"], outputs, stack)
        made.as_admin("PUT", "/functions/v1/ai-with-rag/documents", DOCUMENT).raise_for_status()
        yield made
        made.as_admin("DELETE", f"/ai-with-rag/documents/{DOCUMENT['id']}").raise_for_status()


@pytest.fixture(scope="module")
def user(stack: Stack) -> User:
    return User.sign_up(stack)


@pytest.fixture(scope="module", autouse=True)
def fired(deployed: Deployed) -> datetime:
    """The daily schedule, once more and at once: Scheduler looks every ten seconds, while the other tests run."""
    scheduler, name = deployed.aws("scheduler"), f"{SERVICE}-export-daily"
    daily, moment = scheduler.get_schedule(Name=name), datetime.now(UTC) + timedelta(seconds=1)
    scheduler.create_schedule(
        Name=f"{name}-now",
        ScheduleExpression=f"at({moment:%Y-%m-%dT%H:%M:%S})",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target=daily["Target"],
    )
    return moment


def variables(deployed: Deployed) -> dict[str, str]:
    """What ai-finance has in its environment."""
    told = deployed.aws("lambda").get_function_configuration(FunctionName=f"{SERVICE}-ai-finance")
    found: dict[str, str] = told["Environment"]["Variables"]
    return found


def until(look: Callable[[], Found | None]) -> Found:
    """What is there once it is."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {WAIT_SECONDS} s")


def test_ai_finance_answers_a_signed_in_user(deployed: Deployed, user: User) -> None:
    answer = user.ask(deployed.url, QUESTION)

    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["response"]
    assert user.conversation(deployed.stack, told["conversationId"])["user_id"] == user.user_id


def test_nobody_gets_another_users_answer(deployed: Deployed, user: User) -> None:
    asked = user.ask(deployed.url, QUESTION).json()["conversationId"]
    stranger = User.sign_up(deployed.stack)

    assert user.call(deployed.url, "GET", f"/conversations/{asked}").status_code == 200
    assert stranger.call(deployed.url, "GET", f"/conversations/{asked}").status_code == 404


@pytest.mark.parametrize("token", ["", "Bearer not.a.token"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/functions/v1/ai-finance"),
        ("GET", "/ai-with-rag/documents"),
        ("GET", "/functions/v1/deploy-model"),
        ("POST", "/export-training-data"),
    ],
)
def test_nobody_is_refused_by_each_function(deployed: Deployed, method: str, path: str, token: str) -> None:
    answer = deployed.call(method, path, {"message": QUESTION}, **({"authorization": token} if token else {}))

    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthenticated"


def test_a_user_is_no_admin(deployed: Deployed, user: User) -> None:
    for path in ("/deploy-model", "/export-training-data", "/ai-with-rag/documents"):
        assert deployed.call("GET", path, authorization=f"Bearer {user.token}").status_code == 403


def test_ai_with_rag_answers_a_visitor_from_what_an_admin_has_put(deployed: Deployed) -> None:
    key = deployed.stack.keys.publishable

    answer = deployed.call("POST", "/ai-with-rag", {"message": QUESTION}, apikey=key)

    assert answer.status_code == 200, answer.text
    assert "GRUBLE" in json.dumps(answer.json()["sources"])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_browser_may_ask_from_another_origin(deployed: Deployed, function: str) -> None:
    event = json.loads(PREFLIGHT.read_bytes())
    event["requestContext"]["http"]["method"] = "OPTIONS"

    answer = deployed.invoke(function, event)

    assert answer["statusCode"] == 204
    assert answer["headers"]["access-control-allow-origin"] == "*"
    assert "authorization" in answer["headers"]["access-control-allow-headers"]


def test_a_path_that_is_none_is_the_functions_own_404(deployed: Deployed) -> None:
    answer = deployed.call("GET", "/functions/v1/ai-finance/nothing")

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_an_answer_that_is_asked_for_later_comes_from_the_queue(deployed: Deployed, user: User) -> None:
    begun = user.ask(deployed.url, QUESTION, {"Prefer": "respond-async"})
    assert begun.status_code == 202, begun.text
    path = f"/conversations/{begun.json()['conversationId']}"

    def answered() -> Any:
        told = user.call(deployed.url, "GET", path).json()
        return told if told["status"] != "pending" else None

    told = until(answered)
    assert (told["status"], bool(told["response"])) == ("complete", True)


def test_a_manifest_in_the_training_bucket_is_deployed(deployed: Deployed) -> None:
    s3, bucket = deployed.aws("s3"), deployed.outputs["TrainingBucket"]
    registry = Registry(deployed.stack, deployed.url, s3, None)
    run = {"modelName": registry.name, "version": "run-1", "baseModel": "llama", "metrics": {"loss": 0.1}}
    files = {"config.json": b"{}", "tokenizer.json": b'{"version": "1.0"}', "manifest.json": json.dumps(run).encode()}

    for path, content in files.items():
        s3.put_object(Bucket=bucket, Key=f"{registry.name}/{path}", Body=content)

    version = registry.until("run-1", "ready")
    assert version["performanceMetrics"] == {"training": {"loss": 0.1}}
    assert {file["path"] for file in version["files"]} == {"config.json", "tokenizer.json"}
    assert version["history"][-1]["actor"] == f"s3://{bucket}/{registry.name}/manifest.json"


def test_an_export_that_is_asked_for_later_comes_from_the_queue(deployed: Deployed) -> None:
    begun = deployed.as_admin("POST", "/functions/v1/export-training-data", {}, Prefer="respond-async")
    assert begun.status_code == 202, begun.text
    path = f"/export-training-data/{begun.json()['exportId']}"

    def done() -> Any:
        told = deployed.as_admin("GET", path).json()
        return told if told["status"] not in ("collecting", "writing") else None

    assert until(done)["status"] == "ready"


def test_the_schedule_exports(deployed: Deployed, fired: datetime) -> None:
    def begun() -> Any:
        query = "select options from public.training_exports where actor = 'schedule' and created_at >= %s"
        with psycopg.connect(deployed.stack.database_url) as connection:
            return connection.execute(query, [fired - timedelta(seconds=30)]).fetchone()

    [options] = until(begun)
    assert options["incremental"] is True


def test_a_message_that_always_fails_ends_in_the_dead_letters_and_no_other_with_it(deployed: Deployed) -> None:
    sqs, url = deployed.aws("sqs"), deployed.outputs["AiFinanceQueueUrl"]
    told = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]
    # The same redrive in seconds: a message is hidden for two minutes otherwise, and comes thirty times.
    redrive = json.dumps({**json.loads(told["RedrivePolicy"]), "maxReceiveCount": "3"})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "2", "RedrivePolicy": redrive})
    poison = json.dumps({"nonsense": uuid4().hex})
    charge = json.dumps({"charge": {**CHARGE, "call_id": str(uuid4())}})

    entries = [{"Id": str(at), "MessageBody": body} for at, body in enumerate([charge, poison])]
    sqs.send_message_batch(QueueUrl=url, Entries=entries)

    assert until(partial(deployed.bodies, "AiFinanceDeadLetters")) == [poison]
    assert deployed.bodies("AiFinanceQueue") == []


def test_what_is_logged_is_json_and_says_no_secret(deployed: Deployed) -> None:
    logs, environment = deployed.aws("logs"), deployed.stack.environment
    secrets = [value for name, value in environment.items() if stages.is_secret(name) and value != "local"]
    requests: dict[str, list[Any]] = {}
    for function in FUNCTIONS:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=f"/aws/lambda/{SERVICE}-{function}")
        lines = [event["message"].strip() for page in pages for event in page["events"]]
        told = [line for line in lines if line and not line.startswith(("START ", "END ", "REPORT "))]
        requests[function] = [json.loads(line) for line in told]
        assert not [secret for secret in secrets for line in lines if secret in line]

    for function, told in requests.items():
        assert any(line.get("message") == "request" and line["function"] == function for line in told)
        namespaces = [line["_aws"]["CloudWatchMetrics"][0]["Namespace"] for line in told if "_aws" in line]
        assert set(namespaces) == {"SupabaseAiGateway/local"}
    assert len(secrets) > 2


def test_an_event_that_nobody_knows_ends_in_the_dead_letters(deployed: Deployed) -> None:
    event = {"source": "aws.ec2", "detail": uuid4().hex}
    for function in ("deploy-model", "export-training-data"):
        deployed.invoke(function, event, "Event")

    for queue in ("DeployModelDeadLetters", "ExportTrainingDataDeadLetters"):
        [letter] = until(partial(deployed.bodies, queue))
        assert json.loads(letter)["requestPayload"] == event


def test_a_deployment_is_gone_back_from_and_never_to(deployed: Deployed) -> None:
    first = deploying.deployments(local.stage(deployed.stack.environment))[1]
    stage = deploy_again(deployed, "33")
    deploying.mark(stage)

    deploying.rollback(stage, None, print)

    assert deploying.deployments(stage)[1] == first
    assert variables(deployed)["ANSWER_TOKENS"] == deployed.stack.environment["ANSWER_TOKENS"]
    assert deployed.call("GET", "/ai-finance/usage").status_code == 401
    with pytest.raises(StageError, match="no such deployment to go back to"):
        deploying.rollback(stage, None, print)

    deploy_again(deployed, "44")
    deploying.rollback(stage, None, print)

    assert deploying.deployments(stage)[1] == first
    assert variables(deployed)["ANSWER_TOKENS"] == deployed.stack.environment["ANSWER_TOKENS"]


def deploy_again(deployed: Deployed, answer_tokens: str) -> Stage:
    """The template once more with this setting, which the functions have then."""
    stage = local.stage({**deployed.stack.environment, "ANSWER_TOKENS": answer_tokens})
    deploying.make(stage, PACKAGES)
    deploying.ship(stage, PACKAGES)
    assert variables(deployed)["ANSWER_TOKENS"] == answer_tokens
    return stage
