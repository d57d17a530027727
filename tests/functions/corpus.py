"""export-training-data as the tests call it: with conversations of a model of a test's own, by users who consent."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import psycopg

from infra.local.stack import Stack
from shared.splits import SPLIT_SALT, VALIDATION_SHARE, split
from tests.training_checks import check

PATH = "/functions/v1/export-training-data"


@dataclass
class Corpus:
    """One model's rated conversations; `model` keeps a test's exports from other tests' rows."""

    stack: Stack
    origin: str
    model: str = field(default_factory=lambda: f"own:{uuid4().hex[:12]}")

    def sql(self, query: str, *values: Any) -> list[Any]:
        with psycopg.connect(self.stack.database_url, autocommit=True) as connection:
            done = connection.execute(query, values or None)
            return done.fetchall() if done.description else []

    def user(self, consents: bool = True) -> int:
        """A user of the app."""
        [[user_id]] = self.sql("insert into users (training_consent) values (%s) returning user_id", consents)
        return int(user_id)

    def learner(self) -> int:
        """A user whose rows are trained on, and not validated with."""
        while split(user_id := self.user(), SPLIT_SALT, VALIDATION_SHARE) != "train":
            pass
        return user_id

    def put(self, user_id: int, question: str, answer: str, feedback: int | None = 1, **columns: Any) -> int:
        """A conversation as close_turn writes it; gives its id."""
        row = {
            "user_id": user_id,
            "thread_id": str(uuid4()),
            "message": question,
            "response": answer,
            "feedback": feedback,
            "status": "complete",
            "model_version": self.model,
            "context_used": '[{"id": 1, "similarity": 0.9, "content_hash": "00"}]',
            **columns,
        }
        names, places = ", ".join(row), ", ".join(["%s"] * len(row))
        query = f"insert into conversations ({names}) values ({places}) returning id"  # noqa: S608
        [[id]] = self.sql(query, *row.values())
        return int(id)

    def put_many(self, count: int, users: int = 20, start: int = 0) -> None:
        """So many liked conversations, each unlike the others."""
        self.sql(
            """
            with owners as (
                insert into users (training_consent) select true from generate_series(1, %s::int) returning user_id
            ), numbered as (select user_id, row_number() over () - 1 as place from owners)
            insert into conversations
                (user_id, thread_id, message, response, status, context_used, model_version, feedback)
            select
                user_id, gen_random_uuid(), 'Question ' || md5(n::text) || '?',
                'The answer is ' || md5((n * 7)::text) || ' and ' || md5((n * 11)::text) || ' for ' || n || ' reasons.',
                'complete', '[{"id": 1, "similarity": 0.9, "content_hash": "00"}]', %s, 1
            from generate_series(%s::int, %s::int) as n join numbered on place = n %% %s::int
            """,
            users, self.model, start + 1, start + count, users,
        )  # fmt: skip

    def call(self, method: str, path: str = "", body: Any = None, **headers: str) -> httpx.Response:
        """As the holder of the secret key."""
        headers = {"apikey": self.stack.keys.secret, **headers}
        return httpx.request(method, f"{self.origin}{PATH}{path}", json=body, headers=headers, timeout=60)

    def export(self, **options: Any) -> dict[str, Any]:
        """An export of the model's conversations, once it is ready."""
        answer = self.call("POST", body={"modelVersion": self.model, **options})
        assert answer.status_code in (201, 202), answer.text
        return self.until(answer.json()["exportId"])

    def until(self, export_id: int, status: str = "ready", seconds: float = 60) -> dict[str, Any]:
        ends, pause = time.monotonic() + seconds, 0.05
        while time.monotonic() < ends:
            found: dict[str, Any] = self.call("GET", f"/{export_id}").json()
            if found["status"] in (status, "failed"):
                break
            time.sleep(pause)
            pause = min(1.2 * pause, 0.5)
        assert found["status"] == status, found
        return found

    def files(self, export: dict[str, Any]) -> dict[str, bytes]:
        """The export's files by their names, checked against what the export says of them."""
        signed = self.call("GET", f"/{export['exportId']}/urls").json()["files"]
        found = {file["path"]: httpx.get(file["url"], timeout=60).raise_for_status().content for file in signed}
        for file in export["files"]:
            content, notes = found[file["path"]], found[file["sidecar"]]
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
            assert hashlib.sha256(notes).hexdigest() == file["sidecarSha256"]
            assert len(content) == file["sizeBytes"], file
            assert len(notes.splitlines()) == file["rows"]
        return found

    def rows(self, export: dict[str, Any], name: str = "alpaca") -> list[Any]:
        """The rows of one format, of both splits."""
        files = self.files(export)
        return [row for split in ("train", "validation") for row in _rows(files, f"{name}.{split}")]

    def notes(self, export: dict[str, Any], name: str = "alpaca") -> list[dict[str, Any]]:
        """What the sidecars say of one format's rows."""
        files = self.files(export)
        sides = [files.get(f"{name}.{split}.rows.jsonl", b"") for split in ("train", "validation")]
        return [json.loads(line) for side in sides for line in side.splitlines()]

    def questions(self, export: dict[str, Any]) -> list[str]:
        return sorted(row["instruction"] for row in self.rows(export))

    def takes(self, export: dict[str, Any]) -> Iterator[tuple[str, Sequence[str]]]:
        """Each file, and what its target would say against it but for how few rows it has."""
        files = self.files(export)
        for file in export["files"]:
            report = check(files[file["path"]].decode().splitlines(keepends=True), file["format"])
            assert report.rows == file["rows"]
            yield file["path"], [code for code in report.counts if code != "too_few_examples"]

    def clear(self) -> None:
        """Delete the model's conversations: votes on equal answers count together, whoever's test they are of."""
        self.sql("delete from conversations where model_version = %s", self.model)

    def forget_lease(self, export_id: int) -> None:
        """As if the minute of a worker that is dead were over."""
        self.sql("update private.export_shards set expires_at = now() where export_id = %s", export_id)
        self.sql("update private.export_workers set expires_at = now() where export_id = %s", export_id)


def _rows(files: dict[str, bytes], name: str) -> list[Any]:
    if whole := files.get(f"{name}.json"):
        found: list[Any] = json.loads(whole)
        return found
    return [json.loads(line) for line in files.get(f"{name}.jsonl", b"").splitlines()]
