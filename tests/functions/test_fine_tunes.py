"""Fine-tune jobs on an export, from the request to the version: in the database, with each provider's stand-in."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, LiteralString
from uuid import uuid4

import boto3
import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from functions.export_training_data import fine_tunes
from infra.local.stack import Stack
from shared import database, deployments, erasure, fine_tuning, queue, registry, web
from shared.clients import Clients, keeper
from shared.errors import Conflict, InvalidRequest, Misconfigured, NotFound, TransferRunning, Unavailable
from shared.exports import Export
from shared.fine_tuning import FineTune, Job
from shared.models import Deadline
from shared.settings import Settings, load
from shared.storage import Storage
from shared.training_formats import Name, Row, write
from tests.shared import model_files
from tests.sql import retire
from tests.stand_ins import serving
from tests.training_stand_ins import COMMIT, KEY, HuggingFace, OpenAI, Together, Training

BASE = {
    "together": "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference",
    "openai": "gpt-4.1-mini-2025-04-14",
    "huggingface": "Qwen/Qwen3-0.6B",
}
STARTS = {"together": "POST /v1/fine-tunes", "openai": "POST /v1/fine_tuning/jobs", "huggingface": "POST /api/jobs"}
SENDS = {"together": "GET /v1/files", "openai": "GET /v1/files", "huggingface": "POST /api/repos/create"}  # each file
PUSHED = {
    **{".gitattributes": b"*.safetensors filter=lfs", "README.md": b"# TON", "config.json": model_files.CONFIG},
    **{"model.safetensors": model_files.weights(1000), "training_args.bin": b"\x80\x04."},
}
OPTIONS = Export().model_dump(mode="json")
FORMATS: tuple[Name, ...] = ("openai", "together", "openai_dpo", "together_dpo")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """One server of all providers' stand-ins."""
    stand_ins: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        _, provider, path = scope["path"].split("/", 2)
        if provider not in ("together", "openai"):  # repositories' addresses begin at the root
            provider, path = "huggingface", scope["path"][1:]
        await stand_ins[provider].app()({**scope, "path": f"/{path}"}, receive, send)

    with serving(app) as origin:
        yield origin, stand_ins


@pytest.fixture
def stand_ins(server: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    origin, known = server
    for name, kind in (("together", Together), ("openai", OpenAI), ("huggingface", HuggingFace)):
        known[name] = kind(origin=origin if name == "huggingface" else f"{origin}/{name}")
    known["huggingface"].pushed = PUSHED
    return known


@pytest.fixture(params=list(BASE))
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stand_in(provider: str, stand_ins: dict[str, Any]) -> Any:
    return stand_ins[provider]


@pytest.fixture
def settings(stack: Stack, server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The stack's, without a queue."""
    origin = server[0]
    urls = {"together": "/together/v1", "openai": "/openai/v1", "huggingface": ""}
    rows = {name: {"base_url": f"{origin}/chat", "tuning_url": origin + path} for name, path in urls.items()}
    keys = {f"{name.upper()}_API_KEY": KEY for name in urls}
    own = {"MODEL_PROVIDERS": json.dumps(rows), "HUGGINGFACE_NAMESPACE": "acme"}
    hosts = {"SOURCE_HOSTS": f"{origin[7:]}, {origin[7:].replace('127.0.0.1', 'localhost')}"}
    queues = {"EXPORT_QUEUE_URL": "", "DEPLOYMENT_QUEUE_URL": ""}
    for name, value in {**stack.environment, **keys, **own, **queues, **hosts, "ALLOW_PRIVATE_SOURCES": "true"}.items():
        monkeypatch.setenv(name, value)
    return load()


@pytest.fixture
def messages(stack: Stack, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Any]]]:
    """A queue for exports; gives what was put on it, whenever that is to be delivered."""
    sqs = boto3.client("sqs")
    url = sqs.create_queue(QueueName=f"exports-{uuid4().hex}")["QueueUrl"]
    settings.export_queue_url = url
    queue._sqs.cache_clear()

    def counted() -> list[int]:
        names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed"]
        found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return [int(found[name]) for name in names]

    yield counted
    queue._sqs.cache_clear()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Clients]:
    clients = Clients.open(settings)
    async with clients.http:
        yield clients


