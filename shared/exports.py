"""Exports: the corpus brought up to date, what is good enough of it written to training files, a manifest at last.

An export is its row and its folder in the bucket. Its work has three stages, and each says in the database how far it
is: conversations are collected (in shards, which several workers can have in hand), rows are selected, which fixes them
as numbered parts, and files are written from the parts. Whoever has the lease does the work; it runs out a minute after
he was last heard of, and anybody goes on from there.

The manifest is the folder's last file: where it is, all others are whole.

python -m shared.exports run --incremental               # and list, show, urls, fine-tune, jobs, erase: see --help
"""

import asyncio
import ctypes
import hashlib
import json
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import AwareDatetime, Field, field_validator, model_validator

from shared import database, prompting, queue, storage, training_data, transfers
from shared.artifacts import MANIFEST
from shared.clients import Clients
from shared.dataset_files import Dataset, Torn
from shared.errors import Conflict, DatabaseUnavailable, GatewayError, InvalidRequest, NotFound, Unavailable
from shared.models import Deadline
from shared.prompting import Exchange
from shared.registry import Text
from shared.splits import SPLIT_SALT, split
from shared.storage import DATASETS, SignedDownloads, Storage
from shared.telemetry import count_failure, logger
from shared.training_data import CALL_SECONDS, Lost
from shared.training_formats import Name, Row
from shared.transfers import Destination
from shared.wire import Wire

WORKER = "export-training-data-worker"  # in the metrics
SCHEMA_VERSION = 1
PART_ROWS = 2000
LEASE_SECONDS = 60
NOTE_SECONDS = 10
SELECT_SECONDS = 300
DELAY_SECONDS, LONGEST_SECONDS = 2, 900  # of a message; SQS takes no longer
IN_REQUEST_ROWS = 20_000  # of more conversations than these no request waits for the beginning
LEAST_SECONDS = 0.2
PAGE = 100
M_MMAP_THRESHOLD = -3  # of malloc.h
COUNTED = f"an estimate of each row as it is written: {prompting.BYTES_PER_TOKEN} bytes a token"
Status = Literal["collecting", "writing", "ready", "failed", "replaced"]


class Export(Wire):
    """What to export; without anything, all that was liked, as the guide's JSON and as chat for Together and OpenAI."""

    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    min_feedback: Annotated[int, Field(ge=0, le=1)] = 1
    min_quality: Annotated[float, Field(ge=0, le=1)] = 0
    model_version: Text | None = None
    formats: Annotated[tuple[Name, ...], Field(min_length=1, max_length=6)] = ("alpaca", "together")
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    incremental: bool = False
    dry_run: bool = False

    @field_validator("formats")
    @classmethod
    def once(cls, formats: tuple[Name, ...]) -> tuple[Name, ...]:
        return tuple(sorted(set(formats)))

    @model_validator(mode="after")
    def has_a_span(self) -> "Export":
        if self.since and self.until and self.since >= self.until:
            raise InvalidRequest("until: must be later than since.")
        return self


class ExportFile(Wire):
    """A file and its sidecar; `path` is in the export's folder."""

    path: str
    format: Name
    split: Literal["train", "validation"]
    rows: int
    size_bytes: int
    tokens: int
    sha256: str
    sidecar: str
    sidecar_sha256: str


class Exported(Wire):
    """An export as it stands; `collected` of `to_collect` conversations have been read for it."""

    export_id: int
    status: Status
    rows: int
    files: list[ExportFile]
    manifest: str | None
    skipped: dict[str, int]
    options: Export
    collected: int
    to_collect: int
    actor: str | None
    failure: str | None
    replaces: int | None
    replaced_by: int | None
    created_at: datetime
    finished_at: datetime | None


class Exports(Wire):
    """A page of them, the newest first; `next` is the `after` of the next page."""

    exports: list[Exported]
    next: int | None


class Busy(Exception):
    """Others have the work in hand; it may be free after so many seconds."""

    def __init__(self, seconds: int) -> None:
        super().__init__()
        self.seconds = seconds


