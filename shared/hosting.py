"""The handoff to a provider's hosting: an endpoint for a version of its own, made and looked after by its API.

Hugging Face's Inference Endpoints run the weights with vLLM, under the endpoint's name, and have an address each, by
which routing asks them: `provider_model` is `https://….endpoints.huggingface.cloud/v1#the-endpoints-name`. They sleep
after an hour without a question. https://huggingface.co/docs/inference-endpoints, https://api.endpoints.huggingface.cloud

RunPod's serverless endpoints run them with its vLLM worker, which the template names; `provider_model` is the id of the
endpoint. This is its API's version 2, for the first one ends in 2026. https://docs.runpod.io/api-reference-v2

Every other provider has no such API here, or nothing that it would be needed for: what it serves is named as it is.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from shared import routing
from shared.errors import InvalidRequest, Misconfigured, Unavailable
from shared.providers.openai_compatible import retry_after
from shared.settings import Settings, key_name, provider_key

Status = Literal["starting", "ready", "failed"]

CALL_SECONDS = 20
NAME_CHARACTERS = 32  # of an Inference Endpoint's name, which is the strictest
WORDS = 200  # characters of a provider's own
REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
HF_STATES: dict[str, tuple[Status, str]] = {
    "pending": ("starting", "The endpoint waits for a machine."),
    "initializing": ("starting", "The endpoint is starting."),
    "updating": ("starting", "The endpoint is being changed."),
    "running": ("ready", "The endpoint is running."),
    "scaledToZero": ("ready", "The endpoint sleeps, and starts with the next question."),
    "paused": ("failed", "The endpoint is paused: resume it at Hugging Face."),
    "failed": ("failed", "The endpoint has failed: its logs are at Hugging Face."),
    "updateFailed": ("failed", "The endpoint's change has failed: its logs are at Hugging Face."),
}


@dataclass(frozen=True, slots=True)
class Release:
    """A version and where it is on the Hugging Face Hub; `revision` is a commit, a branch or a tag there."""

    model_name: str
    version: str
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Hosted:
    """How it stands with a version: `provider_model` is for its row, and None while it has no address yet.

    `changed` says that what was there has just been made another.
    """

    status: Status
    message: str
    provider_model: str | None
    endpoint: str | None = None
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Api:
    """A provider's hosting API with its key."""

    http: httpx.AsyncClient
    name: str
    base_url: str
    key: SecretStr
    key_name: str

    async def ask(self, method: str, path: str, body: Any = None, absent: int | None = None) -> dict[str, Any] | None:
        """What it answers; None under the status `absent`.

        Raises `Misconfigured` for a key that isn't taken, `InvalidRequest` for what it refuses, with its words, and
        `Unavailable`.
        """
        headers = {"authorization": f"Bearer {self.key.get_secret_value()}"}
        try:
            asked = self.http.request(method, self.base_url + path, json=body, headers=headers, timeout=CALL_SECONDS)
            response = await asked
            answer = response.json() if response.is_success else None
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            raise Unavailable(f"{self.name}'s hosting can't be reached: try again.") from error
        if response.is_success:
            if isinstance(answer, dict):
                return answer
            raise self.unreadable()
        if response.status_code == absent:
            return None
        if response.status_code in (401, 403):
            raise Misconfigured(f"{self.key_name}: {self.name}'s hosting doesn't accept this key.")
        if response.status_code in (408, 425, 429) or not response.is_client_error:
            wait_seconds = int(retry_after(response) or 0) or None
            raise Unavailable(f"{self.name}'s hosting is busy or failing: try again.", wait_seconds)
        raise InvalidRequest(f"{self.name}'s hosting refuses this{self._words(response)}.")

    def unreadable(self) -> Unavailable:
        """For an answer that isn't the API's."""
        return Unavailable(f"{self.name}'s hosting can't be understood: try again.")

    def _words(self, response: httpx.Response) -> str:
        """What the provider says of it, on one line and without the key."""
        try:
            body = response.json()
        except (ValueError, RecursionError):
            return ""
        fields = body if isinstance(body, dict) else {}
        said = [fields.get(name) for name in ("detail", "message", "error")]
        said += fields["errors"] if isinstance(fields.get("errors"), list) else []
        words = " ".join(part for part in said if isinstance(part, str))
        told = " ".join(words.replace(self.key.get_secret_value(), "…").split())
        return f": {told[:WORDS].rstrip('.')}" if told else ""


async def host(http: httpx.AsyncClient, settings: Settings, provider: str, release: Release) -> Hosted:
    """See to it that the provider serves the version, and say how it stands; asked again, it goes on with the same.

    Raises `InvalidRequest` for what the provider can't serve or refuses, `Misconfigured`, naming all settings that are
    missing, and `Unavailable`.
    """
    row = routing.known_providers(settings).get(provider)
    if provider not in HOSTS or row is None or row.hosting_url is None:
        raise InvalidRequest(
            f"providerModel: missing. {provider} hosts nothing from here, name what it serves already."
        )
    if not REPOSITORY.fullmatch(release.repository or ""):
        raise InvalidRequest("repository: not owner/name of a model on the Hugging Face Hub.")
    known_as, serve = HOSTS[provider]
    return await serve(
        Api(http, known_as, row.hosting_url, provider_key(provider), key_name(provider)), settings, release
    )


