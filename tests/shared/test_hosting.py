"""A version's own endpoint at a provider: made once, asked after, changed where it must be, and routed to."""

import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shared import models
from shared.errors import GatewayError, InvalidRequest, Misconfigured, Unavailable
from shared.hosting import Hosted, Release, endpoint_name, host
from shared.models import Deadline
from shared.routing import Router
from shared.settings import Settings, load
from shared.telemetry import Trace
from tests.hosting_stand_ins import COMMIT, KEY, Hosting, HuggingFace, RunPod, problem
from tests.openai_like_stand_ins import ANSWER, PROVIDERS, LikeOpenAI
from tests.openai_like_stand_ins import KEY as CHAT_KEY
from tests.stand_ins import serving

TLS = ssl.create_default_context()  # read once, not for each client
RELEASE = Release("Acme Finance", "1.2.0", repository="acme/finance-7b")
NAME = endpoint_name(RELEASE)
URL = "https://vksrvs8pc1xnifhq.us-east-1.aws.endpoints.huggingface.cloud"
NEEDED = {
    "huggingface": {
        "HUGGINGFACE_NAMESPACE": "acme",
        "HUGGINGFACE_REGION": "us-east-1",
        "HUGGINGFACE_INSTANCE_TYPE": "nvidia-l4",
        "HUGGINGFACE_INSTANCE_SIZE": "x4",
    },
    "runpod": {"RUNPOD_TEMPLATE_ID": "30zmvf89kd", "RUNPOD_GPU_POOLS": "ADA_24, AMPERE_48"},
}
PLAIN = {
    "SUPABASE_URL": "http://127.0.0.1:9",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_1",
    "SUPABASE_SECRET_KEY": "sb_secret_1",
    "MODEL_NAME": "m",
    "MODEL_BASE_URL": "http://127.0.0.1:9",
    "EMBEDDING_MODEL": "e5",
    "EMBEDDING_BASE_URL": "http://127.0.0.1:9",
}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[Any]]]:
    """One server for all tests, which does as the last of the list says, and its origin."""
    stand_ins: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stand_ins[-1].app()(scope, receive, send)

    with serving(app) as origin:
        yield origin, stand_ins


@pytest.fixture
def hugging_face(server: tuple[str, list[Any]]) -> HuggingFace:
    stand_in = HuggingFace()
    server[1].append(stand_in)
    return stand_in


@pytest.fixture
def runpod(server: tuple[str, list[Any]]) -> RunPod:
    stand_in = RunPod()
    server[1].append(stand_in)
    return stand_in


@pytest.fixture(params=["huggingface", "runpod"])
def either(request: pytest.FixtureRequest, server: tuple[str, list[Any]]) -> tuple[str, Hosting]:
    stand_in = HuggingFace() if request.param == "huggingface" else RunPod()
    server[1].append(stand_in)
    return request.param, stand_in


@pytest.fixture
def settings(server: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """All that is needed for both, whose APIs and dedicated endpoints are the server."""
    row = {"base_url": f"{server[0]}/v1", "hosting_url": f"{server[0]}/v2", "dedicated": "http://127.0.0.1:*"}
    rows = {"huggingface": row, "runpod": {**row, "wire": "runpod"}}
    keys = {"HUGGINGFACE_API_KEY": KEY, "RUNPOD_API_KEY": KEY}
    needed = NEEDED["huggingface"] | NEEDED["runpod"]
    for name, value in {**PLAIN, **keys, **needed, "MODEL_PROVIDERS": json.dumps(rows)}.items():
        monkeypatch.setenv(name, value)
    return load()


@asynccontextmanager
async def connected() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, verify=TLS) as http:
        yield http


async def hosted(settings: Settings, provider: str, release: Release = RELEASE) -> Hosted:
    async with connected() as http:
        return await host(http, settings, provider, release)


