"""Fine-tuning by each provider's API, over real HTTP: files sent once, jobs started once, their end told."""

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shared import sources
from shared.errors import (
    GatewayError,
    InvalidRequest,
    Misconfigured,
    SourceRefused,
    StorageUnavailable,
    Unavailable,
)
from shared.fine_tune_course import TRAINERS
from shared.fine_tuning import FineTune, _files
from shared.prompting import Exchange
from shared.trainers.api import Api, File, Method, Order, Progress
from shared.training_formats import Name, Row, Split, write
from shared.transfers import MIB
from tests.stand_ins import serving
from tests.training_stand_ins import COMMIT, KEY, HuggingFace, OpenAI, Together, Training

TLS = ssl.create_default_context()  # read once, not for each client
REFERENCE = "0b9f5f0e-6c1e-4d7c-9d43-5a1b2c3d4e5f"
BASE = {"together": "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference", "openai": "gpt-4.1-mini-2025-04-14"}
BASE["huggingface"] = "Qwen/Qwen3-0.6B"
PATHS = {"together": "/v1", "openai": "/v1", "huggingface": ""}
STAND_INS = {"together": Together, "openai": OpenAI, "huggingface": HuggingFace}
JOBS = {"together": "POST /v1/fine-tunes", "openai": "POST /v1/fine_tuning/jobs", "huggingface": "POST /api/jobs"}
DATASET = f"acme/fine-tune-{REFERENCE}"
MODEL = "acme/ton-answers-0b9f5f0e"
TURNS = (Exchange("What is TON?", "A chain."),)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[Training]]]:
    """One server for all tests, which does as the last of the list says, and its origin."""
    stand_ins: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await stand_ins[-1].app()(scope, receive, send)

    with serving(app) as origin:
        yield origin, stand_ins


@pytest.fixture(params=list(TRAINERS))
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stand_in(provider: str, server: tuple[str, list[Training]]) -> Any:
    made = STAND_INS[provider](origin=server[0])
    server[1].append(made)
    return made


@asynccontextmanager
async def opened(provider: str, stand_in: Training, key: str = KEY) -> AsyncIterator[Api]:
    async with httpx.AsyncClient(trust_env=False, verify=TLS) as http:
        title, key_name = TRAINERS[provider].title, f"{provider.upper()}_API_KEY"
        yield Api(http, title, stand_in.origin + PATHS[provider], SecretStr(key), key_name)


def ordered(provider: str, method: Method = "supervised", **params: Any) -> Order:
    return Order(REFERENCE, "acme", BASE[provider], "TON answers", method, params)


def made(name: Name = "openai", split: Split = "train", rows: int = 12) -> File:
    """A file as an export has it; its second row has an earlier turn."""
    told = [
        Row(f"Question {number}?", f"Answer {number}.", "Be brief.", TURNS if number == 1 else (), "Bad — really.")
        for number in range(rows)
    ]
    content = b"".join(data for data, _ in write(name, told))

    def chunks() -> Iterator[bytes]:
        yield from (content[start : start + 100] for start in range(0, len(content), 100))

    return File(split, rows, len(content), hashlib.sha256(content).hexdigest(), chunks)


def whole(file: File) -> bytes:
    return b"".join(file.chunks())


async def trained(
    provider: str, stand_in: Training, order: Order, *splits: Split, key: str = KEY
) -> tuple[str, Progress | None]:
    """The job that comes of an order, and how it stands with it; as a worker does it from the beginning."""
    trainer = TRAINERS[provider]
    async with opened(provider, stand_in, key) as api:
        name = trainer.formats[order.method]
        sent: dict[str, str] = {}
        for split in splits or ("train",):
            sent[split] = await trainer.send(api, order, made(name, split, 12 if split == "train" else 3))
        job_id = await trainer.find(api, order, sent) or await trainer.start(api, order, sent)
        return job_id, await trainer.look(api, order, job_id)