class Exported:
    """An export of a test's own with 12 rows to train on and 3 to validate with, and its jobs."""

    def __init__(self, stack: Stack, settings: Settings, rows: int = 12) -> None:
        self.stack, self.settings, self.model_name = stack, settings, f"ton-{uuid4().hex[:8]}"
        self.id = self.sql(
            "insert into public.training_exports"
            " (status, options, rules, collected_from, collected_until, to_collect)"
            " values ('ready', '{}', 'r', '0', '0', 0) returning id"
        )
        self.described = {"id": self.id, "options": {"formats": list(FORMATS)}, "files": list(self.written(rows))}

    def written(self, rows: int) -> Iterator[dict[str, Any]]:
        storage = Storage(self.settings, None)  # type: ignore[arg-type]  # S3 needs no HTTP client of ours
        folder = storage.destination(f"datasets/{self.id}")
        for name in FORMATS:
            for split, count in (("train", rows), ("validation", 3)):
                told = [Row(f"{split} {n}?", f"Answer {n}.", "Be brief.", rejected="Bad.") for n in range(count)]
                content = b"".join(data for data, _ in write(name, told))
                path = f"{name}.{split}.jsonl"
                folder.s3.put_object(Bucket=folder.bucket, Key=folder.key(path), Body=content)
                yield {
                    **{"path": path, "format": name, "split": split, "rows": count, "sizeBytes": len(content)},
                    "sha256": hashlib.sha256(content).hexdigest(),
                }

    def sql(self, query: LiteralString, *values: Any) -> Any:
        with psycopg.connect(self.stack.database_url, autocommit=True) as connection:
            found = connection.execute(query, values)
            row = found.fetchone() if found.description else None
            return row[0] if row else None

    def wanted(self, provider: str, **more: Any) -> FineTune:
        return FineTune(provider=provider, base_model=BASE[provider], **{"model_name": self.model_name, **more})  # type: ignore[arg-type]

    async def start(self, clients: Clients, provider: str, seconds: float = 20, **more: Any) -> Job:
        wanted = self.wanted(provider, **more)
        return await fine_tuning.start(clients, self.described, wanted, "user 1", Deadline.after(seconds))

    def cancel(self) -> None:
        """End its jobs, as an erasure does with those that send files."""
        self.sql(
            "update public.fine_tune_jobs set status = 'cancelled', finished_at = now() where export_id = %s", self.id
        )

    def jobs(self) -> list[str]:
        """What their statuses are, the first first."""
        query = "select coalesce(jsonb_agg(status order by id), '[]') from public.fine_tune_jobs where export_id = %s"
        found: list[str] = self.sql(query, self.id)
        return found


@pytest.fixture
def export(stack: Stack, settings: Settings) -> Iterator[Exported]:
    exported = Exported(stack, settings)
    yield exported
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        retire(connection, exported.model_name)
        connection.execute("delete from public.fine_tune_jobs where export_id = %s", [exported.id])
        connection.execute("delete from public.training_exports where %s in (id, replaces)", [exported.id])


