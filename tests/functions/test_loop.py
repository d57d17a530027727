"""The loop closed: answers, feedback, training data, a fine-tune job, a version, a canary, and answers of it."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infra.local.stack import Stack
from shared.routing import FRESH_SECONDS
from tests.functions.corpus import Corpus
from tests.functions.deployments import Registry, clients
from tests.functions.test_fine_tunes import BASE
from tests.sql import retire
from tests.stand_ins import Model, serving
from tests.training_stand_ins import KEY, Together
from tests.users import User

ASKED, USERS = 60, 6


@dataclass(slots=True)
class Talking(Model):
    """A server of models, each of which has something else to say to each question."""

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        words = " ".join(uuid4().hex[start : start + 4] for start in range(0, 32, 4))
        said = f"The pool sets the price of the swap, and the fee stays with it: {words} and {words[::-1]}."
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        return JSONResponse(answer | {"usage": usage})


@pytest.fixture
def talking() -> Iterator[Talking]:
    model = Talking()
    with serving(model.app()) as model.url:
        yield model


@pytest.fixture
def together() -> Iterator[Together]:
    stand_in = Together(origin="")
    with serving(stand_in.app()) as stand_in.origin:
        yield stand_in


def test_what_users_liked_becomes_what_answers_them(
    stack: Stack, knowledge: None, talking: Talking, together: Together
) -> None:
    providers = {"together": {"base_url": f"{talking.url}/v1", "tuning_url": f"{together.origin}/v1"}}
    settings = {
        "MODEL_CHAIN": "together:base",
        "MODEL_PROVIDERS": json.dumps(providers),
        "TOGETHER_API_KEY": KEY,
        "EXPORT_QUEUE_URL": "",
        "GATE_EXAMPLES": "4",
        "GATE_MINIMUM": "0",
        "GATE_TOLERANCE": "1",
    }
    with stack.functions(**settings) as origin:
        registry, corpus = Registry(stack, origin, *clients(stack)), Corpus(stack, origin)
        users = [User.sign_up(stack) for _ in range(USERS)]
        for user in users:
            user.client(stack).rpc("set_training_consent", {"consent": True}).execute()
        conversations = [_asked(users[number % USERS], origin, number) for number in range(ASKED)]
        for number, answer in enumerate(conversations):
            _rate(users[number % USERS], stack, answer["conversationId"], -1 if number % 4 == 3 else 1)
        [corpus.model] = {answer["model"] for answer in conversations}

        export = corpus.export(formats=["together"], since=_first_moment(corpus, conversations[0]["conversationId"]))
        wanted = {"provider": "together", "baseModel": BASE["together"], "modelName": registry.name}
        job = corpus.call("POST", f"/{export['exportId']}/fine-tune", wanted).json()
        again = corpus.call("POST", f"/{export['exportId']}/fine-tune", wanted).json()
        for _ in range(10):
            job = corpus.call("POST", f"/fine-tunes/{job['id']}/check").json()
            if job["status"] in ("ready", "failed"):
                break

        assert export["rows"] == 45
        assert job["status"] == "ready", job
        assert again["id"] == job["id"]
        version = registry.row(job["version"])
        assert (version["status"], version["provider"]) == ("ready", "together")
        assert (version["datasetExportId"], version["trainingDataSize"]) == (export["exportId"], _trained(export))
        try:
            served = {"provider": "together", "provider_model": "base", "status": "ready"}
            corpus.sql("select register_model(%s, %s::jsonb, 'v0')", registry.name, json.dumps(served))
            assert registry.activate("v0").status_code == 200
            assert registry.activate(job["version"], weight=0.5).status_code == 200
            assert registry.served() == {"v0": 0.5, job["version"]: 0.5}
            time.sleep(FRESH_SECONDS)
            told = {_asked(user, origin, ASKED)["model"] for user in [*users, *(User.sign_up(stack) for _ in range(8))]}
            assert told - {corpus.model} == {f"{registry.name}@v0", f"{registry.name}@{job['version']}"}
            assert {body["model"] for body in talking.asked} >= {version["providerModel"]}
        finally:
            with psycopg.connect(stack.database_url, autocommit=True) as connection:
                retire(connection, registry.name)


def _asked(user: User, origin: str, number: int) -> Any:
    answer = user.ask(origin, f"What sets the price of swap number {number} of TON?", matchThreshold=-1)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _rate(user: User, stack: Stack, conversation_id: int, feedback: int) -> None:
    rated = user.client(stack).table("conversations").update({"feedback": feedback}).eq("id", conversation_id)
    assert rated.execute().data


def _first_moment(corpus: Corpus, conversation_id: int) -> str:
    [[moment]] = corpus.sql("select created_at from conversations where id = %s", conversation_id)
    return str(moment.isoformat())


def _trained(export: dict[str, Any]) -> int:
    return sum(int(file["rows"]) for file in export["files"] if file["split"] == "train")