async def refused(settings: Settings, provider: str, release: Release = RELEASE) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await hosted(settings, provider, release)
    assert KEY not in f"{error.value!r} {error.value.message}"
    return error.value


@pytest.mark.anyio
async def test_an_inference_endpoint_is_made_for_a_version(settings: Settings, hugging_face: HuggingFace) -> None:
    made = await hosted(settings, "huggingface")

    assert made == Hosted("starting", "The endpoint waits for a machine.", None, NAME)
    assert hugging_face.calls == [f"GET /v2/endpoint/acme/{NAME}", "POST /v2/endpoint/acme"]
    assert hugging_face.asked[-1][2] == {
        "name": NAME,
        "type": "authenticated",
        "provider": {"vendor": "aws", "region": "us-east-1"},
        "compute": {
            "accelerator": "gpu",
            "instanceType": "nvidia-l4",
            "instanceSize": "x4",
            "scaling": {"minReplica": 0, "maxReplica": 1, "scaleToZeroTimeout": 60},
        },
        "model": {
            "repository": "acme/finance-7b",
            "framework": "custom",
            "task": "text-generation",
            "image": {
                "vLLM": {
                    "url": "vllm/vllm-openai:v0.23.0",
                    "port": 8000,
                    "tensorParallelSize": 4,
                    "healthRoute": "/health",
                }
            },
            "args": ["--served-model-name", NAME],
        },
    }


@pytest.mark.anyio
async def test_an_inference_endpoint_is_asked_after_until_it_has_an_address(
    settings: Settings, hugging_face: HuggingFace
) -> None:
    hugging_face.state = "initializing"
    told = [await hosted(settings, "huggingface") for _ in range(2)]
    hugging_face.state = "running"
    told.append(await hosted(settings, "huggingface"))

    assert [(each.status, each.provider_model) for each in told] == [
        ("starting", None),
        ("starting", None),
        ("ready", f"{URL}/v1#{NAME}"),
    ]
    assert [call.partition(" ")[0] for call in hugging_face.calls] == ["GET", "POST", "GET", "GET"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("state", "status", "has_address"),
    [
        ("pending", "starting", False),
        ("initializing", "starting", False),
        ("updating", "starting", True),
        ("running", "ready", True),
        ("scaledToZero", "ready", True),
        ("paused", "failed", False),
        ("failed", "failed", False),
        ("updateFailed", "failed", True),
        ("brandNew", "starting", True),
    ],
)
async def test_a_state_of_hugging_face_is_one_of_ours(
    settings: Settings, hugging_face: HuggingFace, state: str, status: str, has_address: bool
) -> None:
    await hosted(settings, "huggingface")
    hugging_face.state = state

    told = await hosted(settings, "huggingface")

    assert (told.status, told.provider_model is not None) == (status, has_address)
    assert told.message.endswith(".")


@pytest.mark.anyio
async def test_a_running_endpoint_without_an_address_is_not_ready(
    settings: Settings, hugging_face: HuggingFace
) -> None:
    hugging_face.url = None
    await hosted(settings, "huggingface")

    told = await hosted(settings, "huggingface")

    assert (told.status, told.provider_model) == ("starting", None)


@pytest.mark.anyio
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
async def test_an_inference_endpoint_with_the_same_weights_is_left_alone(
    settings: Settings, hugging_face: HuggingFace, revision: str | None
) -> None:
    release = Release("a", "1", repository="acme/a", revision=revision)
    await hosted(settings, "huggingface", release)
    [endpoint] = hugging_face.endpoints.values()
    endpoint["model"]["revision"] = COMMIT  # what a branch stands for

    told = await hosted(settings, "huggingface", release)

    assert told.status == "ready"
    assert not [call for call in hugging_face.calls if call.startswith("PUT")]