async def refused(provider: str, stand_in: Training, key: str = KEY, **params: Any) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await trained(provider, stand_in, ordered(provider, **params), key=key)
    assert KEY not in f"{error.value!r} {error.value.message}"
    return error.value


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["supervised", "dpo"])
@pytest.mark.parametrize("splits", [("train",), ("train", "validation")], ids=" and ".join)
async def test_an_order_becomes_a_model(
    provider: str, stand_in: Training, method: Method, splits: tuple[Split, ...]
) -> None:
    _, progress = await trained(provider, stand_in, ordered(provider, method), *splits)

    assert progress and progress.course == "ready" and progress.failure is None
    assert progress.provider_model or progress.address == f"{stand_in.origin}/{MODEL}/tree/{COMMIT}"
    assert progress.finished_at and progress.finished_at.startswith("2026-1")


@pytest.mark.anyio
async def test_what_was_begun_is_found_again(provider: str, stand_in: Training) -> None:
    first, _ = await trained(provider, stand_in, ordered(provider), "train", "validation")
    again, _ = await trained(provider, stand_in, ordered(provider), "train", "validation")

    assert first == again
    assert stand_in.count(JOBS[provider]) == 1
    assert len(stand_in.files) == (1 if provider == "huggingface" else 2)
    assert stand_in.count("PUT") == (0 if provider == "openai" else 2)


@pytest.mark.anyio
async def test_a_job_that_is_another_ones_is_not_taken(provider: str, stand_in: Training) -> None:
    first, _ = await trained(provider, stand_in, ordered(provider))
    other = Order("another", "acme", BASE[provider], "TON answers", "supervised", {})

    second, _ = await trained(provider, stand_in, other)

    assert first != second
    assert stand_in.count(JOBS[provider]) == 2


@pytest.mark.anyio
@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
async def test_a_passing_failure_is_one_to_be_tried_again(provider: str, stand_in: Training, status: int) -> None:
    stand_in.instead.append((JOBS[provider], Response("slow down", status, {"retry-after": "7"})))

    error = await refused(provider, stand_in)

    assert isinstance(error, Unavailable)
    assert error.retry_after_seconds == 7


@pytest.mark.anyio
async def test_a_key_that_is_not_taken_is_named_and_never_shown(provider: str, stand_in: Training) -> None:
    with pytest.raises(Misconfigured) as error:
        await trained(provider, stand_in, ordered(provider), key="wrong")

    assert error.value.message.startswith(f"{provider.upper()}_API_KEY: ")
    assert "wrong" not in error.value.message


@pytest.mark.anyio
async def test_a_refusal_has_the_providers_words_without_the_key(provider: str, stand_in: Training) -> None:
    words = f"Insufficient credits\n for {KEY}."
    body = {"error": words if provider == "huggingface" else {"message": words}}
    stand_in.instead.append((JOBS[provider], JSONResponse(body, 402)))

    error = await refused(provider, stand_in)

    assert isinstance(error, InvalidRequest)
    assert error.message == f"{TRAINERS[provider].title} refuses this: Insufficient credits for …."


@pytest.mark.anyio
@pytest.mark.parametrize("body", ["", "[]", "{}", '{"id": 7}', "<html>", "[" * 10_000], ids=lambda body: body[:9])
async def test_an_answer_that_cannot_be_read_is_tried_again(provider: str, stand_in: Training, body: str) -> None:
    stand_in.instead.append((JOBS[provider], Response(body, 200, media_type="application/json")))

    assert isinstance(await refused(provider, stand_in), Unavailable)


@pytest.mark.anyio
@pytest.mark.parametrize("body", ["", "{}", '{"data": null}', '"a list"'])
async def test_a_list_that_cannot_be_read_starts_no_job(provider: str, stand_in: Training, body: str) -> None:
    stand_in.instead.append((JOBS[provider].replace("POST", "GET"), Response(body, 200)))

    assert isinstance(await refused(provider, stand_in), Unavailable)
    assert stand_in.jobs == {}


@pytest.mark.anyio
async def test_a_job_that_is_gone_is_told_apart(provider: str, stand_in: Training) -> None:
    job_id, _ = await trained(provider, stand_in, ordered(provider))
    stand_in.jobs.clear()

    async with opened(provider, stand_in) as api:
        assert await TRAINERS[provider].look(api, ordered(provider), job_id) is None