def endpoint_name(release: Release) -> str:
    """The name of a version's endpoint: lowercase, at most 32 characters, and no other version's.

    Of small letters, digits and single hyphens, with a letter first; what is lost of the version's own is in its hash.
    """
    whole = f"{release.model_name}@{release.version}"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"m-{slug}"
    return f"{slug[: NAME_CHARACTERS - 9].strip('-')}-{digest}"


async def _at_hugging_face(api: Api, settings: Settings, release: Release) -> Hosted:
    """What is there already is left as it is but for other weights or another machine: a change starts it anew."""
    needed = ("huggingface_namespace", "huggingface_region", "huggingface_instance_type", "huggingface_instance_size")
    namespace, region, instance_type, instance_size = _chosen(settings, *needed)
    name = endpoint_name(release)
    place = f"/endpoint/{quote(namespace, safe='')}"
    model = {"repository": release.repository} | ({"revision": release.revision} if release.revision else {})
    compute = {"accelerator": "gpu", "instanceType": instance_type, "instanceSize": instance_size}
    found = await api.ask("GET", f"{place}/{name}", absent=404)
    changed = found is not None and _differs(found, model, compute)
    if found is None:
        gpus = re.fullmatch(r"x(\d+)", instance_size)
        image = {"url": settings.huggingface_image, "port": 8000, "tensorParallelSize": int(gpus[1]) if gpus else 1}
        scaling = {"minReplica": 0, "maxReplica": 1, "scaleToZeroTimeout": 60}  # minutes
        body = {
            "name": name,
            "type": "authenticated",
            "provider": {"vendor": settings.huggingface_vendor, "region": region},
            "compute": {**compute, "scaling": scaling},
            "model": {
                **model,
                "framework": "custom",
                "task": "text-generation",
                "image": {"vLLM": {**image, "healthRoute": "/health"}},
                "args": ["--served-model-name", name],
            },
        }
        found = await api.ask("POST", place, body, absent=409) or await api.ask("GET", f"{place}/{name}")
    elif changed:
        found = await api.ask("PUT", f"{place}/{name}", {"compute": compute, "model": model})
    return replace(_hugging_face_state(api, found, name), changed=changed)


def _differs(found: dict[str, Any], model: dict[str, Any], compute: dict[str, str]) -> bool:
    """Whether an endpoint is another than is wanted; of revisions only commits compare, for it tells no branches."""
    named = {name: value for name, value in model.items() if name != "revision" or COMMIT.fullmatch(value)}
    parts = ((_part(found, "model"), named), (_part(found, "compute"), compute))
    return any(part.get(name) != value for part, wanted in parts for name, value in wanted.items())


def _hugging_face_state(api: Api, found: dict[str, Any] | None, name: str) -> Hosted:
    state = _part(found, "status")
    if not isinstance(state.get("state"), str):
        raise api.unreadable()
    status, message = HF_STATES.get(state["state"], ("starting", "The endpoint is in a state that isn't known here."))
    url = state.get("url")
    if not isinstance(url, str) or not url:
        starting = "starting" if status == "ready" else status
        return Hosted(starting, message, None, name)
    return Hosted(status, message, f"{url.rstrip('/')}/v1#{name}", name)


async def _at_runpod(api: Api, settings: Settings, release: Release) -> Hosted:
    """What is there already is left as it is but for other weights: a change starts its workers anew.

    Two that are asked for at the same moment may both be made, for their names are nothing to RunPod.
    """
    template_id, pools = _chosen(settings, "runpod_template_id", "runpod_gpu_pools")
    name = endpoint_name(release)
    env = {"MODEL_NAME": release.repository} | ({"MODEL_REVISION": release.revision} if release.revision else {})
    listed = (await api.ask("GET", "/serverless") or {}).get("endpoints")
    if not isinstance(listed, list):  # another one of the same name would be made
        raise api.unreadable()
    found = next((row for row in listed if isinstance(row, dict) and row.get("name") == name), None)
    changed = found is not None and any(_part(found, "env").get(variable) != value for variable, value in env.items())
    if found is None:
        body = {
            "name": name,
            "type": "QUEUE",
            "templateId": template_id,
            "env": env,
            "gpu": {"pools": [pool.strip() for pool in pools.split(",") if pool.strip()]},
            "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},  # seconds
        }
        found = await api.ask("POST", "/serverless", body)
    elif changed:
        path = f"/serverless/{quote(str(found.get('id')), safe='')}"
        found = await api.ask("PATCH", path, {"templateId": template_id, "env": env})
    endpoint_id = (found or {}).get("id")
    if not isinstance(endpoint_id, str) or not endpoint_id:
        raise api.unreadable()
    message = "The endpoint takes questions, and starts with the first of them."
    return Hosted("ready", message, endpoint_id, name, changed)


def _chosen(settings: Settings, *names: str) -> list[str]:
    """Settings that may be absent, but not now. Raises `Misconfigured`, naming all that are."""
    missing = [name.upper() for name in names if not getattr(settings, name)]
    if missing:
        raise Misconfigured(f"Missing settings: {', '.join(missing)}, for an endpoint of the version's own.")
    return [str(getattr(settings, name)) for name in names]


def _part(found: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """A part of an answer, empty where there is none."""
    part = (found or {}).get(name)
    return part if isinstance(part, dict) else {}


Hosting = Callable[[Api, Settings, Release], Awaitable[Hosted]]
HOSTS: dict[str, tuple[str, Hosting]] = {
    "huggingface": ("Hugging Face", _at_hugging_face),
    "runpod": ("RunPod", _at_runpod),
}
