"""The environment, typed; read here only, at the first request and not at import."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    SecretStr,
    ValidationError,
    ValidationInfo,
)

from shared.errors import Misconfigured

Url = Annotated[str, Field(pattern=r"^https?://"), AfterValidator(lambda url: url.rstrip("/"))]
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_PARAMETERS: dict[str, str] = {}  # settings from the Parameter Store, by their names
Usd = Annotated[Decimal | None, Field(ge=0, allow_inf_nan=False)]


class Provider(BaseModel):
    """A server of models: its address, without the path of a call, and its wire.

    `dedicated` is where else it serves models, each at an endpoint of its own, with * for what differs; such endpoints
    are made at `hosting_url`. Models are fine-tuned at `tuning_url`.
    """

    base_url: Url
    wire: Literal["openai", "replicate", "runpod"] = "openai"
    dedicated: str | None = None
    hosting_url: Url | None = None
    tuning_url: Url | None = None


class ModelFacts(BaseModel):
    """What is known of a model; prices are USD for a million tokens, and None is what its provider's models have.

    `base_url` and `key_name` are for a model with an address or a key of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: Url | None = None
    key_name: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    system_prompt: bool | None = None
    input_usd: Usd = None
    cached_input_usd: Usd = None
    output_usd: Usd = None
    reasoning_usd: Usd = None


def _read(path: str | None) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise ValueError("no file that can be read") from error


def _needed_without_a_chain(value: str | None, info: ValidationInfo) -> str | None:
    if value is None and not info.data.get("model_chain"):
        raise ValueError("missing")
    return value


class Settings(BaseModel):
    """Every setting of every function, by its variable's name; secrets never show in a repr."""

    model_config = ConfigDict(alias_generator=str.upper, protected_namespaces=(), defer_build=True)

    supabase_url: Url
    supabase_publishable_key: str = Field(
        validation_alias=AliasChoices("SUPABASE_PUBLISHABLE_KEY", "SUPABASE_ANON_KEY")
    )
    supabase_secret_key: SecretStr = Field(
        validation_alias=AliasChoices("SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY")
    )
    # Access tokens: HS256 with the secret, or ES256/RS256 with the project's key set, fetched or given inline.
    supabase_jwt_secret: SecretStr | None = None
    supabase_jwks: Json[dict[str, Any]] | None = None
    supabase_jwks_url: str = Field(default_factory=lambda data: f"{data['supabase_url']}/auth/v1/.well-known/jwks.json")
    supabase_jwt_issuer: str = Field(default_factory=lambda data: f"{data['supabase_url']}/auth/v1")

    # The models in the order they are asked, as "provider:model, …"; without it the one at the address, which is any
    # OpenAI-compatible server's.
    model_chain: str | None = None
    model_providers: Json[dict[str, Provider]] | None = None
    model_base_url: Annotated[str | None, Field(pattern=r"^https?://"), AfterValidator(_needed_without_a_chain)] = (
        Field(None, validate_default=True)
    )
    model_name: Annotated[str | None, AfterValidator(_needed_without_a_chain)] = Field(None, validate_default=True)
    model_api_key: SecretStr = SecretStr("none")
    # Which of them a request may name besides, and who takes over where a question is too long or isn't acceptable.
    allowed_models: str | None = None
    context_fallbacks: str | None = None
    content_fallbacks: str | None = None
    # What is known of models, by "provider:model", "provider:*" or "*": addresses, limits, prices.
    models: Json[dict[str, ModelFacts]] | None = None
    models_file: Annotated[Json[dict[str, ModelFacts]] | None, BeforeValidator(_read)] = None
    # A provider that fails so often in a row rests for so long.
    breaker_failures: int = Field(5, ge=1)
    breaker_seconds: float = Field(30, gt=0)
    # "provider:model", or a model of the OpenAI-compatible server at the address; threshold and dimensions are
    # the model's own unless they are set.
    embedding_model: str
    embedding_base_url: str | None = Field(None, pattern=r"^https?://")
    embedding_api_key: SecretStr = SecretStr("none")
    embedding_dimensions: int | None = Field(None, ge=1, le=1536)
    embedding_threshold: float | None = Field(None, ge=-1, le=1)

    # Where answers go that can't be written, or that nobody waits for: an SQS queue of the same function.
    queue_url: str | None = None
    answer_tries: int = Field(3, ge=1)
    # ai-finance's address, for providers that call back, and the secret by which Replicate signs.
    webhook_url: Url | None = None
    replicate_webhook_secret: SecretStr | None = None

    # Where the models' files are kept: a bucket of Supabase Storage, written through its S3 protocol.
    models_bucket: str = "ai-models"
    storage_s3_url: Url = Field(default_factory=lambda data: f"{data['supabase_url']}/storage/v1/s3")
    s3_protocol_access_key_id: str | None = None
    s3_protocol_access_key_secret: SecretStr | None = None
    s3_protocol_region: str = "us-east-1"
    # Where they may come from: hosts for https, "*." before their domains, and the bucket whose manifests start
    # deployments by themselves.
    source_hosts: str = "huggingface.co, *.huggingface.co, *.hf.co"
    allow_private_sources: bool = False
    training_bucket: str | None = None
    # An SQS queue of deploy-model's own, for what takes longer than a request.
    deployment_queue_url: str | None = None
    # And one of export-training-data's. Beyond so many conversations several of its workers collect them.
    export_queue_url: str | None = None
    export_shard_rows: int = Field(250_000, ge=1000)

    message_characters: int = Field(4000, ge=1)
    prompt_tokens: int = Field(3000, ge=200)
    answer_tokens: int = Field(500, ge=1)
    answer_characters: int = Field(20_000, ge=100)
    cache_seconds: int = Field(3600, ge=0)
    stall_seconds: float = Field(20, gt=0)
    turns_per_minute: int = Field(20, ge=1)
    anonymous_turns_per_minute: int = Field(5, ge=1)
    searches_per_minute: int = Field(60, ge=1)
    anonymous_searches_per_minute: int = Field(15, ge=1)
    request_timeout_seconds: float = Field(28, gt=0)  # API Gateway gives up at 30

    # Where a version's own endpoint is made, by the provider's names for it; `hosting` says what is needed.
    huggingface_namespace: str | None = None
    huggingface_vendor: str = "aws"
    huggingface_region: str | None = None
    huggingface_instance_type: str | None = None
    huggingface_instance_size: str | None = None
    huggingface_image: str = "vllm/vllm-openai:v0.23.0"
    runpod_template_id: str | None = None
    runpod_gpu_pools: str | None = None

    # The gate before a version's activation: the score it must have, how much less than the active one's it may be, at
    # most how many examples are asked, and how many at once.
    gate_minimum: float = Field(0.5, ge=0, le=1)
    gate_tolerance: float = Field(0.05, ge=0, le=1)
    gate_examples: int = Field(100, ge=1, le=500)
    gate_concurrency: int = Field(4, ge=1, le=64)