@pytest.mark.anyio
async def test_an_export_becomes_a_version_with_its_lineage(
    settings: Settings, export: Exported, provider: str, stand_in: Training
) -> None:
    async with opened(settings) as clients:
        begun = await export.start(clients, provider)
        job = await fine_tuning.check(clients, begun.id)
        version = await registry.version(
            database.as_gateway(clients.http, settings), export.model_name, f"job-{job.id}"
        )

    assert begun.status == job.status == "ready"
    assert (job.model, job.version, job.failure) == (export.model_name, version.version, None)
    assert set(job.provider_files) == {"train", "validation"}
    assert (version.status, version.base_model, version.provider) == ("ready", BASE[provider], provider)
    assert (version.dataset_export_id, version.training_data_size) == (export.id, 12)
    assert version.fine_tuned_on and version.fine_tuned_on.year == 2026
    if provider == "huggingface":
        repository = f"acme/{export.model_name}-{stand_in.jobs[job.provider_job_id or '']['labels']['fine-tune'][:8]}"
        assert (version.provider_model, version.source) == (None, f"{stand_in.origin}/{repository}/tree/{COMMIT}")
        assert {file["path"] for file in version.files or []} == {"README.md", "config.json", "model.safetensors"}
    else:
        assert version.provider_model and export.model_name in version.provider_model
        assert version.source == f"{provider}:{job.provider_job_id}"
        assert (version.performance_metrics or {})["training"]


@pytest.mark.anyio
async def test_the_same_request_gives_the_same_job(
    settings: Settings, export: Exported, provider: str, stand_in: Training
) -> None:
    stand_in.state = "running"
    async with opened(settings) as clients:
        jobs = [await export.start(clients, provider) for _ in range(3)]
        other = await export.start(clients, provider, method="dpo")

    assert {job.id for job in jobs} == {jobs[0].id}
    assert other.id != jobs[0].id
    assert stand_in.count(STARTS[provider]) == 2
    assert export.jobs() == ["training", "training"]


@pytest.mark.anyio
async def test_of_many_requests_at_once_one_starts_the_job(
    settings: Settings, export: Exported, stand_ins: dict[str, Any]
) -> None:
    stand_ins["together"].state = "running"
    async with opened(settings) as clients:
        jobs = await asyncio.gather(*(export.start(clients, "together") for _ in range(5)))

    assert {job.id for job in jobs} == {jobs[0].id}
    assert stand_ins["together"].count("POST /v1/fine-tunes") == 1
    assert export.jobs() == ["training"]


@pytest.mark.anyio
async def test_a_job_whose_answer_was_lost_is_found_and_not_paid_twice(
    settings: Settings, export: Exported, provider: str, stand_in: Training
) -> None:
    stand_in.state = "running"
    async with opened(settings) as clients:
        job = await export.start(clients, provider)
        forget = (
            "update public.fine_tune_jobs set status = 'uploading', provider_job_id = null, provider_files = '{}'"
            " where id = %s"
        )
        export.sql(forget, job.id)

        again = await export.start(clients, provider)

    assert again.provider_job_id == job.provider_job_id
    assert set(again.provider_files) == {"train", "validation"}
    assert stand_in.count(STARTS[provider]) == 1
    assert len(stand_in.files) == (1 if provider == "huggingface" else 2)


@pytest.mark.anyio
async def test_a_provider_that_is_busy_is_asked_again(
    settings: Settings, export: Exported, provider: str, stand_in: Training, messages: Callable[[], list[int]]
) -> None:
    stand_in.instead.append((STARTS[provider], Response("", 429, {"retry-after": "30"})))
    async with opened(settings) as clients:
        waiting = await export.start(clients, provider)
        await fine_tuning.carry_on(clients, waiting.id, 30)
        job = await fine_tuning.read(database.as_gateway(clients.http, settings), waiting.id)

    assert (waiting.status, job.status) == ("uploading", "ready")
    assert messages() == [0, 1]


@pytest.mark.anyio
async def test_without_a_queue_the_request_says_that_it_has_to_wait(
    settings: Settings, export: Exported, stand_ins: dict[str, Any]
) -> None:
    stand_ins["together"].instead.append(("POST /v1/fine-tunes", Response("", 503)))
    async with opened(settings) as clients:
        with pytest.raises(Unavailable):
            await export.start(clients, "together")

        checked = await fine_tuning.check_all(clients)

    assert export.jobs() == ["ready"]
    assert export.id in [job.export_id for job in checked]


