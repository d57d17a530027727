"""Secrets from the Parameter Store: signed as botocore signs, read together, and read anew."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import boto3
import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from pydantic import SecretStr

from infra.local.stack import Stack
from shared import parameters
from shared.errors import Misconfigured, Unavailable
from shared.parameters import Parameters
from shared.settings import AwsAccount, ParameterNames
from tests.users import User

PATH = "/gateway/test"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
pytestmark = pytest.mark.anyio


def account(token: str | None) -> AwsAccount:
    url = "https://ssm.eu-west-1.amazonaws.com/"
    return AwsAccount(url, "eu-west-1", "AKIDEXAMPLE", SecretStr("secret/key"), SecretStr(token) if token else None)


@dataclass
class Store:
    """SSM as its API is documented, with what it was asked."""

    values: dict[str, str] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)
    refusal: tuple[int, dict[str, str]] | None = None

    def answer(self, request: httpx.Request) -> httpx.Response:
        names = json.loads(request.content)["Names"]
        self.asked.append(names)
        if self.refusal:
            status, body = self.refusal
            return httpx.Response(status, json=body)
        found = [{"Name": name, "Value": self.values[name]} for name in names if name in self.values]
        absent = [name for name in names if name not in self.values]
        return httpx.Response(200, json={"Parameters": found, "InvalidParameters": absent})


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def http(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(store.answer)) as client:
        yield client


def reading(http: httpx.AsyncClient, names: Sequence[str], seconds: float = 300) -> Parameters:
    return Parameters(ParameterNames(PATH, tuple(names), seconds), account(None), http)


@pytest.mark.parametrize("token", ["session", None])
def test_a_call_is_signed_as_botocore_signs_it(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    body, ours = b'{"Names": ["/a"]}', account(token)
    credentials = Credentials(ours.access_key_id, ours.secret_access_key.get_secret_value(), token)
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "AmazonSSM.GetParameters"}
    theirs = AWSRequest(method="POST", url=ours.ssm_url, data=body, headers=headers)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda **_: NOW)
    SigV4Auth(credentials, "ssm", "eu-west-1").add_auth(theirs)

    assert (
        parameters.signed(ours, "AmazonSSM.GetParameters", body, NOW)["authorization"]
        == theirs.headers["Authorization"]
    )


async def test_those_that_are_there_are_read_together(store: Store, http: httpx.AsyncClient) -> None:
    names = [f"KEY_{number}" for number in range(12)]
    store.values = {f"{PATH}/{name}": name.lower() for name in names[:11]}
    kept = reading(http, names)

    first, second = await kept.read(), await kept.read()

    assert first == second == {name: name.lower() for name in names[:11]}
    assert sorted(map(len, store.asked)) == [2, 10]


async def test_they_are_read_anew_when_they_are_old(store: Store, http: httpx.AsyncClient) -> None:
    store.values = {f"{PATH}/A": "old", f"{PATH}/B": "gone"}
    kept = reading(http, ["A", "B"], seconds=0)
    before = await kept.read()

    store.values = {f"{PATH}/A": "new"}
    after = await kept.read()

    assert (before, after) == ({"A": "old", "B": "gone"}, {"A": "new"})


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        ((400, {"__type": "AccessDeniedException", "Message": "not authorized: arn"}), Misconfigured),
        ((400, {"__type": "ThrottlingException"}), Unavailable),
        ((503, {}), Unavailable),
    ],
    ids=["denied", "throttled", "down"],
)
async def test_that_they_cannot_be_read_is_said_until_they_once_were(
    store: Store, http: httpx.AsyncClient, refusal: tuple[int, dict[str, str]], error: type[Exception]
) -> None:
    kept = reading(http, ["A"], seconds=0)
    store.values, store.refusal = {f"{PATH}/A": "known"}, refusal
    with pytest.raises(error) as refused:
        await kept.read()

    store.refusal = None
    before = await kept.read()
    store.refusal = refusal
    after = await kept.read()

    assert "arn" not in str(refused.value)
    assert before == after == {"A": "known"}


@pytest.fixture(scope="module")
def ssm(stack: Stack) -> Iterator[Any]:
    client = boto3.client("ssm", **_client_options(stack))
    yield client
    client.close()


def test_a_function_takes_its_secrets_from_there_and_sees_them_change(stack: Stack, ssm: Any) -> None:
    user = User.sign_up(stack)
    put(ssm, "SUPABASE_SECRET_KEY", stack.keys.secret)
    settings = {"PARAMETERS": "SUPABASE_SECRET_KEY,GROQ_API_KEY", "PARAMETERS_PATH": PATH, "PARAMETERS_SECONDS": "0"}
    headers = {"apikey": stack.keys.secret}
    with stack.functions(SUPABASE_SECRET_KEY="", **settings) as origin, httpx.Client(trust_env=False) as http:
        documents = f"{origin}/functions/v1/ai-with-rag/documents"
        asked = user.call(origin, "GET", "/threads")
        before = http.get(documents, headers=headers)
        put(ssm, "SUPABASE_SECRET_KEY", "sb_secret_rotated")
        after = http.get(documents, headers=headers)
        ssm.delete_parameter(Name=f"{PATH}/SUPABASE_SECRET_KEY")
        rotated = http.get(documents, headers={"apikey": "sb_secret_rotated"})

    assert asked.status_code == 200, asked.text
    assert (before.status_code, after.status_code) == (200, 401), after.text
    assert rotated.status_code != 500, "a secret that is gone takes a function down that has a good one"


def test_where_they_are_is_a_setting_too(stack: Stack) -> None:
    user = User.sign_up(stack)
    with stack.functions(PARAMETERS="SUPABASE_SECRET_KEY", PARAMETERS_PATH="gateway") as origin:
        answer = user.call(origin, "GET", "/threads")

    assert answer.status_code == 500
    assert answer.json()["error"] == "Missing or malformed settings: PARAMETERS_PATH, PARAMETERS_SECONDS."


def put(ssm: Any, name: str, value: str) -> None:
    ssm.put_parameter(Name=f"{PATH}/{name}", Value=value, Type="SecureString", Overwrite=True)


def _client_options(stack: Stack) -> dict[str, Any]:
    environment = stack.environment
    return {
        "endpoint_url": environment["AWS_ENDPOINT_URL"],
        "region_name": environment["AWS_REGION"],
        "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
    }
