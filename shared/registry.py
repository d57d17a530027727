"""The model registry: versions that never change, and which of them have users; its rules are the database's.

Who may call was decided before: `db` is the gateway's own.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from postgrest import AsyncPostgrestClient
from pydantic import Field, StringConstraints, computed_field

from shared import database
from shared.errors import Conflict, InvalidRequest, NotFound
from shared.wire import Wire

HISTORY = 50  # of a version, the newest
MOVES = ("activated", "canary", "promoted", "rolled_back")
# A part of Storage's paths, of `model@version` and of addresses.
Name = Annotated[str, StringConstraints(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\.?$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]


class Hosting(Wire):
    """What a version's own endpoint serves; `since` is another one whenever it was made to serve something else."""

    repository: str
    revision: str | None
    status: str
    since: str


class Version(Wire):
    """A version as admins see it; `weight` is its share of its name's users, `share` of the users of all names."""

    id: int
    model_name: str
    version: str
    base_model: str | None
    status: str
    failure: str | None
    provider: str | None
    provider_model: str | None
    hosting: Hosting | None
    is_active: bool
    is_canary: bool
    weight: float
    share: float
    canary_since: datetime | None
    source: str | None
    storage_path: str | None
    content_type: str | None
    files: list[dict[str, Any]] | None
    sha256: str | None
    size_bytes: int | None
    training_data_size: int | None
    dataset_export_id: int | None
    performance_metrics: dict[str, Any] | None
    fine_tuned_on: datetime | None
    deployed_at: datetime | None
    created_at: datetime
    progress: dict[str, Any] | None = Field(exclude=True)

    @computed_field
    def transfer(self) -> dict[str, int] | None:
        """How many bytes of its files are there, while they are brought."""
        position = (self.progress or {}).get("position")
        return {"bytesDone": position["bytes_done"], "bytesTotal": position["bytes_total"]} if position else None


class Step(Wire):
    """What was done with a version, by whom, why, and on what numbers."""

    id: int = Field(exclude=True)
    version: str
    action: str
    weight: float | None
    previous_version: str | None
    actor: str | None
    reason: str | None
    numbers: dict[str, Any] | None
    created_at: datetime


class VersionWithHistory(Version):
    """A version, and what was done with it, the newest first."""

    history: list[Step]


class Versions(Wire):
    """Versions, the newest first."""

    models: list[Version]


class Rollback(Wire):
    """Why, for the history, and which version is to be taken back: sent again, it then goes back no further."""

    reason: Text | None = None
    version: Name | None = None


class Traffic(Wire):
    """Which versions of a name have users now; `previous` was active before, or was taken back."""

    model_name: str
    outcome: str
    active: str | None = None
    canary: str | None = None
    weight: float | None = None
    previous: str | None = None


async def versions(db: AsyncPostgrestClient, model_name: str | None = None) -> list[Version]:
    """All versions, or those of one name, the newest first. Raises `NotFound` for a name without any."""
    rows = await database.call(db, "list_models", {"model_name": model_name})
    if model_name and not rows:
        raise NotFound(f"There is no model {model_name}.")
    return [Version(**row) for row in rows]


async def version(db: AsyncPostgrestClient, model_name: str, name: str) -> Version:
    """Raises `NotFound`."""
    for row in await database.call(db, "list_models", {"model_name": model_name}):
        if row["version"] == name:
            return Version(**row)
    raise unknown(model_name, name)


async def version_with_history(db: AsyncPostgrestClient, model_name: str, name: str) -> VersionWithHistory:
    """Raises `NotFound`."""
    found = await version(db, model_name, name)
    query = db.from_("model_history").select("*").eq("model_name", model_name).eq("version", name)
    steps = await database.run(query.order("id", desc=True).limit(HISTORY).execute())
    return VersionWithHistory(**dict(found), history=[Step(**row) for row in steps])


async def last_move(db: AsyncPostgrestClient, model_name: str) -> Step | None:
    """The last step that moved users of the name; None before any."""
    query = db.from_("model_history").select("*").eq("model_name", model_name).in_("action", MOVES)
    steps = await database.run(query.order("id", desc=True).limit(1).execute())
    return Step(**steps[0]) if steps else None


async def paths(db: AsyncPostgrestClient, model_name: str, name: str) -> list[str]:
    """The version's files. Raises `NotFound`, and `Conflict` while they aren't there."""
    found = await version(db, model_name, name)
    if found.status != "ready":
        raise not_ready(name, found.status)
    return [file["path"] for file in found.files or []]


async def note_hosting(
    db: AsyncPostgrestClient,
    version: Version,
    hosting: Hosting | None,
    after: Hosting | None,
    provider_model: str | None = None,
) -> None:
    """Write down what the version's own endpoint serves; `after` is the state that was seen.

    Raises `Conflict` for a version that has users, or others than these weights could come back to, and where somebody
    was faster.
    """
    arguments = {
        "model_name": version.model_name,
        "version": version.version,
        "hosting": hosting and hosting.model_dump(),
        "compared_since": after and after.since,
        "provider_model": provider_model,
    }
    told = await database.call(db, "note_hosting", arguments)
    match told["outcome"]:
        case "unknown":
            raise unknown(version.model_name, version.version)
        case "served":
            raise Conflict(f"Version {version.version} has users: host another one.")
        case "was_served":
            raise Conflict(
                f"Version {version.version} had users, and a rollback may bring it back: host other weights as another."
            )
        case "conflict":
            raise Conflict(f"Meanwhile somebody else had version {version.version} hosted: look again.")