@pytest.mark.anyio
async def test_files_are_removed_and_stay_removed(provider: str, stand_in: Training) -> None:
    trainer = TRAINERS[provider]
    async with opened(provider, stand_in) as api:
        file_id = await trainer.send(api, ordered(provider), made())

        await trainer.remove(api, file_id)
        await trainer.remove(api, file_id)

    assert stand_in.files == {}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("provider", "state", "course"),
    [
        *(("together", state, "training") for state in ("pending", "queued", "running", "compressing", "uploading")),
        ("together", "cancel_requested", "training"),
        ("together", "cancelled", "cancelled"),
        ("together", "error", "failed"),
        ("together", "user_error", "failed"),
        ("together", "brand_new", "training"),
        *(("openai", state, "training") for state in ("validating_files", "queued", "running", "paused")),
        ("openai", "cancelled", "cancelled"),
        ("openai", "failed", "failed"),
        ("huggingface", "SCHEDULING", "training"),
        ("huggingface", "RUNNING", "training"),
        ("huggingface", "CANCELED", "cancelled"),
        ("huggingface", "DELETED", "cancelled"),
        ("huggingface", "ERROR", "failed"),
        ("huggingface", "BRAND_NEW", "training"),
    ],
)
async def test_a_status_is_one_of_ours(provider: str, stand_in: Training, state: str, course: str) -> None:
    stand_in.state = state

    _, progress = await trained(provider, stand_in, ordered(provider))

    assert progress and (progress.course, progress.status) == (course, state)
    assert bool(progress.failure) == (course in ("failed", "cancelled"))


