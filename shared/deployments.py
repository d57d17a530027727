"""A version's files, from where they are to Storage: begun by a request or an event, carried on by a worker.

A version is its row in the registry and its folder in the bucket. The row says how far the files have come; the
manifest is the folder's last file, and only then is the version ready. Whoever has the row's lease brings the files; it
runs out a minute after he was last heard of, and anybody goes on from there.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import uuid4

import httpx
from postgrest import AsyncPostgrestClient
from pydantic import AfterValidator, Field, SecretStr, StringConstraints, ValidationError, model_validator

from shared import artifacts, database, queue, registry, routing, sources, transfers, uploads
from shared.artifacts import StoredFile
from shared.clients import Clients
from shared.errors import (
    ArtifactRefused,
    Conflict,
    DatabaseUnavailable,
    GatewayError,
    InvalidRequest,
    Misconfigured,
    NotFound,
    TransferRunning,
    Unavailable,
)
from shared.models import Deadline
from shared.registry import Name, Text, Version
from shared.settings import Settings, provider_key
from shared.storage import DATASETS, SignedUpload, Storage
from shared.telemetry import count_failure, logger
from shared.transfers import Destination, Keep, Outcome
from shared.uploads import Announced
from shared.wire import Wire

WORKER = "deploy-model-worker"  # in the metrics
UPLOAD = "upload"
LEASE_SECONDS = 60
NOTE_SECONDS = 10  # of a transfer, for writing down how far it is
LEAST_SECONDS = 0.2  # of a request, for bringing files
IDLE_SECONDS = 1200  # after which a message is thought lost; one whose worker was killed comes again before
DELAY_SECONDS = 2  # until a worker goes on, so that whoever asked has let go of it
MANIFEST_BYTES = 1024 * 1024
METRICS_DEPTH = 20
# What a version's own manifest says of where it comes from.
PROVENANCE = ("baseModel", "source", "sourceState", "metrics", "trainingDataSize", "datasetExportId", "fineTunedOn")
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]


def _storable(metrics: dict[str, Any]) -> dict[str, Any]:
    """JSON as the database takes it, which is stricter than Python."""
    try:
        json.dumps(metrics, allow_nan=False, ensure_ascii=False).encode()
        too_deep = _depth(metrics) > METRICS_DEPTH
    except (ValueError, RecursionError) as error:
        raise ValueError("no NaN, no Infinity and no halves of characters, please") from error
    if too_deep:
        raise ValueError(f"more than {METRICS_DEPTH} levels deep: make it flatter")
    return metrics


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)


class File(Wire):
    """A file that is to be there: its path in the version's folder, and what it has to be."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=artifacts.PATH_CHARACTERS)]
    size_bytes: Annotated[int, Field(ge=1)] | None = None
    sha256: Sha256 | None = None


class Run(Wire):
    """What a training job says of its output, as the manifest beside it and as a part of a request."""

    model_name: Name
    version: Name | None = None
    base_model: Text
    provider: Text | None = None
    provider_model: Text | None = None
    metrics: Annotated[dict[str, Any], AfterValidator(_storable)] | None = None
    training_data_size: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    dataset_export_id: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    fine_tuned_on: datetime | None = None
    content_type: Text | None = None
    files: Annotated[tuple[File, ...], Field(max_length=artifacts.FILES)] = ()
    leave_out: Annotated[tuple[Text, ...], Field(max_length=100)] = ()
    allow_pickle: bool = False


class Deploy(Run):
    """A version to be deployed; `source` is `s3://…`, `https://…` at an allowed host, or `upload`.

    `files` are what has to be there. For an upload all of them, with size and hash; else as many as one likes.
    """

    source: Text

    @model_validator(mode="after")
    def has_its_files(self) -> Self:
        if len({file.path for file in self.files}) < len(self.files):
            raise InvalidRequest("files: each path once.")
        if self.source == UPLOAD and not (self.files and all(file.size_bytes and file.sha256 for file in self.files)):
            raise InvalidRequest("files: an upload names its files, each with path, sizeBytes and sha256.")
        return self