async def begin(clients: Clients, export: Export, actor: str, deadline: Deadline, in_background: bool) -> Exported:
    """Begin an export and do as much of it as the time allows; a worker does the rest.

    The same again while it isn't finished goes on with it: two don't do the same work.
    """
    from shared.training_quality import RULES  # with all its recognisers, which a look at an export doesn't need

    _destination(clients, 0)  # without its settings nothing is begun
    told = await _call(
        clients,
        "begin_export",
        {"options": _options(export), "rules": RULES, "actor": actor, "shard_rows": clients.settings.export_shard_rows},
        CALL_SECONDS,
    )
    in_background = in_background or told["shards"] > 1 or told["to_collect"] > IN_REQUEST_ROWS
    if clients.settings.export_queue_url and in_background:
        for _ in range(max(1, told["shards"]) if told["outcome"] == "begun" else 1):
            await hand_over(clients, told["id"])
    else:
        await do_what_can_be(clients, told["id"], deadline)
    return await read(clients, told["id"])


async def carry_on(clients: Clients, export_id: int, seconds: float) -> None:
    """A worker's part: so many seconds of an export, and what is left is handed over. Raises `Unavailable`."""
    try:
        if not await run(clients, export_id, time.monotonic() + seconds):
            await hand_over(clients, export_id)
    except Busy as busy:
        await hand_over(clients, export_id, busy.seconds)
    except Unavailable:
        raise
    except (Conflict, InvalidRequest, NotFound) as error:  # the row says so, where there is one
        logger.error("an export failed", extra={"exportId": export_id, "code": error.code, "reason": error.message})
        count_failure(WORKER, error)
    except GatewayError as error:  # somebody has to look after a setting
        logger.error("an export can't go on", extra={"exportId": export_id, "reason": error.message})
        count_failure(WORKER, error)
        await hand_over(clients, export_id, LONGEST_SECONDS)


async def carry_on_all(clients: Clients, seconds: float) -> None:
    """For a schedule: whatever isn't finished goes on, so that none is lost with its message."""
    stop_at = time.monotonic() + seconds
    for export_id in (await _call(clients, "list_unfinished_exports", {}))["ids"]:
        if clients.settings.export_queue_url:
            await hand_over(clients, export_id)
        elif (left := stop_at - time.monotonic()) > LEAST_SECONDS:
            await carry_on(clients, export_id, left)


async def run(clients: Clients, export_id: int, stop_at: float) -> bool:
    """Work on an export until it is done, which is True, or the time is up.

    Raises `Busy` where all that is to do is in others' hands, `NotFound`, and `Conflict` for one that has failed.
    """
    worker, known = str(uuid4()), None  # the knowledge is read once, for all shards
    _give_memory_back()
    try:
        while True:
            told = await _call(
                clients, "claim_export", {"id": export_id, "worker": worker, "lease_seconds": LEASE_SECONDS}
            )
            match told["outcome"]:
                case "collect":
                    known = known if known is not None else await training_data.published(clients)
                    done = await training_data.collect(clients, told, worker, known, stop_at, LEASE_SECONDS)
                case "select":
                    holding = {"id": export_id, "worker": worker, "lease_seconds": SELECT_SECONDS}
                    holding["part_rows"] = PART_ROWS
                    await _call(clients, "select_export", holding, SELECT_SECONDS)
                    done = True
                case "write":
                    done = await _write(clients, told, worker, stop_at)
                case "busy":
                    raise Busy(told["retry_after_seconds"])
                case "failed":
                    raise Conflict(f"Export {export_id} has failed: {told['failure']}")
                case "unknown":
                    raise NotFound(f"There is no export {export_id}.")
                case _:
                    if told["replaces"]:  # whoever finished it may have been stopped before he could
                        await remove(clients, told["replaces"])
                    return True
            if not done or time.monotonic() >= stop_at:
                await _release(clients, export_id, worker)
                return False
    except Lost:
        raise Busy(LEASE_SECONDS) from None
    except Busy:
        raise
    except GatewayError as error:
        with suppress(Unavailable):
            if isinstance(error, InvalidRequest):  # of Storage, that will never take it
                failed = {"id": export_id, "worker": worker, "failure": error.message}
                await _call(clients, "fail_export", failed)
                await remove(clients, export_id)
            else:
                await _release(clients, export_id, worker)
        raise