@pytest.mark.anyio
async def test_an_inference_endpoint_with_other_weights_is_changed(
    settings: Settings, hugging_face: HuggingFace
) -> None:
    await hosted(settings, "huggingface")
    other = Release(RELEASE.model_name, RELEASE.version, repository="acme/finance-8b", revision="0" * 40)

    told = await hosted(settings, "huggingface", other)

    assert (told.status, told.message) == ("starting", "The endpoint is being changed.")
    assert hugging_face.asked[-1] == (
        "PUT",
        f"/v2/endpoint/acme/{NAME}",
        {
            "compute": {"accelerator": "gpu", "instanceType": "nvidia-l4", "instanceSize": "x4"},
            "model": {"repository": "acme/finance-8b", "revision": "0" * 40},
        },
    )


@pytest.mark.anyio
async def test_an_endpoint_that_somebody_makes_at_the_same_moment_is_taken(
    settings: Settings, hugging_face: HuggingFace
) -> None:
    await hosted(settings, "huggingface")
    hugging_face.instead = [JSONResponse({"error": "Endpoint not found"}, 404)]

    told = await hosted(settings, "huggingface")

    assert told.status == "ready"
    assert [call.partition(" ")[0] for call in hugging_face.calls[2:]] == ["GET", "POST", "GET"]


@pytest.mark.anyio
async def test_a_serverless_endpoint_is_made_for_a_version(settings: Settings, runpod: RunPod) -> None:
    made = await hosted(settings, "runpod", Release("a", "1", repository="acme/a", revision="v1"))

    assert (made.status, made.provider_model) == ("ready", "4m7x2k9q0")
    assert runpod.calls == ["GET /v2/serverless", "POST /v2/serverless"]
    assert runpod.asked[-1][2] == {
        "name": made.endpoint,
        "type": "QUEUE",
        "templateId": "30zmvf89kd",
        "env": {"MODEL_NAME": "acme/a", "MODEL_REVISION": "v1"},
        "gpu": {"pools": ["ADA_24", "AMPERE_48"]},
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    }


@pytest.mark.anyio
async def test_a_serverless_endpoint_is_made_once_and_changed_for_other_weights(
    settings: Settings, runpod: RunPod
) -> None:
    other = Release(RELEASE.model_name, RELEASE.version, repository="acme/finance-8b")

    told = [await hosted(settings, "runpod", release) for release in (RELEASE, RELEASE, other, other)]

    assert {each.provider_model for each in told} == {"4m7x2k9q0"}
    assert [call.partition(" ")[0] for call in runpod.calls] == ["GET", "POST", "GET", "GET", "PATCH", "GET"]
    [endpoint] = runpod.endpoints.values()
    assert endpoint["env"] == {"MAX_MODEL_LEN": "4096", "MODEL_NAME": "acme/finance-8b"}


@pytest.mark.anyio
async def test_two_versions_have_two_endpoints(settings: Settings, either: tuple[str, Hosting]) -> None:
    provider, stand_in = either

    for version in ("1", "2"):
        await hosted(settings, provider, Release("a", version, repository="acme/a"))

    assert len(stand_in.endpoints) == 2


@pytest.mark.anyio
async def test_a_provider_without_hosting_needs_a_model_that_it_serves(settings: Settings) -> None:
    told = await refused(settings, "groq")

    assert isinstance(told, InvalidRequest)
    assert told.message == "providerModel: missing. groq hosts nothing from here, name what it serves already."


@pytest.mark.anyio
@pytest.mark.parametrize("repository", [None, "", "finance", "acme/finance/7b", "acme/finance 7b", "../acme/x"])
async def test_weights_are_a_repository_of_the_hub(
    settings: Settings, either: tuple[str, Hosting], repository: str | None
) -> None:
    told = await refused(settings, either[0], Release("a", "1", repository=repository))

    assert isinstance(told, InvalidRequest)
    assert told.message == "repository: not owner/name of a model on the Hugging Face Hub."
    assert either[1].asked == []