class Deployment(Wire):
    """A version as it stands, and where its files are to be sent."""

    model: Version
    uploads: Sequence[SignedUpload] = ()


async def begin(
    clients: Clients, run: Deploy, actor: str, deadline: Deadline, in_background: bool, state: str | None = None
) -> Deployment:
    """Register a version and bring its files as far as the time allows; a worker does the rest.

    The same request again goes on with what there is; `state` names that of its source. Raises `Conflict` for a version
    that is something else, and what is wrong with the files.
    """
    settings, db = clients.settings, database.as_gateway(clients.http, clients.settings)
    _storage(clients).destination("")  # without its settings nothing is begun
    _check_files(run)
    if run.source != UPLOAD:
        sources.check(run.source, _hosts(settings), settings.allow_private_sources)
    registered = await database.call(
        db,
        "register_model",
        {"model_name": run.model_name, "version": run.version, "columns": _columns(run, state), "actor": actor},
    )
    if registered["outcome"] == "exists":
        raise _taken(run.model_name, registered)
    if registered["outcome"] == "again" and _asked(registered["progress"]) != _asked(_columns(run)["progress"]):
        raise Conflict(
            f"version: {registered['version']} of {run.model_name} was begun with other files: send the same request, "
            "delete it, or choose another version."
        )
    if run.source == UPLOAD:
        return Deployment(model=await _version(db, registered), uploads=await _sign_uploads(clients, registered, run))
    if in_background and settings.deployment_queue_url:
        await _hand_over(clients, registered["id"])
    else:
        await _bring_what_can_be(clients, registered["id"], deadline)
    return Deployment(model=await _version(db, registered))


async def register_served(clients: Clients, run: Deploy, actor: str) -> Version:
    """Register a version that needs no files here, for its provider has them; `source` says where they are.

    The same again gives the version there is. Raises `Conflict` for one that is something else.
    """
    db = database.as_gateway(clients.http, clients.settings)
    columns = _columns(run) | {"status": "ready", "progress": None}
    arguments = {"model_name": run.model_name, "version": run.version, "columns": columns, "actor": actor}
    registered = await database.call(db, "register_model", arguments)
    same = registered.get("status") == "ready" and registered.get("source") == run.source
    if registered["outcome"] == "exists" and not same:
        raise _taken(run.model_name, registered)
    return await _version(db, registered)


def _check_files(run: Deploy) -> None:
    """Raises `ArtifactRefused` for files whose names alone say that they won't be taken."""
    if run.model_name == DATASETS:
        raise InvalidRequest(f"modelName: {DATASETS} is where exports are kept: choose another.")
    names = artifacts.Names(artifacts.Rules(run.allow_pickle, run.leave_out))
    for file in run.files:
        artifacts.check_path(file.path)
        if run.source == UPLOAD:
            names.admit(file.path, file.size_bytes or 0)
            if artifacts.is_archive(file.path):
                raise ArtifactRefused(f"{file.path}: an upload is of files, not of archives: name those in it.")


async def _sign_uploads(clients: Clients, row: Mapping[str, Any], run: Deploy) -> list[SignedUpload]:
    """Where those files go that aren't there yet: Storage signs nothing for others."""
    storage, folder = _storage(clients), _folder(row)
    there = await asyncio.to_thread(uploads.there, storage.destination(folder))
    return [await storage.sign_upload(folder, file.path) for file in run.files if file.path not in there]


async def finalize(clients: Clients, model_name: str, name: str, deadline: Deadline) -> Version:
    """Check what was uploaded, as far as the time allows; a worker does the rest.

    Raises `ArtifactRefused` for a file that is missing or none that was announced: it is removed, and can be uploaded
    again.
    """
    db = database.as_gateway(clients.http, clients.settings)
    version = await registry.version(db, model_name, name)
    if version.source != UPLOAD:
        raise Conflict(f"Version {name} is not uploaded: its files come from {version.source}.")
    if version.status == "failed":
        raise registry.not_ready(name, version.status)
    if version.status != "ready":
        await _bring_what_can_be(clients, version.id, deadline)
    return await registry.version(db, model_name, name)


