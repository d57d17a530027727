"""From a version that is ready to one that has users: the gate before it, and the checks of a canary after it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from postgrest import AsyncPostgrestClient
from pydantic import Field

from shared import canary, database, evaluation, hosting, queue, registry
from shared.canary import Action
from shared.clients import Clients
from shared.errors import (
    Conflict,
    DeadlineExceeded,
    GateRefused,
    GatewayError,
    InvalidRequest,
    Misconfigured,
    NotFound,
    Unavailable,
)
from shared.evaluation import Example
from shared.hosting import Release
from shared.models import Deadline
from shared.registry import Hosting, Text, Traffic, Version
from shared.settings import Settings
from shared.storage import Storage
from shared.telemetry import Trace, logger
from shared.wire import Wire

OWN_SET = "evaluation.jsonl"  # in the model's folder of the bucket
KEPT = "evaluation"  # among a version's performance metrics


class Activate(Wire):
    """How a version is to have users: all of its name's, or a share as a canary; `force` passes over the gate."""

    weight: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    force: bool = False
    reason: Text | None = None


class Activated(Traffic):
    """Which versions have users now, and the evaluation it was decided on; None where the gate was passed over."""

    evaluation: dict[str, Any] | None = None


class Evaluating(Wire):
    """A worker evaluates the version and activates it then, or refuses to: the version's history will say which."""

    model_name: str
    version: str
    status: str = "evaluating"


class Host(Wire):
    """The weights as the provider finds them: a repository of the Hugging Face Hub."""

    repository: Text
    revision: Text | None = None


class HostedVersion(Wire):
    """How it stands with a version at its provider, and what it is called there once it can be asked."""

    model_name: str
    version: str
    status: hosting.Status
    message: str
    provider_model: str | None


class Checked(Wire):
    """What was decided of a canary, and on what; `active` is the version it was weighed against."""

    model_name: str
    version: str
    active: str
    action: Action
    reason: str
    numbers: dict[str, Any]


class Checks(Wire):
    """What was decided of all canaries."""

    decisions: list[Checked]


async def host(clients: Clients, model_name: str, name: str, at: Host) -> HostedVersion:
    """Have a version's provider serve it, and write down what it is called there.

    While its endpoint is made another, nobody can activate it. Raises `Conflict` for a version that has users or may
    get them back, `InvalidRequest` where its provider has no hosting, and what `hosting.host` does.
    """
    db = database.as_gateway(clients.http, clients.settings)
    version = await registry.version(db, model_name, name)
    if version.is_active or version.is_canary:
        raise Conflict(f"Version {name} has users: host another one.")
    if version.provider is None:
        raise InvalidRequest(f"Version {name} has no provider: deploy another one that has.")
    seen = version.hosting
    now = datetime.now(UTC).isoformat()
    begun = seen
    if begun is None or (begun.repository, begun.revision) != (at.repository, at.revision):
        begun = Hosting(repository=at.repository, revision=at.revision, status="starting", since=now)
        await registry.note_hosting(db, version, begun, after=seen)
    release = Release(model_name, name, at.repository, at.revision)
    try:
        hosted = await hosting.host(clients.http, clients.settings, version.provider, release)
    except (InvalidRequest, Misconfigured):  # all is as it was
        if begun is not seen:
            await registry.note_hosting(db, version, seen, after=begun)
        raise
    stands = begun.model_copy(update={"status": hosted.status, **({"since": now} if hosted.changed else {})})
    await registry.note_hosting(db, version, stands, begun, hosted.provider_model)
    return HostedVersion(
        model_name=model_name,
        version=name,
        status=hosted.status,
        message=hosted.message,
        provider_model=hosted.provider_model,
    )