@pytest.mark.anyio
async def test_all_settings_that_are_missing_are_named(
    settings: Settings, either: tuple[str, Hosting], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, stand_in = either
    for name in NEEDED[provider]:
        monkeypatch.delenv(name)

    told = await refused(load(), provider)

    assert isinstance(told, Misconfigured)
    assert told.message == f"Missing settings: {', '.join(NEEDED[provider])}, for an endpoint of the version's own."
    assert stand_in.asked == []


@pytest.mark.anyio
async def test_a_key_that_is_missing_or_not_taken_is_named(
    settings: Settings, either: tuple[str, Hosting], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{either[0].upper()}_API_KEY"
    monkeypatch.setenv(name, "hidden")
    wrong = await refused(settings, either[0])
    monkeypatch.delenv(name)
    missing = await refused(settings, either[0])

    assert (type(wrong), type(missing)) == (Misconfigured, Misconfigured)
    assert wrong.message.startswith(f"{name}: ") and "hidden" not in wrong.message
    assert name in missing.message


@pytest.mark.anyio
async def test_a_machine_that_does_not_exist_is_refused_in_the_provider_s_words(
    settings: Settings, hugging_face: HuggingFace
) -> None:
    told = await refused(settings.model_copy(update={"huggingface_instance_size": "x9"}), "huggingface")

    words = "Instance compute 'Gpu' - 'nvidia-l4' - 'x9' in 'aws' - 'us-east-1' not found"
    assert (told.code, told.message) == ("invalid_request", f"Hugging Face's hosting refuses this: {words}.")


@pytest.mark.anyio
async def test_a_template_that_does_not_exist_is_refused_in_the_provider_s_words(
    settings: Settings, runpod: RunPod
) -> None:
    told = await refused(settings.model_copy(update={"runpod_template_id": "another"}), "runpod")

    assert (told.code, told.message) == ("invalid_request", "RunPod's hosting refuses this: template not found.")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (lambda: JSONResponse({"error": f"no {KEY}\nhere."}, 400), InvalidRequest, "refuses this: no … here."),
        (lambda: problem(422, "x", "Bad.", errors=["$: a", 7]), InvalidRequest, "refuses this: Bad. $: a."),
        (lambda: JSONResponse({"error": {"code": 1}}, 400), InvalidRequest, "refuses this."),
        (lambda: Response("<html>", 402), InvalidRequest, "refuses this."),
        (lambda: JSONResponse({"error": "x" * 999}, 400), InvalidRequest, f"refuses this: {'x' * 200}."),
        (lambda: Response(status_code=403), Misconfigured, "doesn't accept this key."),
        (
            lambda: Response(status_code=429, headers={"retry-after": "7"}),
            Unavailable,
            "is busy or failing: try again.",
        ),
        (lambda: Response("<html>", 502), Unavailable, "is busy or failing: try again."),
        (lambda: Response("", 302, {"location": "http://127.0.0.1:9"}), Unavailable, "is busy or failing: try again."),
        (lambda: Response("<html>", 200), Unavailable, "can't be reached: try again."),
        (lambda: Response("[" * 99_999, 200), Unavailable, "can't be reached: try again."),
        (lambda: JSONResponse([]), Unavailable, "can't be understood: try again."),
        (lambda: JSONResponse({}), Unavailable, "can't be understood: try again."),
    ],
    ids=[
        *("with the key", "with several words", "without words", "no JSON", "many words", "forbidden", "too often"),
        *("down", "elsewhere", "garbage", "deep", "a list", "nothing"),
    ],
)
async def test_errors_are_ours(
    settings: Settings, either: tuple[str, Hosting], answer: Any, kind: type[GatewayError], message: str
) -> None:
    either[1].instead = [answer(), answer()]

    told = await refused(settings, either[0])

    assert type(told) is kind
    assert told.message.endswith(message)
    assert told.retry_after_seconds == (7 if "busy" in message and answer().status_code == 429 else None)