async def activate(
    db: AsyncPostgrestClient,
    version: Version,
    weight: float | None,
    compared_with: str | None,
    compared_canary: str | None,
    actor: str,
    reason: str | None,
    numbers: Mapping[str, Any] | None,
) -> Traffic:
    """Give a version all of its name's users, or a part of them beside the active one.

    `version` is how it stood, and `compared_with` and `compared_canary` are the versions that had users, when it was
    decided: of two who decide at once the second gets a `Conflict`, and so does who decided on a version that is asked
    elsewhere since, or serves other weights. Raises `NotFound`, and `InvalidRequest` for a version that nobody can ask.
    """
    model_name, name, hosting = version.model_name, version.version, version.hosting
    evaluated = {
        "provider": version.provider,
        "provider_model": version.provider_model,
        "hosting": hosting and hosting.model_dump(),
    }
    told = await database.call(
        db,
        "activate_evaluated_model",
        {
            "model_name": model_name,
            "version": name,
            "evaluated": evaluated,
            "weight": weight,
            "compared_with": compared_with,
            "compared_canary": compared_canary,
            "actor": actor,
            "reason": reason,
            "numbers": numbers,
        },
    )
    match told["outcome"]:
        case "unknown":
            raise unknown(model_name, name)
        case "not_ready":
            raise not_ready(name, told["status"])
        case "not_served":
            raise not_served(name)
        case "changed":
            raise Conflict(f"Meanwhile version {name} is another model at its provider: activate it again.")
        case "no_active":
            raise Conflict(f"weight: no other version of {model_name} is active that the rest of the users could have.")
        case "conflict":
            raise Conflict(
                f"Meanwhile {told['active'] or 'no version'} is active"
                f"{', and ' + told['canary'] + ' the canary' if told['canary'] else ''}: look again, and decide again."
            )
    return Traffic(model_name=model_name, **told)


async def delete(db: AsyncPostgrestClient, model_name: str, name: str, actor: str) -> None:
    """Raises `Conflict` for a version that has users, and `NotFound`. Its name is never given again."""
    told = await database.call(db, "delete_model", {"model_name": model_name, "version": name, "actor": actor})
    if told["outcome"] == "served":
        raise Conflict(f"Version {name} has users: activate another one, or roll back, first.")
    if told["outcome"] == "unknown":
        raise unknown(model_name, name)


async def was_deleted(db: AsyncPostgrestClient, model_name: str, name: str) -> bool:
    """Whether there was such a version; its name is never given again."""
    query = db.from_("model_history").select("id").eq("model_name", model_name).eq("version", name)
    return bool(await database.run(query.eq("action", "deleted").limit(1).execute()))


async def record(
    db: AsyncPostgrestClient,
    model_name: str,
    name: str,
    action: str,
    actor: str | None,
    reason: str,
    numbers: Mapping[str, Any] | None,
) -> None:
    """Write down what was decided of a version where nothing changes by it."""
    arguments = {"model_name": model_name, "version": name, "action": action, "actor": actor, "reason": reason}
    await database.call(db, "record_decision", {**arguments, "numbers": numbers})


async def roll_back(
    db: AsyncPostgrestClient,
    model_name: str,
    actor: str,
    reason: str | None,
    numbers: Mapping[str, Any] | None = None,
    canary: str | None = None,
    version: str | None = None,
) -> Traffic:
    """Take back the canary, or without one the active version; with `canary` or `version` that one and nothing else.

    Raises `Conflict` where there is nothing to go back to.
    """
    told = await database.call(
        db,
        "roll_back_model",
        {
            "model_name": model_name,
            "actor": actor,
            "reason": reason,
            "numbers": numbers,
            "canary_only": canary is not None,
            "compared_with": canary or version,
        },
    )
    if told["outcome"] == "nothing":
        await versions(db, model_name)  # raises for a name that isn't one
        raise Conflict(f"{model_name} has no version to go back to: {told['active'] or 'none'} is active.")
    if told["outcome"] == "conflict":
        raise Conflict(
            f"Meanwhile {told['canary'] or 'no version'} is the canary, and {told['active']} is active: look again."
        )
    return Traffic(model_name=model_name, **told)


def unknown(model_name: str, name: str) -> NotFound:
    return NotFound(f"There is no version {name} of {model_name}.")


def not_ready(name: str, status: str) -> Conflict:
    return Conflict(f"Version {name} is {status}: its files have to be there first.")


def not_served(name: str) -> InvalidRequest:
    return InvalidRequest(f"Version {name} has no provider and providerModel where it could be asked: say them first.")