async def activate(
    clients: Clients,
    model_name: str,
    name: str,
    how: Activate,
    actor: str,
    deadline: Deadline,
    trace: Trace,
    in_background: bool = False,
    in_worker: bool = False,
) -> Activated | Evaluating:
    """Evaluate a version beside the active one, and let it have users if it passes.

    An earlier evaluation counts as long as nothing has changed that it depends on. What a request's time isn't enough
    for, a worker does. Raises `GateRefused`, `Conflict` where other versions have users by then, `DeadlineExceeded`
    where nobody is left to do the rest, and what the registry and the router do.
    """
    db = database.as_gateway(clients.http, clients.settings)
    versions = await registry.versions(db, model_name)
    version = next((each for each in versions if each.version == name), None)
    active = next((each for each in versions if each.is_active), None)
    other = next((each for each in versions if each.is_canary), None)
    if version is None:
        raise registry.unknown(model_name, name)
    if version.status != "ready":
        raise registry.not_ready(name, version.status)
    if not (version.provider and version.provider_model):
        raise registry.not_served(name)
    _model(clients, version)  # raises for one that couldn't be asked, forced or not
    if version.hosting and version.hosting.status != "ready":
        stands = version.hosting.status
        raise Conflict(f"Version {name} is {stands} at its provider: have it hosted until it is ready.")
    url = None if in_worker else clients.settings.deployment_queue_url
    numbers: dict[str, Any] | None = None
    if not how.force and not version.is_active:
        examples = await _examples(clients, model_name)
        numbers = _kept(clients.settings, version, active, examples)
        if numbers is None and in_background and url:
            return await _hand_over(db, url, model_name, name, how, actor)
        if numbers is None:
            numbers = await _evaluated(clients, db, version, active, examples, deadline, trace)
        if numbers["verdict"] == "unfinished":
            if not url:
                raise DeadlineExceeded(
                    "There is no time for the whole evaluation: lower GATE_EXAMPLES, raise GATE_CONCURRENCY, or set "
                    "DEPLOYMENT_QUEUE_URL where it is missing."
                )
            return await _hand_over(db, url, model_name, name, how, actor)
        if numbers["verdict"] != "passed":
            reason = " ".join(numbers["reasons"])
            await registry.record(db, model_name, name, "refused", actor, reason, numbers)
            raise GateRefused(
                f"Version {name} is not good enough: {reason} Send force to activate it all the same.", numbers
            )
    summary = _summary(numbers) if numbers else {"forced": how.force}
    traffic = await registry.activate(
        db,
        version,
        how.weight,
        active.version if active else None,
        other.version if other else None,
        actor,
        how.reason,
        summary,
    )
    return Activated(**traffic.model_dump(), evaluation=numbers)


async def carry_on(clients: Clients, told: Mapping[str, Any], deadline: Deadline, trace: Trace) -> None:
    """A worker's part of an activation; how it ends is in the version's history. Raises `Unavailable`.

    What happened to the name's users since it was asked for counts: a message that comes again brings nothing back.
    """
    model_name, name, how = told["modelName"], told["version"], Activate(**told["how"])
    db = database.as_gateway(clients.http, clients.settings)
    try:
        last = await registry.last_move(db, model_name)
        if last and last.id != told["lastMove"]:
            if last.version == name:
                logger.info("an activation that was done before", extra={"model": model_name, "version": name})
                return
            raise Conflict("Its name's users were moved meanwhile: look again, and activate it again.")
        done = await activate(clients, model_name, name, how, told["actor"], deadline, trace, in_worker=True)
        outcome = done.outcome if isinstance(done, Activated) else done.status
    except GatewayError as error:
        if isinstance(error, Unavailable) and not isinstance(error, DeadlineExceeded):
            raise
        outcome = error.code
        if not isinstance(error, GateRefused):  # which is there already
            await registry.record(db, model_name, name, "not_activated", told["actor"], error.message, None)
    logger.info("activation", extra={"model": model_name, "version": name, "outcome": outcome})


async def check_canaries(clients: Clients, actor: str) -> list[Checked]:
    """Weigh every canary, and promote it, keep it, or roll it back.

    One that somebody changes at the same time stays as he leaves it, and is weighed the next time.
    """
    return await _each_canary(clients, partial(_check, actor=actor))


async def weigh_canaries(clients: Clients) -> list[Checked]:
    """What `check_canaries` would decide now; nothing is done, and nothing written down."""
    return await _each_canary(clients, _weigh)


async def _each_canary(
    clients: Clients, check: Callable[[AsyncPostgrestClient, Version], Awaitable[Checked]]
) -> list[Checked]:
    db = database.as_gateway(clients.http, clients.settings)
    checked: list[Checked] = []
    for version in await registry.versions(db):
        if version.is_canary:
            try:
                checked.append(await check(db, version))
            except Unavailable:
                raise
            except GatewayError as error:  # the others are weighed all the same
                logger.warning(
                    "a canary can't be weighed", extra={"model": version.model_name, "reason": error.message}
                )
    return checked