# --- each of them ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["together"])
async def test_together_is_sent_the_bytes_where_it_says_so(provider: str, stand_in: Together) -> None:
    file = made("together")
    async with opened(provider, stand_in) as api:
        file_id = await TRAINERS[provider].send(api, ordered(provider), file)

    assert stand_in.asked == [
        "GET /v1/files",
        "POST /v1/files",
        f"PUT /signed/{file_id}",
        f"POST /v1/files/{file_id}/preprocess",
    ]
    assert stand_in.contents[file_id] == whole(file)
    assert stand_in.files[file_id]["filename"] == f"{REFERENCE}.train.jsonl"


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["together"])
async def test_together_is_sent_a_file_anew_that_it_may_not_have_whole(provider: str, stand_in: Together) -> None:
    stand_in.instead.append(("PUT /signed", Response("<Error/>", 503)))
    assert isinstance(await refused(provider, stand_in), Unavailable)

    await trained(provider, stand_in, ordered(provider))

    assert [file["Processed"] for file in stand_in.files.values()] == [True]


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["together"])
async def test_together_trains_with_what_was_asked_for(provider: str, stand_in: Together) -> None:
    lora = {"type": "Lora", "lora_r": 8, "lora_alpha": 16}
    params: dict[str, Any] = {"n_epochs": 3, "learning_rate": 1e-5, "training_type": lora, "dpo_beta": 0.2}

    await trained(provider, stand_in, ordered(provider, "dpo", **params), "train", "validation")

    [job] = stand_in.jobs.values()
    assert job["training_method"] == {"method": "dpo", "dpo_beta": 0.2}
    assert (job["n_epochs"], job["learning_rate"], job["training_type"], job["n_evals"]) == (3, 1e-5, lora, 1)
    assert job["suffix"] == "ton-answers"


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["together"])
async def test_together_says_why_a_job_has_failed(provider: str, stand_in: Together) -> None:
    stand_in.state = "user_error"
    event = {"object": "fine-tune-event", "level": None, "type": "job_error", "message": "Line 3 is too long."}
    later = {"object": "fine-tune-event", "level": "info", "type": "refund", "message": "Refunded."}
    stand_in.more = {"events": [event, later]}

    _, progress = await trained(provider, stand_in, ordered(provider))

    assert progress and progress.failure == "Together says user_error: Line 3 is too long."


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["openai"])
async def test_openai_is_sent_a_form(provider: str, stand_in: OpenAI) -> None:
    file = made("openai")
    async with opened(provider, stand_in) as api:
        file_id = await TRAINERS[provider].send(api, ordered(provider), file)

    assert stand_in.contents[file_id] == whole(file)
    assert stand_in.files[file_id]["filename"] == f"{REFERENCE}.train.jsonl"


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["openai"])
async def test_openais_file_is_found_on_a_later_page(provider: str, stand_in: OpenAI) -> None:
    for number in range(3):
        stand_in.keep(f"other-{number}.jsonl", b"{}")
    known = stand_in.keep(f"{REFERENCE}.train.jsonl", whole(made("openai")))

    async with opened(provider, stand_in) as api:
        assert await TRAINERS[provider].send(api, ordered(provider), made("openai")) == known["id"]
    assert stand_in.count("GET /v1/files") == 2


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["openai"])
async def test_openai_trains_with_what_was_asked_for(provider: str, stand_in: OpenAI) -> None:
    order = ordered(provider, "dpo", n_epochs=2, beta=0.1, seed=7)

    _, progress = await trained(provider, stand_in, order, "train", "validation")

    [job] = stand_in.jobs.values()
    assert job["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.1}}}
    assert (job["seed"], job["metadata"]) == (7, {"reference": REFERENCE})
    assert progress and progress.provider_model == f"ft:{BASE['openai']}:acme:ton-answers:7p4lURel"
    assert progress.metrics == {"trained_tokens": 5768, "step": 88.0, "train_loss": 0.478, "valid_loss": 0.5}


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["openai"])
async def test_openais_model_is_there_without_its_figures(provider: str, stand_in: OpenAI) -> None:
    stand_in.instead.append(("GET /v1/fine_tuning/jobs/ftjob-abc0/checkpoints", Response("", 500)))

    _, progress = await trained(provider, stand_in, ordered(provider))

    assert progress and progress.course == "ready" and progress.metrics == {"trained_tokens": 5768}


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["openai"])
async def test_openai_says_why_a_job_has_failed(provider: str, stand_in: OpenAI) -> None:
    stand_in.state = "failed"
    message = "The job failed due to an invalid training file."
    stand_in.more = {"error": {"code": "invalid_training_file", "message": message, "param": "training_file"}}

    _, progress = await trained(provider, stand_in, ordered(provider))

    assert progress and progress.failure == f"OpenAI says failed: {message}"


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["huggingface"])
@pytest.mark.parametrize(
    ("mode", "part_bytes"), [("regular", None), ("lfs", None), ("lfs", 1000)], ids=["regular", "whole", "in parts"]
)
async def test_hugging_face_has_rows_as_trl_reads_them(
    provider: str, stand_in: HuggingFace, mode: str, part_bytes: int | None
) -> None:
    stand_in.mode, stand_in.part_bytes = mode, part_bytes

    await trained(provider, stand_in, ordered(provider), "train", "validation")

    assert set(stand_in.files[DATASET]) == {"train.jsonl", "validation.jsonl"}
    rows = stand_in.rows(f"{DATASET}/train.jsonl")
    assert len(rows) == 12
    system, asked = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Question 1?"}
    earlier = [{"role": "user", "content": "What is TON?"}, {"role": "assistant", "content": "A chain."}]
    answer = {"role": "assistant", "content": "Answer 1."}
    assert rows[1] == {"prompt": [system, *earlier, asked], "completion": [answer]}


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["huggingface"])
async def test_hugging_face_has_pairs_as_trl_reads_them(provider: str, stand_in: HuggingFace) -> None:
    await trained(provider, stand_in, ordered(provider, "dpo"))

    row = stand_in.rows(f"{DATASET}/train.jsonl")[0]
    assert row["chosen"] == [{"role": "assistant", "content": "Answer 0."}]
    assert row["rejected"] == [{"role": "assistant", "content": "Bad — really."}]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["huggingface"])