async def from_manifest(clients: Clients, bucket: str, key: str, deadline: Deadline) -> None:
    """Deploy what a training job has put into its bucket, once however often its event comes.

    The manifest is the job's last file: a `Run` as JSON, for the files beside it. Without a version its place and the
    state of all these files name one. What is wrong with it is logged, and stays so until it is written anew.
    """
    if bucket != clients.settings.training_bucket:
        logger.error("an event of a bucket that is not TRAINING_BUCKET", extra={"bucket": bucket})
        return
    try:
        run, state = await asyncio.to_thread(_announced, bucket, key)
        await _begin_once(clients, run, state, f"s3://{bucket}/{key}", deadline)
    except (Unavailable, Misconfigured, TransferRunning):
        raise
    except (GatewayError, ValidationError, ValueError, TypeError) as error:
        reason = error.message if isinstance(error, GatewayError) else _first_problem(error)
        logger.error("a manifest that can't be deployed", extra={"bucket": bucket, "key": key, "reason": reason})
        count_failure(WORKER, error)


async def _begin_once(clients: Clients, run: Deploy, state: str, manifest: str, deadline: Deadline) -> None:
    """Begin a version, unless the same files are it already. Raises `Conflict` for one that is something else."""
    try:
        await begin(clients, run, manifest, deadline, in_background=True, state=state)
    except Conflict as error:
        if isinstance(error, TransferRunning) or not await _is_of(clients, run, state):
            raise
        logger.info("a manifest that was deployed before", extra={"manifest": manifest, "reason": error.message})


async def _is_of(clients: Clients, run: Deploy, state: str) -> bool:
    """Whether the version was made of this state of its source, as its own manifest says; older ones don't say."""
    if run.version == _version_of(state):
        return True
    try:
        manifest = await _storage(clients).read(f"{run.model_name}/{run.version}/{artifacts.MANIFEST}")
    except NotFound:
        return False
    provenance: dict[str, Any] = json.loads(manifest)["provenance"]
    return provenance.get("source") == run.source and provenance.get("sourceState", state) == state


async def carry_on(clients: Clients, model_id: int, seconds: float) -> None:
    """A worker's part: bring a version's files for so long, and hand over what is left. Raises `Unavailable`."""
    try:
        if not await _bring(clients, model_id, time.monotonic() + seconds, must_advance=True):
            await _hand_over(clients, model_id)
    except TransferRunning as running:
        await _hand_over(clients, model_id, running.retry_after_seconds or LEASE_SECONDS)
    except Unavailable:
        raise
    except GatewayError as error:  # the row says so
        logger.error("a deployment failed", extra={"modelId": model_id, "code": error.code, "reason": error.message})
        if not isinstance(error, Conflict | NotFound):  # it had failed before, or was deleted
            count_failure(WORKER, error)


async def wake(clients: Clients) -> None:
    """For a schedule: transfers that nobody is at any more go on, so that none is lost with its message.

    Without a queue there is no message: whoever asked goes on by asking again.
    """
    if not clients.settings.deployment_queue_url:
        return
    db = database.as_gateway(clients.http, clients.settings)
    for model_id in (await database.call(db, "wake_transfers", {"idle_seconds": IDLE_SECONDS}))["ids"]:
        logger.warning("a transfer that nobody was at goes on", extra={"modelId": model_id})
        await _hand_over(clients, model_id)


async def delete(clients: Clients, db: AsyncPostgrestClient, model_name: str, name: str, actor: str) -> None:
    """Delete a version, and then its files. Where Storage failed with these, the same again removes them.

    Raises what `registry.delete` does.
    """
    folder = f"{model_name}/{name}"
    _storage(clients).destination(folder)  # without its settings nothing is begun
    try:
        await registry.delete(db, model_name, name, actor)
    except NotFound:
        if not await registry.was_deleted(db, model_name, name) or not await _remove_files(clients, folder):
            raise
    else:
        await _remove_files(clients, folder)