async def _check(db: AsyncPostgrestClient, version: Version, actor: str) -> Checked:
    found = await _weigh(db, version)
    told = (found.reason, found.numbers)
    if found.action == "promoted":
        await registry.activate(db, version, None, found.active, found.version, actor, *told)
    elif found.action == "rolled_back":
        await registry.roll_back(db, found.model_name, actor, *told, canary=found.version)
    else:
        await registry.record(db, found.model_name, found.version, "kept", actor, *told)
    logger.info(
        "a canary is weighed", extra={"model": found.model_name, "version": found.version, "action": found.action}
    )
    return found


async def _weigh(db: AsyncPostgrestClient, version: Version) -> Checked:
    model_name, name = version.model_name, version.version
    figures = await database.call(db, "canary_figures", {"model_name": model_name})
    if figures["outcome"] != "figures" or figures["canary"]["version"] != name:
        raise Conflict("It is no canary any more.")
    decision = canary.decide(figures)
    return Checked(model_name=model_name, version=name, active=figures["active"]["version"], **asdict(decision))


async def _examples(clients: Clients, model_name: str) -> list[Example]:
    """The model's own set where it has one, else the one for finance."""
    try:
        text = await Storage(clients.settings, clients.http).read(f"{model_name}/{OWN_SET}")
    except NotFound:
        return evaluation.built_in()
    return evaluation.read(text.decode(errors="replace"))


async def _evaluated(
    clients: Clients,
    db: AsyncPostgrestClient,
    version: Version,
    active: Version | None,
    examples: list[Example],
    deadline: Deadline,
    trace: Trace,
) -> dict[str, Any]:
    """Ask both; what comes of it is kept with the version, unless it is unfinished."""
    candidate = _model(clients, version)
    other = _model(clients, active) if active and active.provider and active.provider_model else None
    found = await evaluation.evaluate(clients.router, examples, candidate, other, deadline, trace)
    told = {**found.body(), **_circumstances(clients.settings, version, active, examples)}
    if found.verdict != "unfinished":
        metrics = {**(version.performance_metrics or {}), KEPT: told}
        query = db.from_("model_metadata").update({"performance_metrics": metrics}).eq("id", version.id)
        await database.run(query.execute())
    return told


def _kept(
    settings: Settings, version: Version, active: Version | None, examples: list[Example]
) -> dict[str, Any] | None:
    """What an earlier evaluation came to, where nothing has changed since; none that answers were missing from."""
    kept: dict[str, Any] = (version.performance_metrics or {}).get(KEPT) or {}
    if not kept or kept != {**kept, **_circumstances(settings, version, active, examples)}:
        return None
    return kept if kept["verdict"] == "passed" or not kept["candidate"]["failed"] else None


def _circumstances(
    settings: Settings, version: Version, active: Version | None, examples: list[Example]
) -> dict[str, Any]:
    """What an evaluation's outcome depends on."""
    return {
        "set_sha256": evaluation.digest(evaluation.sample(examples, settings.gate_examples)),
        "minimum": settings.gate_minimum,
        "tolerance": settings.gate_tolerance,
        "compared_with": active.version if active else None,
        "asked": [_asked(each) for each in (version, active) if each],
    }


def _asked(version: Version) -> list[str | None]:
    """Which weights answer, as far as one can tell: an endpoint keeps its address when it gets others."""
    served = version.hosting
    named = [version.provider, version.provider_model]
    return [*named, served.repository, served.revision, served.since] if served else named


def _model(clients: Clients, version: Version) -> Any:
    assert version.provider and version.provider_model
    return clients.router.model(version.provider, version.provider_model, f"{version.model_name}@{version.version}")


def _summary(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the history keeps of an evaluation, whose whole is with the version."""
    active, comparison = told["active"], told["comparison"]
    return {
        "verdict": told["verdict"],
        "score": told["candidate"]["score"],
        "active_score": active and active["score"],
        "difference": comparison and comparison["difference"],
        "set_sha256": told["set_sha256"],
    }


async def _hand_over(
    db: AsyncPostgrestClient, url: str, model_name: str, name: str, how: Activate, actor: str
) -> Evaluating:
    last = await registry.last_move(db, model_name)
    told = {"modelName": model_name, "version": name, "how": how.model_dump(), "actor": actor}
    await queue.send(url, {"activate": {**told, "lastMove": last.id if last else None}})
    return Evaluating(model_name=model_name, version=name)