async def test_hugging_face_runs_trls_script_on_the_dataset(provider: str, stand_in: HuggingFace) -> None:
    params: dict[str, Any] = {"flavor": "l4x1", "timeout_seconds": 7200, "num_train_epochs": 2, "use_peft": True}

    await trained(provider, stand_in, ordered(provider, **params), "train", "validation")

    [job] = stand_in.jobs.values()
    assert (job["flavor"], job["timeoutSeconds"], job["labels"]) == ("l4x1", 7200, {"fine-tune": REFERENCE})
    assert job["command"] == [
        *("uv", "run", "--with", "trl[peft]==1.9.0"),
        "https://raw.githubusercontent.com/huggingface/trl/v1.9.0/trl/scripts/sft.py",
        "--model_name_or_path=Qwen/Qwen3-0.6B",
        f"--dataset_name={DATASET}",
        "--output_dir=model",
        "--push_to_hub=true",
        f"--hub_model_id={MODEL}",
        "--hub_private_repo=true",
        "--report_to=none",
        "--dataset_test_split=validation",
        "--eval_strategy=epoch",
        "--num_train_epochs=2",
        "--use_peft=true",
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["huggingface"])
async def test_a_lists_values_stand_each_for_itself(provider: str, stand_in: HuggingFace) -> None:
    await trained(provider, stand_in, ordered(provider, lora_target_modules=["q", "v"], lora_r=8))

    [job] = stand_in.jobs.values()
    assert job["command"][-4:] == ["--lora_target_modules", "q", "v", "--lora_r=8"]


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["huggingface"])
async def test_a_lists_value_that_would_be_an_option_is_refused(provider: str, stand_in: HuggingFace) -> None:
    error = await refused(provider, stand_in, lora_target_modules=["q", "--push_to_hub=false"])

    assert isinstance(error, InvalidRequest)
    assert error.message == "params: lora_target_modules: --push_to_hub=false is no value."
    assert stand_in.jobs == {}


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["huggingface"])
@pytest.mark.parametrize("pushed", [{}, {"pytorch_model.bin": b""}], ids=["nothing", "no safetensors"])
async def test_a_job_that_has_pushed_no_weights_has_failed(
    provider: str, stand_in: HuggingFace, pushed: dict[str, bytes]
) -> None:
    stand_in.pushed = pushed

    _, progress = await trained(provider, stand_in, ordered(provider))

    assert progress and progress.course == "failed"
    assert progress.failure == f"The job has ended, and there are no weights at {MODEL}."


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["huggingface"])
async def test_a_repository_is_read_with_its_hosts_key(provider: str, stand_in: HuggingFace) -> None:
    """The stand-in has the weights at another host, which refuses any key."""
    _, progress = await trained(provider, stand_in, ordered(provider))
    assert progress and progress.address
    host = stand_in.origin.removeprefix("http://")
    hosts = [host, host.replace("127.0.0.1", "localhost")]

    found = await asyncio.to_thread(sources.find, progress.address, None, hosts, True, {host: SecretStr(KEY)})

    contents = {remote.path: b"".join(remote.chunks(0, remote.size)) for remote in found}
    assert contents == stand_in.pushed


@pytest.mark.parametrize("provider", ["huggingface"])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Response("", 401), SourceRefused),
        (Response("", 404), SourceRefused),
        (Response("", 307, {"location": "/elsewhere"}), SourceRefused),
        (JSONResponse([]), SourceRefused),
        (JSONResponse([{"type": "file", "path": str(number)} for number in range(1001)]), SourceRefused),
        (JSONResponse([{"type": "file", "path": "a"}], headers={"link": '</next>; rel="next"'}), SourceRefused),
        (Response("", 429), StorageUnavailable),
        (Response("", 503), StorageUnavailable),
        (JSONResponse({"error": "no"}), StorageUnavailable),
        (JSONResponse([{"type": "file"}]), StorageUnavailable),
        (Response("<html>", 200), StorageUnavailable),
    ],
    ids=["401", "404", "moved", "empty", "many", "pages", "429", "503", "object", "nameless", "html"],
)
def test_a_repository_that_cannot_be_read_is_said(
    provider: str, stand_in: HuggingFace, answer: Response, kind: type[GatewayError]
) -> None:
    stand_in.instead.append((f"GET /api/models/{MODEL}/tree", answer))
    host = stand_in.origin.removeprefix("http://")
    address = f"{stand_in.origin}/{MODEL}/tree/{COMMIT}"

    with pytest.raises(kind) as error:
        sources.find(address, None, [host], True, {host: SecretStr(KEY)})

    assert type(error.value) is kind