async def _remove_files(clients: Clients, folder: str) -> int:
    """Remove what is left of a version that is gone, the manifest first; gives how many files there were."""
    storage = _storage(clients)
    destination = storage.destination(folder)
    await asyncio.to_thread(transfers.end_uploads, destination)
    there = await asyncio.to_thread(uploads.there, destination)
    await storage.remove([f"{folder}/{path}" for path in sorted(there, key=lambda path: path != artifacts.MANIFEST)])
    return len(there)


async def _bring_what_can_be(clients: Clients, model_id: int, deadline: Deadline) -> None:
    """As far as a request's time allows; what is left goes to the worker, or waits for the next request."""
    try:
        seconds = max(LEAST_SECONDS, deadline.remaining() - NOTE_SECONDS)
        if not await _bring(clients, model_id, time.monotonic() + seconds):
            await _hand_over(clients, model_id)
    except TransferRunning as running:
        await _hand_over(clients, model_id, running.retry_after_seconds or LEASE_SECONDS)
    except Unavailable:
        if not clients.settings.deployment_queue_url:
            raise
        await _hand_over(clients, model_id, LEASE_SECONDS)


async def _hand_over(clients: Clients, model_id: int, delay_seconds: int = DELAY_SECONDS) -> None:
    if url := clients.settings.deployment_queue_url:
        await queue.send(url, {"transfer": model_id}, min(delay_seconds, 900))


async def _bring(clients: Clients, model_id: int, stop_at: float, must_advance: bool = False) -> bool:
    """Bring a version's files; whether all are there. Raises `TransferRunning` where somebody else is at it.

    What can't be mended ends the version as failed; of an upload, a file that is wrong can be sent again. So does, with
    `must_advance`, a file of which a run gets no further than the one before: its hash takes all of it in one run.
    """
    db = database.as_gateway(clients.http, clients.settings)
    lease = _Lease(db, model_id, str(uuid4()), asyncio.get_running_loop())
    row = await lease.claim()
    if row is None:
        return True
    work = _Work.of(clients, row)
    try:
        files = await asyncio.to_thread(work.bring, lease.keep, stop_at)
        if files is None and must_advance and _bytes_done(lease.position) <= _bytes_done(work.position):
            if lease.position and row["source"] != UPLOAD:
                await asyncio.to_thread(transfers.abandon, work.destination, lease.position)
            raise ArtifactRefused("A file is too large to be read in one run: save the model in smaller shards.")
        if files is None:
            await lease.let_go()
            return False
        await _finish(db, lease, work, row, files)
        return True
    except _Gone as error:
        await _remove_files(clients, _folder(row))
        raise NotFound("The version was deleted meanwhile.") from error
    except _Lost as error:
        raise TransferRunning("Another worker has the files in hand.", LEASE_SECONDS) from error
    except GatewayError as error:
        if error.retryable or row["source"] == UPLOAD:
            await lease.let_go()
        else:
            await lease.fail(error.message)
        if not error.retryable and row["source"] == UPLOAD:
            with suppress(Unavailable):
                await registry.record(db, row["model_name"], row["version"], "not_finalized", None, error.message, None)
        raise


async def _finish(
    db: AsyncPostgrestClient, lease: "_Lease", work: "_Work", row: Mapping[str, Any], files: tuple[StoredFile, ...]
) -> None:
    manifest = artifacts.manifest(row["model_name"], row["version"], files, work.provenance)
    await asyncio.to_thread(transfers.write_manifest, work.destination, manifest)
    told = await database.call(
        db,
        "finish_model",
        {
            "id": lease.model_id,
            "files": [asdict(file) for file in files],
            "sha256": manifest.sha256,
            "size_bytes": sum(file.size for file in files),
            "storage_path": f"{work.destination.bucket}/{work.destination.prefix}",
            "worker": lease.worker,
        },
    )
    if told["outcome"] != "ready":
        raise _lost(told["outcome"])
    logger.info("a version is ready", extra={"model": row["model_name"], "version": row["version"]})


class _Lost(Exception):
    """Another worker has the lease, or has ended what it was for."""


class _Gone(_Lost):
    """The version was deleted."""