@dataclass(frozen=True, slots=True)
class ParameterNames:
    """The settings that stand in SSM's Parameter Store, each at `path/NAME`, and for how long they are good."""

    path: str
    names: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class AwsAccount:
    """Who asks SSM, and where it is: Lambda sets all of it."""

    ssm_url: str
    region: str
    access_key_id: str
    secret_access_key: SecretStr
    session_token: SecretStr | None


def load() -> Settings:
    """The settings as they are now. Raises `Misconfigured`, naming all that is missing or malformed."""
    try:
        return Settings.model_validate({name: value for name, value in _variables().items() if value})
    except ValidationError as error:
        problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        names = sorted({str(problem["loc"][0]).upper() for problem in problems})
        raise Misconfigured(f"Missing or malformed settings: {', '.join(names)}.") from None


def provider_key(provider: str, name: str | None = None) -> SecretStr:
    """The key of a provider of models, or the one of that name. Raises `Misconfigured`, naming the setting."""
    name = name or key_name(provider)
    if value := _variables().get(name):
        return SecretStr(value)
    raise Misconfigured(f"Missing settings: {name}, the key for models of {provider}.")


def key_name(provider: str) -> str:
    """The setting with the key of a provider of models."""
    return f"{re.sub(r'[^A-Z0-9]', '_', provider.upper())}_API_KEY"


def keep(parameters: Mapping[str, str]) -> None:
    """What the Parameter Store holds for settings: it goes before the environment, and in place of what was kept."""
    _PARAMETERS.clear()
    _PARAMETERS.update(parameters)


def parameter_names() -> ParameterNames | None:
    """The settings to be read from the Parameter Store; None where all of them are in the environment."""
    names = tuple(name.strip() for name in os.environ.get("PARAMETERS", "").split(",") if name.strip())
    if not names:
        return None
    path, seconds = os.environ.get("PARAMETERS_PATH", ""), os.environ.get("PARAMETERS_SECONDS") or "300"
    if not path.startswith("/") or not seconds.isdigit():
        raise Misconfigured("Missing or malformed settings: PARAMETERS_PATH, PARAMETERS_SECONDS.")
    return ParameterNames(path.rstrip("/"), names, float(seconds))


def aws_account() -> AwsAccount:
    """By AWS's own variables. Raises `Misconfigured`, naming those that are missing."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")
    account = {"AWS_REGION": region, **{name: os.environ.get(name, "") for name in CREDENTIALS}}
    if missing := sorted(name for name, value in account.items() if not value):
        raise Misconfigured(f"Missing settings: {', '.join(missing)}.")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_SSM") or os.environ.get("AWS_ENDPOINT_URL")
    token = os.environ.get("AWS_SESSION_TOKEN")
    return AwsAccount(
        ssm_url=f"{(endpoint or f'https://ssm.{region}.amazonaws.com').rstrip('/')}/",
        region=region,
        access_key_id=account["AWS_ACCESS_KEY_ID"],
        secret_access_key=SecretStr(account["AWS_SECRET_ACCESS_KEY"]),
        session_token=SecretStr(token) if token else None,
    )


@cache
def metrics_namespace() -> str | None:
    """CloudWatch's namespace; None for no metrics. Apart from the rest, for they count what is misconfigured too."""
    usual = "SupabaseAiGateway" if "AWS_LAMBDA_FUNCTION_NAME" in os.environ else "off"
    namespace = os.environ.get("METRICS_NAMESPACE") or usual
    return None if namespace == "off" else namespace


@cache
def exports_spans() -> bool:
    """Whether OpenTelemetry's own variables ask for spans; its SDK reads the others of them."""
    usual = "otlp" if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else "none"
    return (os.environ.get("OTEL_TRACES_EXPORTER") or usual) == "otlp"


@cache
def allowed_origins() -> list[str]:
    """Origins whose pages may read answers, comma-separated; apart from the rest, for errors need CORS too."""
    return [origin.strip() for origin in os.environ.get("ALLOWED_ORIGINS", "*").split(",")]


def _variables() -> dict[str, str]:
    return {**os.environ, **_PARAMETERS}