@pytest.mark.anyio
@pytest.mark.parametrize("provider", ["together", "openai"])
async def test_a_file_is_read_as_fast_as_it_is_sent(provider: str) -> None:
    """Never is more of it in memory than a few of its pieces and what the sockets hold."""
    read_bytes = sent_bytes = most_bytes = 0
    size = 64 * MIB

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent_bytes
        request = Request(scope, receive)
        async for chunk in request.stream():
            sent_bytes += len(chunk)
        answer: Response = JSONResponse({"id": "file-1", "data": []})
        if (provider, request.method, request.url.path) == ("together", "POST", "/v1/files"):
            headers = {"location": f"{origin}/signed", "x-together-file-id": "file-1"}
            answer = Response(status_code=302, headers=headers)
        await answer(scope, receive, send)

    def chunks() -> Iterator[bytes]:
        nonlocal read_bytes, most_bytes
        for _ in range(size // MIB):
            read_bytes += MIB
            yield bytes(MIB)
            most_bytes = max(most_bytes, read_bytes - sent_bytes)

    with serving(counting) as origin:
        async with opened(provider, Training(origin=origin)) as api:
            file_id = await TRAINERS[provider].send(api, ordered(provider), File("train", 1, size, "", chunks))

    assert file_id == "file-1"
    assert sent_bytes >= size
    assert most_bytes < 16 * MIB


# --- what of an export is sent ---------------------------------------------------------------------------------------


def exported(*names: str, rows: int = 12, size_bytes: int = 1000) -> dict[str, Any]:
    """An export with these formats, and 3 rows in each one's validation file."""
    files = [
        {
            **{
                "path": f"{name}.{split}.jsonl",
                "format": name,
                "split": split,
                "rows": rows if split == "train" else 3,
            },
            **{"sizeBytes": size_bytes, "tokens": 9, "sha256": "a" * 64, "sidecar": f"{name}.{split}.rows.jsonl"},
        }
        for name in names
        for split in ("train", "validation")
    ]
    return {"id": 7, "status": "ready", "options": {"formats": list(names)}, "files": files}


def wanted(provider: str = "openai", method: Method = "supervised", **params: Any) -> FineTune:
    return FineTune(provider=provider, base_model=BASE[provider], method=method, params=params)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("provider", "method", "name"),
    [
        ("together", "supervised", "together"),
        ("together", "dpo", "together_dpo"),
        ("openai", "supervised", "openai"),
        ("openai", "dpo", "openai_dpo"),
        ("huggingface", "supervised", "openai"),
        ("huggingface", "dpo", "together_dpo"),
    ],
)
def test_the_file_is_the_one_for_the_provider_and_the_method(provider: str, method: Method, name: str) -> None:
    export = exported("alpaca", "openai", "openai_dpo", "together", "together_dpo")

    files = _files(export, TRAINERS[provider], wanted(provider, method))

    assert [(file["path"], file["rows"]) for file in files] == [
        (f"{name}.train.jsonl", 12),
        (f"{name}.validation.jsonl", 3),
    ]


@pytest.mark.parametrize(
    ("export", "request_", "told"),
    [
        (exported("alpaca"), wanted(), "formats: export with openai for supervised fine-tuning by OpenAI."),
        (exported("openai"), wanted(method="dpo"), "formats: export with openai_dpo for dpo fine-tuning by OpenAI."),
        (exported("openai", rows=9), wanted(), "Export 7 has 9 rows to train on, and OpenAI takes no fewer than 10"),
        ({**exported("openai"), "files": []}, wanted(), "Export 7 has 0 rows to train on"),
        ({**exported("openai"), "files": None}, wanted(), "Export 7 has 0 rows to train on"),
        (exported("openai", size_bytes=600_000_000), wanted(), "openai.train.jsonl is larger than the 512 MB"),
        (exported("openai"), wanted(model="gpt-5"), "params: model: none of batch_size, learning_rate_multiplier"),
        (exported("openai"), wanted(beta=0.1), "params: beta: none of"),
        (exported("together"), wanted("together", hf_api_token="x"), "params: hf_api_token: none of"),
        (exported("openai"), wanted("huggingface", push_to_hub=False), "params: push_to_hub: none of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_trained_on_is_said(export: dict[str, Any], request_: FineTune, told: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        _files(export, TRAINERS[request_.provider], request_)

    assert error.value.message.startswith(told)


@pytest.mark.parametrize(
    "params",
    [{"seed": float("nan")}, {"seed": "\ud800"}, {"seed": "\0"}, {"a": "b" * 201}, {"a": [0] * 2000}],
    ids=["nan", "half", "nul", "long", "many"],
)
def test_params_are_plain(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        wanted(**params)
    assert json.loads(json.dumps({"n_epochs": 3})) == wanted(n_epochs=3).params
