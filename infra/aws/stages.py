"""A stage: what is set for its functions, and the file of it that serverless.yml reads.

What isn't secret stands in `.env.<stage>`, as `.env.example` names it, beside `AWS_REGION`, `ARCHITECTURE`,
`CONCURRENCY` and `ALARM_EMAIL`, which are the deployment's own. So a template can be made, and looked at, without an
account. Secrets are in AWS's parameter store alone, each under `/supabase-ai-gateway/<stage>/<NAME>`; a function is
told the names of its own.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import AliasChoices, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from infra.aws.packaging import FUNCTIONS, ROOT
from shared import routing
from shared.settings import Settings, key_name

SERVICE = "supabase-ai-gateway"
# Beside the keys of all models: whatever function opens its clients opens those of the chain.
COMMON = ("SUPABASE_SECRET_KEY", "SUPABASE_JWT_SECRET", "MODEL_API_KEY", "EMBEDDING_API_KEY")
OWN = {
    "ai-finance": ("REPLICATE_WEBHOOK_SECRET",),
    "deploy-model": ("S3_PROTOCOL_ACCESS_KEY_SECRET",),
    "export-training-data": ("S3_PROTOCOL_ACCESS_KEY_SECRET",),
}
# What no stage is complete without, beside what every function asks for.
NEEDED = ("SUPABASE_SECRET_KEY", "S3_PROTOCOL_ACCESS_KEY_SECRET")
NEEDED_SETTINGS = ("AWS_REGION", "S3_PROTOCOL_ACCESS_KEY_ID")
DEPLOYMENTS = {"AWS_REGION": "us-east-1", "ARCHITECTURE": "x86_64", "CONCURRENCY": "shared", "ALARM_EMAIL": ""}
CHOICES = {"ARCHITECTURE": ("x86_64", "arm64"), "CONCURRENCY": ("shared", "reserved")}
BESIDES = ("ALLOWED_ORIGINS", "PARAMETERS_SECONDS")  # read apart from the rest of the settings
TEMPLATES = (  # and these it makes itself
    *("QUEUE_URL", "DEPLOYMENT_QUEUE_URL", "EXPORT_QUEUE_URL", "TRAINING_BUCKET"),
    *("METRICS_NAMESPACE", "PARAMETERS", "PARAMETERS_PATH"),
)
REFUSED = {
    "MODELS_FILE": "it is in no zip: say the same in MODELS",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "OpenTelemetry is in no zip",
    "OTEL_TRACES_EXPORTER": "OpenTelemetry is in no zip",
}
ENVIRONMENT_BYTES = 4096  # Lambda's, for all variables of a function
PARAMETER = "arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter"
NAME = re.compile(r"[a-z][a-z0-9-]{0,15}")
QUOTED = re.compile(r"""^(['"])(.*)\1$""")


class StageError(RuntimeError):
    """A stage can't be deployed; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage's name and what is set for it, none of it secret; `place` is where that stands."""

    name: str
    values: Mapping[str, str]
    place: str

    @property
    def path(self) -> str:
        """Of its parameters, without the slash at the end."""
        return f"/{SERVICE}/{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        """What its functions find in theirs, beside what the template says."""
        return {name: value for name, value in self.values.items() if name not in DEPLOYMENTS}

    def deployment(self, name: str) -> str:
        """One of `DEPLOYMENTS`."""
        return self.values.get(name) or DEPLOYMENTS[name]

    def parameters(self, function: str) -> list[str]:
        """The names of a function's secrets; those that aren't in the store are as if they were not set."""
        return [*COMMON, *OWN.get(function, ()), *_model_keys(self._settings())]

    def needed_parameters(self) -> list[str]:
        """Those that have to be in the store: for the database and Storage, and for the models that are named."""
        settings = self._settings()
        named = (settings.model_chain, settings.allowed_models, settings.context_fallbacks, settings.content_fallbacks)
        providers = {asked.partition(":")[0].strip() for names in named for asked in (names or "").split(",")}
        keys = [key_name(provider) for provider in providers if provider in routing.known_providers(settings)]
        keys += ["MODEL_API_KEY"] if settings.model_name else []  # "none", where that server asks for no key
        embedding = ["EMBEDDING_API_KEY"] if not settings.embedding_base_url else []
        return sorted({*NEEDED, *keys, *embedding})

    def problems(self) -> list[str]:
        """What is wrong with what is set, a line each."""
        known = {*settings_names(), *DEPLOYMENTS, *BESIDES}
        found = [f"{name}: the template says that itself" for name in TEMPLATES if name in self.values]
        found += [f"{name}: {why}" for name, why in REFUSED.items() if name in self.values]
        for name in self.values.keys() - {*REFUSED, *TEMPLATES}:
            if is_secret(name):
                found.append(f"{name} is secret: take it out, and keep it by\n{put(self, name)}")
            elif name not in known:
                found.append(f"{name}: there is no such setting")
        size = len("".join([*self.environment, *self.environment.values()]).encode())
        if size > ENVIRONMENT_BYTES * 3 // 4:  # the rest is the template's
            found.append(f"{size} bytes are more than Lambda's environment takes: shorten them")
        if malformed := _malformed(self.values):
            found.append(f"missing or malformed: {', '.join(malformed)}")
        return sorted(found)

    def file(self, packages: Path) -> Path:
        """What serverless.yml reads."""
        return packages / f"{self.name}.json"

    def write(self, packages: Path, package: Mapping[str, Any]) -> None:
        """Write that file, with what the packages' own says of them."""
        functions = {}
        for function in FUNCTIONS:
            names = self.parameters(function)
            arns = [{"Fn::Sub": f"{PARAMETER}{self.path}/{name}"} for name in names]
            functions[function] = {"parameters": ",".join(names), "parameter_arns": arns}
        told = {
            "runtime": package["runtime"],
            "architecture": package["architecture"],
            "packages": str(packages),
            "region": self.deployment("AWS_REGION"),
            "concurrency": self.deployment("CONCURRENCY"),
            "alarm_email": self.deployment("ALARM_EMAIL"),
            "environment": self.environment,
            "functions": functions,
        }
        packages.mkdir(parents=True, exist_ok=True)
        self.file(packages).write_text(json.dumps(told, indent=2))

    def _settings(self) -> Settings:
        return Settings.model_validate(_given(self.values))


def read(name: str) -> Stage:
    """The stage of `.env.<name>`. Raises `StageError`, naming the stages there are."""
    file = ROOT / f".env.{name}"
    if not NAME.fullmatch(name):
        raise StageError(f"{name!r} is no name for a stage: small letters, digits and hyphens, 16 at most.")
    if name in ("example", "local") or not file.exists():
        there = sorted({each.name.removeprefix(".env.") for each in ROOT.glob(".env.*")} - {"example", "local"})
        known = f"There {'is' if len(there) == 1 else 'are'} {', '.join(there)}." if there else "There is none yet."
        raise StageError(f"No stage {name}: its settings stand in .env.{name}, as .env.example names them. {known}")
    lines = [line.strip().partition("=") for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    values = {key.strip(): QUOTED.sub(r"\2", value.strip()) for key, _, value in lines}
    return Stage(name, {key: value for key, value in values.items() if value}, file.name)


def put(stage: Stage, name: str) -> str:
    """The command that puts a secret into the store; the shell reads it, so that it stands in no history."""
    region = stage.deployment("AWS_REGION")
    where = f"--region {region} --name {stage.path}/{name} --type SecureString --overwrite"
    return f'  read -rs SECRET && aws ssm put-parameter {where} --value "$SECRET"'


def is_secret(name: str) -> bool:
    """Whether a setting of that name is; any may be a key of some provider's."""
    return name in secret_settings() or (name.endswith("_API_KEY") and name not in settings_names())


def settings_names() -> set[str]:
    """Every name a setting may be given by."""
    return {name for field, known in Settings.model_fields.items() for name in _names(field, known)}


def secret_settings() -> set[str]:
    return {
        name for field, known in Settings.model_fields.items() if _is_secret(known) for name in _names(field, known)
    }


def _names(field: str, known: FieldInfo) -> Iterable[str]:
    alias = known.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [field.upper()]


def _is_secret(known: FieldInfo) -> bool:
    return SecretStr in (known.annotation, *get_args(known.annotation))


def _model_keys(settings: Settings) -> list[str]:
    """The keys of the providers that are known, and those that models are said to have of their own."""
    facts = {**(settings.models or {}), **(settings.models_file or {})}
    own = {known.key_name for known in facts.values() if known.key_name}
    return sorted({*map(key_name, routing.known_providers(settings)), *own})


def _given(values: Mapping[str, str]) -> dict[str, str]:
    """What is set and isn't secret, with something for the one secret that there has to be."""
    told = {name: value for name, value in values.items() if name not in secret_settings()}
    return {**told, NEEDED[0]: "in the store"}


def _malformed(values: Mapping[str, str]) -> list[str]:
    try:
        Settings.model_validate(_given(values))
    except ValidationError as error:
        problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        named = {str(problem["loc"][0]).upper() for problem in problems}
    else:
        named = set()
    strange = {name for name, choices in CHOICES.items() if values.get(name, choices[0]) not in choices}
    strange |= {"PARAMETERS_SECONDS"} if not values.get("PARAMETERS_SECONDS", "0").isdigit() else set()
    return sorted(named | strange | ({*NEEDED_SETTINGS} - {*values}))