@cache
def _give_memory_back() -> None:
    """Have glibc return pages of rows to the system when they are freed: it would keep more of them with each size."""
    with suppress(OSError, AttributeError):  # other libraries have no such option
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 128 * 1024)


async def read(clients: Clients, export_id: int) -> Exported:
    """One export. Raises `NotFound`."""
    return _exported(await described(clients, export_id))


async def described(clients: Clients, export_id: int) -> dict[str, Any]:
    """One export as the database tells of it. Raises `NotFound`."""
    told: dict[str, Any] = await _call(clients, "read_export", {"id": export_id})
    if told.get("outcome") == "unknown":
        raise NotFound(f"There is no export {export_id}.")
    return told


async def page(clients: Clients, after: int | None) -> Exports:
    """The newest exports, or those before `after`."""
    told = await _call(clients, "list_exports", {"after": after, "page_rows": PAGE})
    found = [_exported(each) for each in told["exports"]]
    return Exports(exports=found, next=found[-1].export_id if len(found) == PAGE else None)


async def sign(clients: Clients, export_id: int) -> SignedDownloads:
    """Addresses of its files, for five minutes. Raises `NotFound`, and `Conflict` before it is ready."""
    found = await read(clients, export_id)
    if found.status != "ready" or found.replaced_by:
        instead = f"replaced by {found.replaced_by}" if found.replaced_by else found.status
        raise Conflict(f"Export {export_id} is {instead}: there are no files.")
    paths = [path for file in found.files for path in (file.path, file.sidecar)]
    signing = Storage(clients.settings, clients.http)
    return await signing.sign_downloads(f"{DATASETS}/{export_id}", [*paths, MANIFEST] if found.manifest else paths)


async def _write(clients: Clients, told: Mapping[str, Any], worker: str, stop_at: float) -> bool:
    """The files from the parts, from where they were left; False where the time is up. Raises `Lost`."""
    try:
        return await _write_files(clients, told, worker, stop_at)
    except Lost:
        await _remove_strays(clients, told["id"])
        raise


async def _write_files(clients: Clients, told: Mapping[str, Any], worker: str, stop_at: float) -> bool:
    export_id, kept = told["id"], told["progress"] or {}
    destination = _destination(clients, export_id)
    if "files" not in kept:  # of a run that was killed, or wrote rows that were erased since
        await asyncio.to_thread(transfers.remove_all, destination, MANIFEST)
    try:
        dataset = await asyncio.to_thread(Dataset, destination, told["options"]["formats"], kept)
        if not await _write_parts(clients, dataset, told, worker, stop_at):
            return False
        files = await _whole(clients, dataset, export_id, worker)
    except Torn:
        logger.warning("an export is written anew", extra={"exportId": export_id})
        await _note(clients, export_id, worker, {"rewritten": kept.get("rewritten", 0)})
        return True
    await _finish(clients, told, worker, destination, files)
    await asyncio.to_thread(dataset.remove_parked)
    return True


async def _write_parts(
    clients: Clients, dataset: Dataset, told: Mapping[str, Any], worker: str, stop_at: float
) -> bool:
    export_id, noted = told["id"], time.monotonic()
    try:
        async with aclosing(_parts(clients, export_id, dataset.batches, told["parts"])) as parts:
            async for number, rows in parts:
                sent = await asyncio.to_thread(_add, dataset, rows, number, told["options"]["validation_share"])
                if time.monotonic() >= stop_at:
                    await asyncio.to_thread(dataset.park, number + 1)
                    await _note(clients, export_id, worker, dataset.progress())
                    return False
                if sent or time.monotonic() - noted > NOTE_SECONDS:
                    await _note(clients, export_id, worker, dataset.progress())
                    noted = time.monotonic()
        return True
    finally:
        await asyncio.to_thread(dataset.close)