@pytest.mark.anyio
async def test_a_message_comes_again_until_the_job_is_over(
    settings: Settings, export: Exported, stand_ins: dict[str, Any], messages: Callable[[], list[int]]
) -> None:
    stand_ins["openai"].state = "queued"
    async with opened(settings) as clients:
        job = await export.start(clients, "openai")
        first = messages()
        await fine_tuning.carry_on(clients, job.id, 30)
        second = messages()
        stand_ins["openai"].state = "succeeded"
        await fine_tuning.carry_on(clients, job.id, 30)
        await fine_tuning.carry_on(clients, job.id, 30)
        await fine_tuning.carry_on(clients, 2**62, 30)

    assert [first, second, messages()] == [[0, 1], [0, 2], [0, 2]]
    assert export.jobs() == ["ready"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("provider", "state", "more", "status", "failure"),
    [
        ("together", "cancelled", {}, "cancelled", "Together says cancelled."),
        ("together", "error", {}, "failed", "Together says error."),
        ("openai", "failed", {"error": {"message": "Bad data."}}, "failed", "OpenAI says failed: Bad data."),
        ("huggingface", "ERROR", {"message": "Out of memory"}, "failed", "Hugging Face says ERROR: Out of memory."),
    ],
)
async def test_a_job_that_comes_to_nothing_says_why_and_can_be_begun_anew(
    settings: Settings,
    export: Exported,
    stand_in: Training,
    provider: str,
    state: str,
    more: dict[str, Any],
    status: str,
    failure: str,
) -> None:
    good, stand_in.state, stand_in.more = stand_in.state, state, more
    async with opened(settings) as clients:
        job = await export.start(clients, provider)
        stand_in.state, stand_in.more = good, {}
        anew = await export.start(clients, provider)

    assert (job.status, job.failure) == (status, failure)
    assert job.finished_at
    assert anew.id != job.id and anew.status == "ready"


@pytest.mark.anyio
async def test_a_provider_that_refuses_ends_the_job_with_its_words(
    settings: Settings, export: Exported, provider: str, stand_in: Training
) -> None:
    error = {"error": "No." if provider == "huggingface" else {"message": "No."}}
    stand_in.instead.append((STARTS[provider], JSONResponse(error, 400)))
    async with opened(settings) as clients:
        job = await export.start(clients, provider)

    assert job.status == "failed" and (job.failure or "").endswith(" refuses this: No.")


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["huggingface"])
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("POST /datasets", '{"objects": [{}, {"error": 7}]}'),
        ("POST /datasets", '{"objects": [{"actions": "none"}]}'),
        ("POST /api/datasets", '{"files": []}'),
    ],
)
async def test_an_answer_of_another_shape_is_tried_again(
    settings: Settings, export: Exported, provider: str, stand_in: Training, call: str, answer: str
) -> None:
    stand_in.instead.append((call, Response(answer)))
    async with opened(settings) as clients:
        with pytest.raises(Unavailable):
            await export.start(clients, provider)

    assert export.jobs() == ["uploading"]


@pytest.mark.anyio
async def test_a_provider_that_stays_away_ends_the_job(
    settings: Settings, export: Exported, stand_ins: dict[str, Any], messages: Callable[[], list[int]]
) -> None:
    async with opened(settings) as clients:
        stand_ins["openai"].instead.append(("POST /v1/fine_tuning", Response("", 503)))
        job = await export.start(clients, "openai")
        export.sql("update public.fine_tune_jobs set tries = 19 where id = %s", job.id)
        stand_ins["openai"].instead.append(("POST /v1/fine_tuning", Response("", 503)))
        await fine_tuning.carry_on(clients, job.id, 30)
        job = await fine_tuning.read(database.as_gateway(clients.http, settings), job.id)

    assert job.failure == "It could not be begun in 20 tries. OpenAI is busy or failing: try again."
    assert messages() == [0, 1]


