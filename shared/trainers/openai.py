"""OpenAI's fine-tuning: https://platform.openai.com/docs/api-reference/fine-tuning.

Until its end (no new jobs after 2027-01-06) it trains by supervision and by preferences, from files of up to 512 MB.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from shared.errors import GatewayError
from shared.trainers.api import UPLOAD_TIMEOUT, Api, Course, File, Order, Progress, Trainer, read, rows, suffix, text

COURSES: dict[str, Course] = {"succeeded": "ready", "failed": "failed", "cancelled": "cancelled"}
SUFFIX_CHARACTERS = 64
REFERENCE = "reference"  # among a job's metadata, by which jobs can be listed
HYPERPARAMETERS = frozenset({"n_epochs", "batch_size", "learning_rate_multiplier"})
BOUNDARY = "----one-file-of-training-data"  # no line of JSON begins like this


async def send(api: Api, order: Order, file: File) -> str:
    name = order.file_name(file.split)
    if known := await _known_file(api, name, file.size_bytes):
        return known
    head = (
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n'
        "content-type: application/jsonl\r\n\r\n"
    ).encode()
    end = f"\r\n--{BOUNDARY}--\r\n".encode()

    async def form() -> AsyncIterator[bytes]:
        yield head
        async for chunk in file.stream():
            yield chunk
        yield end

    headers = api.headers() | {
        "content-type": f"multipart/form-data; boundary={BOUNDARY}",
        "content-length": str(len(head) + file.size_bytes + len(end)),
    }
    url = f"{api.base_url}/files"
    response = await api.send("POST", url, content=form(), headers=headers, timeout=UPLOAD_TIMEOUT)
    return text(api, read(api, response), "id")


async def _known_file(api: Api, name: str, size_bytes: int) -> str | None:
    """One that was sent before, by a run that couldn't say so any more."""
    page = {"purpose": "fine-tune", "order": "desc", "limit": "10000"}
    while True:
        answer = await api.ask("GET", "/files", params=page)
        listed = rows(api, answer)
        for known in listed:
            if known.get("filename") == name and known.get("bytes") == size_bytes:
                return text(api, known, "id")
        if not listed or not answer.get("has_more"):
            return None
        page["after"] = text(api, listed[-1], "id")


async def find(api: Api, order: Order, files: Mapping[str, str]) -> str | None:
    by_reference = {f"metadata[{REFERENCE}]": order.reference}
    listed = rows(api, await api.ask("GET", "/fine_tuning/jobs", params=by_reference))
    ours = (job for job in listed if (job.get("metadata") or {}).get(REFERENCE) == order.reference)
    return next((text(api, job, "id") for job in ours), None)


async def start(api: Api, order: Order, files: Mapping[str, str]) -> str:
    hyperparameters = {name: value for name, value in order.params.items() if name != "seed"}
    body = {
        "model": order.base_model,
        "training_file": files["train"],
        **({"validation_file": files["validation"]} if "validation" in files else {}),
        "suffix": suffix(order.model_name, SUFFIX_CHARACTERS),
        "method": {"type": order.method, order.method: {"hyperparameters": hyperparameters}},
        "metadata": {REFERENCE: order.reference},
        **({"seed": order.params["seed"]} if "seed" in order.params else {}),
    }
    return text(api, await api.ask("POST", "/fine_tuning/jobs", body), "id")


async def look(api: Api, order: Order, job_id: str) -> Progress | None:
    job = await api.ask("GET", f"/fine_tuning/jobs/{job_id}", absent=404)
    if job is None:
        return None
    status = text(api, job, "status")
    course = COURSES.get(status, "training")
    if course in ("failed", "cancelled"):
        error = job.get("error") or {}
        reason = f": {api.said(error['message'])}" if isinstance(error, dict) and error.get("message") else ""
        return Progress(course, status, f"OpenAI says {status}{reason}.")
    metrics = {"trained_tokens": job["trained_tokens"]} if isinstance(job.get("trained_tokens"), int) else {}
    if course == "training":
        return Progress(course, status, metrics=metrics)
    model, at = text(api, job, "fine_tuned_model"), job.get("finished_at")
    finished_at = datetime.fromtimestamp(at, UTC).isoformat() if isinstance(at, int | float) else None
    metrics |= await _losses(api, job_id)
    return Progress(course, status, provider_model=model, metrics=metrics, finished_at=finished_at)


async def _losses(api: Api, job_id: str) -> dict[str, Any]:
    """The last checkpoint's figures; a job is no worse without them."""
    try:
        checkpoints = rows(api, await api.ask("GET", f"/fine_tuning/jobs/{job_id}/checkpoints"))
    except GatewayError:
        return {}
    last = max(checkpoints, key=lambda each: each.get("step_number") or 0, default={})
    found = last.get("metrics")
    figures = found if isinstance(found, dict) else {}
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


async def remove(api: Api, file_id: str) -> None:
    await api.ask("DELETE", f"/files/{file_id}", absent=404)


TRAINER = Trainer(
    title="OpenAI",
    formats={"supervised": "openai", "dpo": "openai_dpo"},
    params={"supervised": HYPERPARAMETERS | {"seed"}, "dpo": HYPERPARAMETERS | {"seed", "beta"}},
    least_rows=10,
    most_bytes=512 * 1000**2,
    needs_namespace=False,
    send=send,
    find=find,
    start=start,
    look=look,
    remove=remove,
)