async def _whole(clients: Clients, dataset: Dataset, export_id: int, worker: str) -> list[dict[str, Any]]:
    """All files stored, which are this worker's meanwhile: those of several runs are read again, whole."""
    progress = dataset.progress()
    storing = asyncio.create_task(asyncio.to_thread(dataset.finish))
    try:
        while not storing.done():
            await _note(clients, export_id, worker, progress)
            await asyncio.wait([storing], timeout=NOTE_SECONDS)
    finally:
        await asyncio.wait([storing])
    return storing.result()


async def _finish(
    clients: Clients, told: Mapping[str, Any], worker: str, destination: Destination, files: Sequence[Mapping[str, Any]]
) -> None:
    export_id = told["id"]
    body = _manifest(told, files)
    await asyncio.to_thread(transfers.put, destination, MANIFEST, body, "application/json")
    manifest = {"path": f"{DATASETS}/{export_id}/{MANIFEST}", "sha256": hashlib.sha256(body).hexdigest()}
    rows = max((_rows(files, name) for name in told["options"]["formats"]), default=0)
    finished = {"id": export_id, "worker": worker, "files": files, "manifest": manifest, "rows": rows}
    _held(await _call(clients, "finish_export", finished))
    logger.info("an export is ready", extra={"exportId": export_id, "rows": rows})
    if (told["progress"] or {}).get("rewritten"):
        await _remove_strays(clients, export_id)
    if replaced := told.get("replaces"):
        await remove(clients, replaced)


async def _remove_strays(clients: Clients, export_id: int) -> None:
    """Remove files of before its rows were erased: of a worker who had one on its way when another began anew."""
    try:
        found = await read(clients, export_id)
        if found.status == "ready" and found.manifest:
            kept = {path for file in found.files for path in (file.path, file.sidecar)} | {MANIFEST}
            await asyncio.to_thread(transfers.remove_others, _destination(clients, export_id), kept)
        elif found.status in ("replaced", "failed"):
            await remove(clients, export_id)
    except GatewayError as error:
        logger.warning("files may be left of an export", extra={"exportId": export_id, "reason": error.message})


