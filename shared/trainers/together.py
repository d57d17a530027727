"""Together's fine-tuning: https://docs.together.ai/reference/post-fine-tunes.

Files go as its SDKs send them (together-python, src/together/filemanager.py): POST /files answers with a redirect to
where the bytes are to be put, and with the file's id; once they are there, POST /files/{id}/preprocess has them read.
Larger ones than 5 GB would go in parts.
"""

from collections.abc import Mapping
from typing import Any

from shared.trainers.api import Api, Course, File, Order, Progress, Trainer, read, rows, suffix, text

COURSES: dict[str, Course] = {
    "completed": "ready",
    "error": "failed",
    "user_error": "failed",
    "cancelled": "cancelled",
}
SUFFIX_CHARACTERS = 40
COMMON = frozenset(
    {
        *("n_epochs", "learning_rate", "lr_scheduler", "batch_size", "n_checkpoints", "n_evals", "warmup_ratio"),
        *("max_grad_norm", "weight_decay", "training_type"),
    }
)
OF_METHOD = {
    "supervised": frozenset({"train_on_inputs"}),
    "dpo": frozenset({"dpo_beta", "dpo_normalize_logratios_by_length", "rpo_alpha", "simpo_gamma"}),
}
TOLD = ("token_count", "epochs_completed", "steps_completed", "total_steps", "evals_completed", "param_count")


async def send(api: Api, order: Order, file: File) -> str:
    """One that was sent before and has been read is taken; of one that hasn't, nobody knows whether it is whole."""
    name = order.file_name(file.split)
    for known in rows(api, await api.ask("GET", "/files")):
        if known.get("filename") == name:
            if known.get("Processed"):
                return text(api, known, "id")
            await remove(api, text(api, known, "id"))
    asked = {"purpose": "fine-tune", "file_name": name, "file_type": "jsonl"}
    response = await api.send("POST", f"{api.base_url}/files", data=asked, headers=api.headers())
    if not response.has_redirect_location:
        read(api, response)
        raise api.unreadable()
    file_id = response.headers.get("x-together-file-id")
    if not file_id:
        raise api.unreadable()
    await api.put(response.headers["location"], file.stream(), file.size_bytes)
    await api.ask("POST", f"/files/{file_id}/preprocess")
    return str(file_id)


async def find(api: Api, order: Order, files: Mapping[str, str]) -> str | None:
    """By its training file, which no other job has."""
    listed = rows(api, await api.ask("GET", "/fine-tunes"))
    return next((text(api, row, "id") for row in listed if row.get("training_file") == files["train"]), None)


async def start(api: Api, order: Order, files: Mapping[str, str]) -> str:
    """Without a word on it Together trains a LoRA, and serves it as it serves a whole model."""
    of_method = {name: value for name, value in order.params.items() if name in OF_METHOD[order.method]}
    method = {"method": "dpo"} if order.method == "dpo" else {"method": "sft", "train_on_inputs": "auto"}
    body = {
        "model": order.base_model,
        "training_file": files["train"],
        "suffix": suffix(order.model_name, SUFFIX_CHARACTERS),
        "n_epochs": 1,
        "training_method": method | of_method,
        **({"validation_file": files["validation"], "n_evals": 1} if "validation" in files else {}),
        **{name: value for name, value in order.params.items() if name not in of_method},
    }
    return text(api, await api.ask("POST", "/fine-tunes", body), "id")


async def look(api: Api, order: Order, job_id: str) -> Progress | None:
    job = await api.ask("GET", f"/fine-tunes/{job_id}", absent=404)
    if job is None:
        return None
    status = text(api, job, "status")
    course = COURSES.get(status, "training")
    if course in ("failed", "cancelled"):
        return Progress(course, status, f"Together says {status}{_reason(api, job)}.")
    metrics = {name: job[name] for name in TOLD if isinstance(job.get(name), int | float)}
    if course == "training":
        return Progress(course, status, metrics=metrics)
    model = text(api, job, "model_output_name")
    finished_at = job.get("updated_at")
    return Progress(course, status, provider_model=model, metrics=metrics, finished_at=finished_at)


def _reason(api: Api, job: dict[str, Any]) -> str:
    """What the last of the job's events says of an error."""
    events = [event for event in job.get("events") or [] if isinstance(event, dict) and event.get("message")]
    errors = [
        event
        for event in events
        if str(event.get("level")).lower() == "error" or "error" in str(event.get("type")).lower()
    ]
    return f": {api.said(errors[-1]['message'])}" if errors else ""


async def remove(api: Api, file_id: str) -> None:
    await api.ask("DELETE", f"/files/{file_id}", absent=404)


TRAINER = Trainer(
    title="Together",
    formats={"supervised": "together", "dpo": "together_dpo"},
    params={"supervised": COMMON | OF_METHOD["supervised"], "dpo": COMMON | OF_METHOD["dpo"]},
    least_rows=1,
    most_bytes=5 * 1024**3,
    needs_namespace=False,
    send=send,
    find=find,
    start=start,
    look=look,
    remove=remove,
)
