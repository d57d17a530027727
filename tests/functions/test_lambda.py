"""ai-finance as Lambda calls it: recorded events into the handler, warm."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.local.stack import Stack
from tests import commands
from tests.stand_ins import ANSWER, Model
from tests.users import User

EVENTS = Path(__file__).with_name("events")


def invoke(stack: Stack, model: Model, user: User, *events: str) -> list[Any]:
    """The handler's results for the events, all in one process."""
    settings = {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in"}
    environment = {**stack.environment, **settings, "TOKEN": user.token}
    files = (EVENTS / f"{event}.json" for event in events)
    done = commands.run(environment, "tests.functions.invoke", *files)
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize("event", ["api_gateway_v2", "function_url"])
def test_answers_twice_in_a_row_over_one_kept_connection(
    stack: Stack, model: Model, knowledge: None, alice: User, event: str
) -> None:
    before = set(model.connections)

    results = invoke(stack, model, alice, event, event)

    assert [result["statusCode"] for result in results] == [200, 200]
    assert [json.loads(result["body"])["response"] for result in results] == ["".join(ANSWER)] * 2
    assert results[0]["headers"]["access-control-allow-origin"] == "*"
    assert len(model.connections - before) == 1


def test_takes_turns_between_http_and_the_queue(stack: Stack, model: Model, knowledge: None, alice: User) -> None:
    results = invoke(stack, model, alice, "api_gateway_v2", "sqs", "function_url")

    assert [results[0]["statusCode"], results[2]["statusCode"]] == [200, 200]
    assert results[1] == {"batchItemFailures": [{"itemIdentifier": "059f36b4-87a3-44ab-83d2-661975830a7d"}]}


def test_no_library_writes_addresses_into_the_log_though_lambda_lets_them() -> None:
    asks = (
        "import logging, functions.deploy_model.handler; print(logging.getLogger('httpx').isEnabledFor(logging.INFO))"
    )
    loud = "import logging; logging.getLogger().setLevel(logging.INFO); " + asks
    done = subprocess.run([sys.executable, "-c", loud], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split() == ["False"]