@pytest.mark.anyio
async def test_weights_that_are_not_taken_end_the_job(
    settings: Settings, export: Exported, stand_ins: dict[str, Any]
) -> None:
    stand_ins["huggingface"].pushed = {**PUSHED, "model.safetensors": b"no weights"}
    async with opened(settings) as clients:
        job = await export.start(clients, "huggingface")

    assert job.status == "failed"
    assert (job.failure or "").startswith("model.safetensors: ")


@pytest.mark.anyio
async def test_a_key_that_is_wrong_for_a_while_loses_no_job(
    settings: Settings, export: Exported, stand_ins: dict[str, Any], messages: Callable[[], list[int]]
) -> None:
    stand_ins["openai"].state = "running"
    async with opened(settings) as clients:
        job = await export.start(clients, "openai")
        stand_ins["openai"].instead.append(("GET /v1/fine_tuning", Response("", 401)))
        await fine_tuning.carry_on(clients, job.id, 30)
        stand_ins["openai"].instead.append(("GET /v1/fine_tuning", Response("", 401)))
        with pytest.raises(Misconfigured):
            await fine_tuning.check(clients, job.id)

    assert export.jobs() == ["training"]
    assert messages() == [0, 2]


@pytest.mark.anyio
async def test_a_key_that_is_missing_for_a_while_loses_no_model(
    settings: Settings,
    export: Exported,
    provider: str,
    stand_in: Training,
    messages: Callable[[], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(settings) as clients:
        trained = await export.start(clients, provider, seconds=deployments.NOTE_SECONDS)
        monkeypatch.delenv(f"{provider.upper()}_API_KEY")
        await fine_tuning.carry_on(clients, trained.id, 30)
        with pytest.raises(Misconfigured):
            await fine_tuning.check(clients, trained.id)
        waiting = export.jobs()
        monkeypatch.setenv(f"{provider.upper()}_API_KEY", KEY)
        job = await fine_tuning.check(clients, trained.id)

    assert waiting == [trained.status] == ["deploying"]
    assert messages() == [0, 2]
    assert job.status == "ready"


@pytest.mark.anyio
async def test_a_job_in_other_hands_is_left_to_them(
    settings: Settings, export: Exported, stand_ins: dict[str, Any]
) -> None:
    stand_ins["openai"].state = "running"
    async with opened(settings) as clients:
        job = await export.start(clients, "openai")
        claim = {"id": job.id, "worker": str(uuid4()), "lease_seconds": 60}
        await database.call(database.as_gateway(clients.http, settings), "claim_fine_tune", claim)
        with pytest.raises(TransferRunning):
            await fine_tuning.check(clients, job.id)

        assert (await export.start(clients, "openai")).id == job.id


@pytest.mark.anyio
async def test_what_a_request_has_no_time_for_a_worker_does(
    settings: Settings, export: Exported, stand_ins: dict[str, Any], messages: Callable[[], list[int]]
) -> None:
    async with opened(settings) as clients:
        begun = await export.start(clients, "huggingface", seconds=0)
        for _ in range(3):  # one run for what the request has left of sending and starting, one for a look at the job
            await fine_tuning.carry_on(clients, begun.id, 30)

    assert export.jobs() == ["ready"]
    assert stand_ins["huggingface"].count("POST /api/jobs") == 1


@pytest.mark.anyio
async def test_a_version_has_the_name_that_was_asked_for_once(
    settings: Settings, export: Exported, stand_ins: dict[str, Any]
) -> None:
    async with opened(settings) as clients:
        job = await export.start(clients, "openai", version="november")
        again = await export.start(clients, "openai", version="november")
        with pytest.raises(Conflict) as error:
            await export.start(clients, "together", version="november")

    assert job.id == again.id and job.version == "november"
    assert error.value.message.startswith(f"version: november of {export.model_name} ")
    assert stand_ins["together"].asked == []


@pytest.mark.anyio
@pytest.mark.parametrize("status", ["collecting", "writing", "failed", "replaced"])
async def test_an_export_that_is_not_ready_is_not_trained_on(
    settings: Settings, export: Exported, stand_ins: dict[str, Any], status: str
) -> None:
    export.sql("update public.training_exports set status = %s where id = %s", status, export.id)
    async with opened(settings) as clients:
        with pytest.raises(Conflict):
            await export.start(clients, "openai")

    assert stand_ins["openai"].asked == []


@pytest.mark.anyio
async def test_files_of_an_export_that_was_replaced_meanwhile_are_not_sent(
    settings: Settings, export: Exported, stand_ins: dict[str, Any], messages: Callable[[], list[int]]
) -> None:
    stand_ins["openai"].instead.append(("GET /v1/files", Response("", 503)))
    async with opened(settings) as clients:
        job = await export.start(clients, "openai")
        successor = (
            "insert into public.training_exports"
            " (status, options, rules, collected_from, collected_until, to_collect, replaces)"
            " values ('writing', '{}', 'r', '0', '0', 0, %s)"
        )
        export.sql(successor, export.id)
        await fine_tuning.carry_on(clients, job.id, 30)
        job = await fine_tuning.read(database.as_gateway(clients.http, settings), job.id)

    assert job.failure == f"Export {export.id} is replaced by now: fine-tune a ready one."
    assert stand_ins["openai"].files == {}


@pytest.mark.anyio
async def test_an_erasure_finds_the_jobs_and_has_their_files_removed(
    settings: Settings, export: Exported, provider: str, stand_in: Training
) -> None:
    async with opened(settings) as clients:
        job = await export.start(clients, provider)
        [found] = export.sql("select private.fine_tunes_of_exports(array[%s::bigint])", export.id)
        removed = await fine_tuning.remove_files(clients, job.id)

    assert (found["id"], found["provider_job_id"], found["version"]) == (job.id, job.provider_job_id, job.version)
    assert found["provider_files"] == job.provider_files
    assert stand_in.files == {}
    assert removed.provider_files == {"train": None, "validation": None}


@pytest.mark.anyio
@pytest.mark.parametrize("sent", [0, 1], ids=["the first file", "the second file"])
async def test_a_job_that_is_ended_while_a_file_goes_leaves_nothing(
    settings: Settings, export: Exported, provider: str, stand_in: Training, sent: int
) -> None:
    stand_in.meanwhile += [(SENDS[provider], list)] * sent + [(SENDS[provider], export.cancel)]
    async with opened(settings) as clients:
        job = await export.start(clients, provider)

    assert job.status == "cancelled"
    assert stand_in.files == {}
    assert stand_in.count(SENDS[provider]) == sent + 1
    assert stand_in.count(STARTS[provider]) == 0


@pytest.mark.anyio
async def test_a_job_that_is_ended_while_it_starts_leaves_no_files(
    settings: Settings, export: Exported, provider: str, stand_in: Training
) -> None:
    stand_in.meanwhile.append((STARTS[provider], export.cancel))
    async with opened(settings) as clients:
        job = await export.start(clients, provider)

    assert (job.status, stand_in.files) == ("cancelled", {})


@pytest.mark.anyio
async def test_of_a_job_that_is_ended_a_file_that_stays_keeps_no_other_there(
    settings: Settings, export: Exported, stand_ins: dict[str, Any]
) -> None:
    openai = stand_ins["openai"]
    openai.meanwhile += [("GET /v1/files", list), ("GET /v1/files", export.cancel)]
    openai.instead.append(("DELETE", Response("", 503)))
    async with opened(settings) as clients:
        job = await export.start(clients, "openai")

    assert job.status == "cancelled"
    assert list(openai.files) == [job.provider_files["train"]]


@pytest.mark.anyio
async def test_files_of_a_job_that_is_in_other_hands_by_now_are_left_to_them(
    settings: Settings, export: Exported, provider: str, stand_in: Training
) -> None:
    def lose() -> None:
        export.sql(
            "update private.fine_tune_leases set worker = gen_random_uuid()"
            " where job_id in (select id from public.fine_tune_jobs where export_id = %s)",
            export.id,
        )

    stand_in.meanwhile.append((SENDS[provider], lose))
    async with opened(settings) as clients:
        job = await export.start(clients, provider)

    assert (job.status, job.provider_files) == ("uploading", {})
    assert len(stand_in.files) == 1
    assert stand_in.count("DELETE") == stand_in.count(STARTS[provider]) == 0


@pytest.mark.anyio
async def test_a_file_that_was_removed_meanwhile_stays_removed(
    settings: Settings, export: Exported, provider: str, stand_in: Training
) -> None:
    def forget() -> None:
        export.sql(
            "select public.forget_fine_tune_files(id) from public.fine_tune_jobs where export_id = %s", export.id
        )

    stand_in.meanwhile += [(SENDS[provider], list), (SENDS[provider], forget)]
    async with opened(settings) as clients:
        job = await export.start(clients, provider)

    assert job.failure == "Its files have been removed: begin it anew."
    assert job.provider_files["train"] is None and job.provider_files["validation"]
    assert stand_in.count(STARTS[provider]) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("is_uploading", [True, False], ids=["uploading", "training"])
async def test_an_erasure_vouches_for_no_file_that_may_be_under_way(
    settings: Settings,
    export: Exported,
    stand_ins: dict[str, Any],
    messages: Callable[[], list[int]],
    is_uploading: bool,
) -> None:
    openai, user_id = stand_ins["openai"], 10**12 + export.id
    openai.state = "running"
    if is_uploading:
        openai.instead.append(("POST /v1/fine_tuning", Response("", 503)))
    export.sql("update public.training_exports set options = %s where id = %s", Jsonb(OPTIONS), export.id)
    export.sql(
        "insert into public.training_export_parts (export_id, number, ids, conversation_ids, user_ids)"
        " values (%s, 0, '{1}', '{1}', array[%s::bigint])",
        *(export.id, user_id),
    )
    async with opened(settings) as clients:
        job = await export.start(clients, "openai")
        erased = await erasure.erase(clients, user_id, "officer", Deadline.after(30))

    [told] = erased.jobs
    assert (told.id, told.status, told.files_deleted) == (job.id, job.status, not is_uploading)
    assert any("keeps the files" in said for said in erased.cannot_be_undone) == is_uploading
    assert openai.files == {}


@pytest.mark.anyio
async def test_jobs_are_listed_the_newest_first(
    settings: Settings, export: Exported, stand_ins: dict[str, Any]
) -> None:
    async with opened(settings) as clients:
        made = [await export.start(clients, "openai", params={"seed": seed}) for seed in (1, 2)]
        db = database.as_gateway(clients.http, settings)
        page = await fine_tuning.page(db, export.id, None)
        before = await fine_tuning.page(db, export.id, made[1].id)
        with pytest.raises(NotFound):
            await fine_tuning.read(db, 2**62)

    assert [job.id for job in page.jobs] == [made[1].id, made[0].id]
    assert [job.params for job in before.jobs] == [{"seed": 1}]
    assert page.next is None


@pytest.mark.anyio
async def test_a_base_model_gives_the_model_its_name(
    settings: Settings, export: Exported, stand_ins: dict[str, Any], stack: Stack
) -> None:
    async with opened(settings) as clients:
        job = await export.start(clients, "huggingface", model_name=None)

    assert job.model == "qwen3-0-6b"
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        retire(connection, job.model)


@pytest.mark.anyio
async def test_what_is_missing_is_said_before_anything_is_begun(
    settings: Settings, export: Exported, stand_ins: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.huggingface_namespace = None
    monkeypatch.delenv("OPENAI_API_KEY")
    async with opened(settings) as clients:
        with pytest.raises(Misconfigured) as no_namespace:
            await export.start(clients, "huggingface")
        with pytest.raises(Misconfigured) as no_key:
            await export.start(clients, "openai")
        with pytest.raises(InvalidRequest) as no_param:
            await export.start(clients, "together", params={"suffix": "x"})

    assert "HUGGINGFACE_NAMESPACE" in no_namespace.value.message
    assert "OPENAI_API_KEY" in no_key.value.message
    assert no_param.value.message.startswith("params: suffix: ")
    assert export.jobs() == []


@asynccontextmanager
async def routed(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The routes in this process, asked with the secret key."""
    keeper.cache_clear()
    app: Any = web.create_app("export-training-data", fine_tunes.router)
    headers = {"apikey": settings.supabase_secret_key.get_secret_value()}
    url = "http://functions/functions/v1/export-training-data"
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url, headers=headers) as api:
            yield api
        await keeper().http.aclose()
    finally:
        keeper.cache_clear()


@pytest.mark.anyio
async def test_a_job_is_begun_and_read_over_http(
    settings: Settings, export: Exported, stand_ins: dict[str, Any]
) -> None:
    wanted = {"provider": "openai", "baseModel": BASE["openai"], "params": {"n_epochs": 2}, "version": "http"}
    export.sql(
        "update public.training_exports set options = %s, files = %s where id = %s",
        *(Jsonb(export.described["options"]), Jsonb(export.described["files"]), export.id),
    )
    async with routed(settings) as api:
        begun = await api.post(f"/{export.id}/fine-tune", json={**wanted, "modelName": export.model_name})
        job = begun.json()
        read = await api.get(begun.headers["location"].removeprefix("/functions/v1/export-training-data"))
        checked = await api.post(f"/fine-tunes/{job['id']}/check")
        listed = await api.get("/fine-tunes", params={"exportId": export.id})

    assert (begun.status_code, job["status"], job["exportId"]) == (202, "ready", export.id)
    assert (job["model"], job["version"], job["params"]) == (export.model_name, "http", {"n_epochs": 2})
    assert begun.headers["location"].endswith(f"/fine-tunes/{job['id']}")
    assert read.json() == checked.json() == job
    assert listed.json() == {"jobs": [job], "next": None}


@pytest.mark.anyio
async def test_a_request_that_is_none_is_refused(settings: Settings, export: Exported, stack: Stack) -> None:
    wanted = {"provider": "openai", "baseModel": "gpt"}
    publishable = {"apikey": stack.keys.publishable}
    async with routed(settings) as api:
        answers = [
            await api.post(f"/{export.id}/fine-tune", json=wanted, headers=publishable),
            await api.get("/fine-tunes", headers=publishable),
            await api.get("/fine-tunes/1", headers=publishable),
            await api.post(f"/{2**62}/fine-tune", json=wanted),
            await api.get(f"/fine-tunes/{2**62}"),
            await api.post(f"/{export.id}/fine-tune", json={**wanted, "provider": "groq"}),
            await api.post(f"/{export.id}/fine-tune", json={**wanted, "version": "../x"}),
            await api.post(f"/{export.id}/fine-tune", json={**wanted, "params": []}),
            await api.post(f"/{export.id}/fine-tune", json={"provider": "openai"}),
        ]

    assert [answer.status_code for answer in answers] == [401, 401, 401, 404, 404, 422, 422, 422, 422]


def test_only_admins_read_the_jobs(stack: Stack, export: Exported) -> None:
    export.sql(
        "insert into public.fine_tune_jobs (export_id, provider, base_model, method, model_name, files)"
        " values (%s, 'openai', 'gpt', 'dpo', %s, %s)",
        *(export.id, export.model_name, Jsonb([])),
    )
    seen = []
    for role in ("admin", "user"):
        claims = json.dumps({"role": "authenticated", "app_metadata": {"role": role}})
        with psycopg.connect(stack.database_url) as connection:
            connection.execute("select set_config('request.jwt.claims', %s, true)", [claims])
            connection.execute("set local role authenticated")
            query = "select count(*) from public.fine_tune_jobs where export_id = %s"
            found = connection.execute(query, [export.id]).fetchone()
            assert found
            seen.append(found[0])

    assert seen == [1, 0]