def _lost(outcome: str) -> _Lost:
    return _Gone() if outcome == "unknown" else _Lost()


@dataclass(slots=True)
class _Lease:
    """The right to write of a version's files, for a minute from each time that anything is noted."""

    db: AsyncPostgrestClient
    model_id: int
    worker: str
    loop: asyncio.AbstractEventLoop
    noted: Mapping[str, Any] | None = None
    position: Mapping[str, Any] | None = None

    async def claim(self) -> dict[str, Any] | None:
        """The version; None where its files are there. Raises `TransferRunning`, and `Conflict` for one that failed."""
        told: dict[str, Any] = await database.call(
            self.db, "claim_transfer", {"id": self.model_id, "worker": self.worker, "lease_seconds": LEASE_SECONDS}
        )
        match told["outcome"]:
            case "ready":
                return None
            case "busy":
                raise TransferRunning("Another worker has the files in hand.", told["retry_after_seconds"])
            case "failed":
                raise Conflict(f"Version {told['version']} has failed: {told['failure']} Deploy it again.")
            case "unknown":
                raise NotFound("There is no such version.")
        self.noted = told["progress"]
        return told

    def keep(self, position: Mapping[str, Any]) -> None:
        """Write down how far the files are; in a thread of its own. A database that is away is no reason to stop."""
        self.position = position
        noting = asyncio.run_coroutine_threadsafe(self._note({**(self.noted or {}), "position": position}), self.loop)
        try:
            outcome = noting.result(NOTE_SECONDS)
        except (DatabaseUnavailable, TimeoutError) as error:
            logger.warning("a transfer can't be noted", extra={"modelId": self.model_id, "kind": type(error).__name__})
            return
        if outcome != "noted":
            raise _lost(outcome)

    async def let_go(self) -> None:
        with suppress(Unavailable):
            await self._note(None, 0)

    async def fail(self, failure: str) -> None:
        with suppress(Unavailable):
            await database.call(self.db, "fail_model", {"id": self.model_id, "failure": failure, "worker": self.worker})

    async def _note(self, progress: Mapping[str, Any] | None, lease_seconds: int = LEASE_SECONDS) -> str:
        told = await database.call(
            self.db,
            "note_transfer",
            {"id": self.model_id, "progress": progress, "worker": self.worker, "lease_seconds": lease_seconds},
        )
        return str(told["outcome"])


@dataclass(frozen=True, slots=True)
class _Work:
    """What a version's files are to be; to bring them blocks, and belongs into a thread."""

    source: str
    destination: Destination
    rules: artifacts.Rules
    files: list[File]
    position: Mapping[str, Any] | None
    provenance: Mapping[str, Any]
    hosts: list[str]
    allow_private: bool
    keys: Mapping[str, SecretStr]

    @classmethod
    def of(cls, clients: Clients, row: Mapping[str, Any]) -> "_Work":
        settings, kept = clients.settings, row["progress"]
        return cls(
            source=row["source"],
            destination=_storage(clients).destination(_folder(row)),
            rules=artifacts.Rules(kept["allowPickle"], tuple(kept["leaveOut"])),
            files=[File(**file) for file in kept["files"]],
            position=kept.get("position"),
            provenance=kept["provenance"],
            hosts=_hosts(settings),
            allow_private=settings.allow_private_sources,
            keys=_keys(settings),
        )

    def bring(self, keep: Keep, stop_at: float) -> tuple[StoredFile, ...] | None:
        """All files that are there; None where the time was too short for all."""
        outcome = (self._verified if self.source == UPLOAD else self._transferred)(keep, stop_at)
        if outcome.position is not None:
            keep(outcome.position)
            return None
        return outcome.files

    def _transferred(self, keep: Keep, stop_at: float) -> Outcome:
        s3 = transfers.client() if self.source.startswith("s3://") else None
        return transfers.transfer_all(
            sources.find(self.source, s3, self.hosts, self.allow_private, self.keys),
            self.destination,
            rules=self.rules,
            expected={file.path: file.sha256 for file in self.files if file.sha256},
            position=self.position,
            stop_at=stop_at,
            keep=keep,
            sizes={file.path: file.size_bytes for file in self.files},
        )

    def _verified(self, keep: Keep, stop_at: float) -> Outcome:
        files = [Announced(file.path, file.size_bytes or 0, (file.sha256 or "").lower()) for file in self.files]
        return uploads.verify(
            self.destination, files, rules=self.rules, position=self.position, stop_at=stop_at, keep=keep
        )