def _rows(files: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(file["rows"] for file in files if file["format"] == name)


def _manifest(told: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> bytes:
    """What the files are and what they came from; the same for the same export."""
    manifest = {
        "schemaVersion": SCHEMA_VERSION,
        "exportId": told["id"],
        "createdAt": told["created_at"],
        "files": files,
        "tokensAre": COUNTED,
        "lineage": "Line n of a file's sidecar names the conversation of its row n, and the row's own hash.",
        "options": Export(**told["options"]).model_dump(by_alias=True, mode="json"),
        "skipped": told["skipped"],
        "watermark": told["watermark"],
        "consent": told["consent"],
        "promptVersion": prompting.version("ai_finance"),
        "rules": told["rules"],
        "replaces": told.get("replaces"),
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n"


async def remove(clients: Clients, export_id: int) -> None:
    """Remove an export's files, the manifest first."""
    destination = _destination(clients, export_id)
    await asyncio.to_thread(transfers.remove_all, destination, MANIFEST)


async def _parts(
    clients: Clients, export_id: int, first: int, count: int
) -> AsyncGenerator[tuple[int, list[list[Any]]], None]:
    """The parts from the first on, of which the next is read while one is worked on."""
    reading = asyncio.create_task(_part(clients, export_id, first)) if first < count else None
    try:
        for number in range(first, count):
            assert reading
            rows = await reading
            reading = asyncio.create_task(_part(clients, export_id, number + 1)) if number + 1 < count else None
            yield number, rows
    finally:
        if reading:
            reading.cancel()


async def _part(clients: Clients, export_id: int, number: int) -> list[list[Any]]:
    arguments = {"id": export_id, "number": number}
    told = await database.bulk(clients.http, clients.settings, "read_export_part", arguments, CALL_SECONDS)
    rows: list[list[Any]] = told["rows"]
    return rows


def _add(dataset: Dataset, rows: Sequence[Sequence[Any]], number: int, validation_share: float) -> bool:
    dataset.add((_row(row, validation_share) for row in rows), number)
    return dataset.flush(number + 1)


def _row(stored: Sequence[Any], validation_share: float) -> Row:
    """A row of a part; a disliked answer of a user in the other half is left out."""
    id, conversation_id, instruction, input, output, turns, rejected, quality, tags, user_id, source, other_id = stored
    half = split(id if user_id is None else user_id, SPLIT_SALT, validation_share)
    if other_id is not None and split(other_id, SPLIT_SALT, validation_share) != half:
        rejected = None
    return Row(
        question=f"{instruction}\n\n{input}" if input else instruction,
        answer=output,
        turns=tuple(Exchange(*turn) for turn in turns) if turns else (),
        rejected=rejected,
        source=source,
        conversation_id=conversation_id,
        quality=quality,
        tags=tuple(tags or ()),
        split=half,
    )


async def do_what_can_be(clients: Clients, export_id: int, deadline: Deadline) -> None:
    """As far as a request's time allows; what is left goes to the worker, or waits for the same request again."""
    try:
        seconds = max(LEAST_SECONDS, deadline.remaining() - NOTE_SECONDS)
        if not await run(clients, export_id, time.monotonic() + seconds):
            await hand_over(clients, export_id)
    except Busy as busy:
        await hand_over(clients, export_id, busy.seconds)
    except Unavailable:
        if not clients.settings.export_queue_url:
            raise
        await hand_over(clients, export_id, LEASE_SECONDS)


async def hand_over(clients: Clients, export_id: int, delay_seconds: int = DELAY_SECONDS) -> None:
    """Leave the rest to a worker, if there is any."""
    if url := clients.settings.export_queue_url:
        await queue.send(url, {"export": export_id}, min(delay_seconds, LONGEST_SECONDS))


async def _note(clients: Clients, export_id: int, worker: str, progress: Mapping[str, Any] | None) -> None:
    noted = {"id": export_id, "worker": worker, "progress": progress, "lease_seconds": LEASE_SECONDS}
    try:
        _held(await _call(clients, "note_export", noted))
    except DatabaseUnavailable as error:
        logger.warning("an export can't be noted", extra={"exportId": export_id, "reason": error.message})


async def _release(clients: Clients, export_id: int, worker: str) -> None:
    with suppress(Unavailable):
        await _call(clients, "release_export", {"id": export_id, "worker": worker})


def _held(told: Mapping[str, Any]) -> None:
    if told["outcome"] != "noted":
        raise Lost


async def _call(
    clients: Clients, function: str, arguments: Mapping[str, Any], seconds: float = database.CALL_SECONDS
) -> Any:
    return await database.call(database.as_gateway(clients.http, clients.settings), function, arguments, seconds)


def _options(export: Export) -> dict[str, Any]:
    return export.model_dump(mode="json")


def _exported(told: Mapping[str, Any]) -> Exported:
    manifest = (told["manifest"] or {}).get("path")
    fields = {name: told[name] for name in Exported.model_fields if name in told}
    return Exported(
        **fields
        | {
            "export_id": told["id"],
            "manifest": manifest,
            "files": told["files"] or [],
            "skipped": told["skipped"] or {},
            "rows": told["rows"] or 0,
        }
    )


def _destination(clients: Clients, export_id: int) -> Destination:
    return storage.Storage(clients.settings, clients.http).destination(f"{DATASETS}/{export_id}")


if __name__ == "__main__":
    from shared.exports_command import main  # the terminal's part, which no function needs

    sys.exit(main())