@pytest.mark.anyio
async def test_a_provider_that_cannot_be_reached_is_unavailable(settings: Settings) -> None:
    row = (settings.model_providers or {})["runpod"].model_copy(update={"hosting_url": "http://127.0.0.1:9"})

    told = await refused(settings.model_copy(update={"model_providers": {"runpod": row}}), "runpod")

    assert isinstance(told, Unavailable)


@pytest.mark.parametrize(
    ("model", "version", "start"),
    [
        ("acme", "1", "acme-1-"),
        ("Acme Finance", "1.2.0", "acme-finance-1-2-0-"),
        ("7b", "1", "m-7b-1-"),
        ("ünïcödé", "№1", "n-c-d-1-"),
        ("финансы", "1", "m-1-"),
        ("a" * 200, "b" * 200, "a" * 23 + "-"),
        ("--a--", "--", "a-"),
        ("", "", "m-"),
    ],
)
def test_an_endpoint_s_name_is_its_version_s(model: str, version: str, start: str) -> None:
    name = endpoint_name(Release(model, version))

    assert name.startswith(start)
    assert len(name) <= 32
    assert name == endpoint_name(Release(model, version)) != endpoint_name(Release(model, f"{version}x"))
    assert all(part.isalnum() and part.isascii() and part == part.lower() for part in name.split("-"))


def test_names_that_look_the_same_are_not() -> None:
    names = {endpoint_name(Release(*parts)) for parts in (("a-1", "2"), ("a", "1-2"), ("A", "1-2"), ("a", "1.2"))}

    assert len(names) == 4


@pytest.mark.anyio
@pytest.mark.parametrize(("fragment", "model"), [("", "tgi"), ("#acme-1", "acme-1")])
async def test_routing_asks_a_dedicated_endpoint_by_its_address(
    settings: Settings,
    server: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    fragment: str,
    model: str,
) -> None:
    endpoint = LikeOpenAI(replace(PROVIDERS["dedicated"], models=(model,)))
    server[1].append(endpoint)
    monkeypatch.setenv("HUGGINGFACE_API_KEY", CHAT_KEY)

    async with connected() as http:
        router = Router.open(settings, http)
        version = router.model("huggingface", f"{server[0]}/v1{fragment}", "acme@1")
        reply = await models.generate(
            router.only(version), [{"role": "user", "content": "What is TON?"}], Deadline.after(10), Trace("r1")
        )

    assert (reply.text, reply.model) == (ANSWER, "acme@1")
    assert [body["model"] for body in endpoint.asked] == [model]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/v1#m",
        "https://endpoints.huggingface.cloud.evil.example/v1",
        "https://evil.example/x.endpoints.huggingface.cloud",
        "https://evil.example?.endpoints.huggingface.cloud",
        "https://evil.example#.endpoints.huggingface.cloud",
        "https://evil.example\\.endpoints.huggingface.cloud/v1",
        "https://evil.example:1@x.endpoints.huggingface.cloud/v1",
        "http://x.endpoints.huggingface.cloud/v1",
        "https://X.ENDPOINTS.HUGGINGFACE.CLOUD/v1",
        "https://[x.endpoints.huggingface.cloud/v1",
        "ftp://x.endpoints.huggingface.cloud/v1",
    ],
)
async def test_a_key_goes_to_no_address_but_the_provider_s(settings: Settings, address: str) -> None:
    async with connected() as http:
        router = Router.open(settings.model_copy(update={"model_providers": None}), http)
        known = router.model("huggingface", f"{URL}/v1#acme-1", "acme@1")
        with pytest.raises(InvalidRequest, match=r"^providerModel: huggingface has no endpoint at this address\.$"):
            router.model("huggingface", address, "acme@1")
        with pytest.raises(InvalidRequest):
            router.model("groq", f"{URL}/v1", "acme@1")

    assert (known.base_url, known.model, known.name) == (f"{URL}/v1", "acme-1", "acme@1")