def _columns(run: Deploy, state: str | None = None) -> dict[str, Any]:
    told = run.model_dump(by_alias=True, mode="json") | {"sourceState": state}
    return {
        "status": "uploading" if run.source == UPLOAD else "transferring",
        "source": run.source,
        "base_model": run.base_model,
        "provider": run.provider,
        "provider_model": run.provider_model,
        "performance_metrics": {"training": run.metrics} if run.metrics else None,
        "training_data_size": run.training_data_size,
        "dataset_export_id": run.dataset_export_id,
        "fine_tuned_on": told["fineTunedOn"],
        "content_type": run.content_type,
        "progress": {
            "files": told["files"],
            "leaveOut": run.leave_out,
            "allowPickle": run.allow_pickle,
            "provenance": {key: told[key] for key in PROVENANCE if told[key] is not None},
        },
    }


def _hosts(settings: Settings) -> list[str]:
    return [host.strip() for host in settings.source_hosts.split(",") if host.strip()]


def _keys(settings: Settings) -> dict[str, SecretStr]:
    """The Hugging Face Hub's, where there is one, for repositories that aren't public."""
    hub = routing.known_providers(settings)["huggingface"].tuning_url
    try:
        return {httpx.URL(hub).netloc.decode(): provider_key("huggingface")} if hub else {}
    except Misconfigured:
        return {}


def _asked(progress: Mapping[str, Any]) -> list[Any]:
    """What was asked for, of what a row keeps of it."""
    return [progress["files"], list(progress["leaveOut"]), progress["allowPickle"]]


def _bytes_done(position: Mapping[str, Any] | None) -> int:
    return int(position["bytes_done"]) if position else 0


def _folder(row: Mapping[str, Any]) -> str:
    return f"{row['model_name']}/{row['version']}"


def _storage(clients: Clients) -> Storage:
    return Storage(clients.settings, clients.http)


async def _version(db: AsyncPostgrestClient, row: Mapping[str, Any]) -> Version:
    return await registry.version(db, row["model_name"], row["version"])


def _taken(model_name: str, row: Mapping[str, Any]) -> Conflict:
    is_there = {"ready": "exists", "deleted": "was deleted"}.get(row["status"], f"comes from {row.get('source')}")
    return Conflict(
        f"version: {row['version']} of {model_name} {is_there}, and versions never change: choose another, or leave it"
        " out."
    )


def _announced(bucket: str, key: str) -> tuple[Deploy, str]:
    """The run of a manifest with all that is beside it, and the state of these; it has a version in any case."""
    name = key.rpartition("/")[2]
    source = f"s3://{bucket}/{key.removesuffix(name)}"
    found = sources.find(source, transfers.client())
    manifest = next((remote for remote in found if remote.path == name), None)
    if manifest is None:
        raise InvalidRequest("it isn't there any more")
    if manifest.size > MANIFEST_BYTES:
        raise InvalidRequest(f"it has more than {MANIFEST_BYTES} bytes")
    told = json.loads(b"".join(manifest.chunks(0, manifest.size)))
    if not isinstance(told, dict):
        raise InvalidRequest("it is no JSON object")
    run = Deploy(**told | {"leaveOut": [*(told.get("leaveOut") or []), name], "source": source})
    rules = artifacts.Rules(leave_out=run.leave_out)
    files = transfers.fingerprint([remote for remote in found if not rules.leaves_out(remote.path)])
    state = hashlib.sha256(json.dumps([key, manifest.etag, files]).encode()).hexdigest()
    return run.model_copy(update={"version": run.version or _version_of(state)}), state


def _version_of(state: str) -> str:
    return f"run-{state[:12]}"


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return "it is no JSON that describes a run"
