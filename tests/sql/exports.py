"""The corpus and its exports as the gateway calls the database for them, with conversations of a test's own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from supabase import Client

from tests.sql import retire, rows

RULES = "any"
OPTIONS: dict[str, Any] = {
    "since": None,
    "until": None,
    "min_feedback": 1,
    "min_quality": 0,
    "model_version": None,
    "formats": ["together"],
    "validation_share": 0.1,
    "incremental": False,
    "dry_run": False,
}
# What is read of a conversation, in its order.
READ = [
    "id",
    "user_id",
    "message",
    "response",
    "feedback",
    "status",
    "error_code",
    "passages",
    "flags",
    "turns",
]


def digest(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def assessed(read: Sequence[Any], **columns: Any) -> list[Any]:
    """A row as it is put, of one as it was read; what `columns` doesn't say is so that rows are alike in nothing."""
    row = dict(zip(READ, read, strict=True))
    seed = digest(f"{row['message']} {row['response']}")
    near_keys = [int(seed[at : at + 8], 16) for at in range(0, 32, 8)]
    return list(
        {
            "id": row["id"],
            "question": None,
            "answer": None,
            "turns": row["turns"],
            "merit": 0.5,
            "tags": ["lang:en"],
            "split": "train",
            "question_hash": digest(row["message"]),
            "content_hash": seed,
            "near_keys": near_keys,
            "signature": seed * 4,
            "dropped": None,
            "redactions": None,
            **columns,
        }.values()
    )


@dataclass
class Exports:
    """What is in the database for exports; `said` changes how a conversation with that answer is assessed."""

    service: Client
    database: psycopg.Connection
    said: dict[str, dict[str, Any]] = field(default_factory=dict)

    def call(self, function: str, **arguments: Any) -> dict[str, Any]:
        answered: dict[str, Any] = rows(self.service.rpc(function, arguments))
        return answered

    def one(self, query: str, *values: Any) -> Any:
        """The one value that a query gives."""
        [[value]] = self.all(query, *values)
        return value

    def all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        done = self.database.execute(query.encode(), values or None)
        return done.fetchall() if done.description else []

    def clear(self) -> None:
        """As on the first day."""
        for (name,) in self.all("select model_name from public.model_metadata where dataset_export_id is not null"):
            retire(self.database, name)
        for table in (
            "public.fine_tune_jobs",
            "public.training_exports",
            "public.training_data",
            "public.conversations",
        ):
            self.all(f"delete from {table}")  # noqa: S608
        self.all("update private.corpus set collected_until = '0', rules = ''")

    def user(self, consents: bool = True) -> int:
        """A user's id."""
        id: int = self.one("insert into public.users (training_consent) values (%s) returning user_id", consents)
        return id

    def ask(
        self,
        user_id: int,
        message: str = "What is TON?",
        response: str = "A coin.",
        feedback: int | None = 1,
        **more: Any,
    ) -> int:
        """A conversation's id."""
        row = {
            "user_id": user_id,
            "thread_id": uuid4(),
            "message": message,
            "response": response,
            "feedback": feedback,
            "status": "complete",
            **more,
        }
        return self._insert("conversations", row)

    def write(self, instruction: str = "What is TON?", output: str = "A coin.", **more: Any) -> int:
        """The id of a training row that comes from no conversation."""
        return self._insert("training_data", {"instruction": instruction, "output": output, "source": "manual", **more})

    def rate(self, conversation_id: int, feedback: int | None) -> None:
        self.all("update public.conversations set feedback = %s where id = %s", feedback, conversation_id)

    def begin(self, shard_rows: int = 250_000, rules: str = RULES, **options: Any) -> dict[str, Any]:
        return self.call("begin_export", options={**OPTIONS, **options}, rules=rules, actor="ci", shard_rows=shard_rows)

    def claim(self, id: int, worker: str, seconds: int = 60) -> dict[str, Any]:
        return self.call("claim_export", id=id, worker=worker, lease_seconds=seconds)

    def read(self, id: int, shard: int, after: Any = None, page_rows: int = 100) -> dict[str, Any]:
        if shard == 0:
            return self.call("read_export_written", id=id, after=after, page_rows=page_rows)
        return self.call("read_export_conversations", id=id, shard=shard, after=after, page_rows=page_rows)

    def put(
        self, id: int, worker: str, page: dict[str, Any], shard: int = 1, assessed_rows: list[Any] | None = None
    ) -> str:
        """Put a page that was read, as `said`; gives the outcome."""
        given = [assessed(row, **self.said.get(row[3], {})) for row in page["rows"]]
        outcome: str = self.call(
            "put_export_page",
            id=id,
            shard=shard,
            worker=worker,
            cursor=page["next"],
            done=page["next"] is None,
            rows=given if assessed_rows is None else assessed_rows,
            seen=len(page["rows"]),
            lease_seconds=60,
        )["outcome"]
        return outcome

    def collect(self, id: int, worker: str, page_rows: int = 100) -> dict[str, Any]:
        """Do all the shards; gives what is claimed after them."""
        while (told := self.claim(id, worker))["outcome"] == "collect":
            cursor, is_first = told["cursor"], True
            while is_first or cursor:
                page = self.read(id, told["shard"], cursor, page_rows)
                assert self.put(id, worker, page, told["shard"]) == "noted"
                cursor, is_first = page["next"], False
        return told

    def select(self, page_rows: int = 100, part_rows: int = 5000, **options: Any) -> dict[str, Any]:
        """Begin an export and do it as far as its rows are selected."""
        worker = str(uuid4())
        begun = self.begin(**options)
        assert begun["outcome"] == "begun"
        assert self.collect(begun["id"], worker, page_rows)["outcome"] == "select"
        return self.call("select_export", id=begun["id"], worker=worker, part_rows=part_rows) | {"worker": worker}

    def finish(self, selected: dict[str, Any]) -> None:
        finished = {"id": selected["id"], "worker": selected["worker"], "files": [], "manifest": {}, "rows": 0}
        assert self.call("finish_export", **finished)["outcome"] == "noted"

    def export(self, **options: Any) -> list[Any]:
        """Do an export; gives the conversations in it."""
        selected = self.select(**options)
        self.finish(selected)
        return self.conversations(selected["id"])

    def parts(self, id: int) -> list[list[Any]]:
        """All of an export's rows."""
        numbers = self.all("select number from public.training_export_parts where export_id = %s order by number", id)
        return [row for (number,) in numbers for row in self.call("read_export_part", id=id, number=number)["rows"]]

    def conversations(self, id: int) -> list[Any]:
        return [row[1] for row in self.parts(id)]

    def row(self, conversation_id: int) -> dict[str, Any]:
        """A conversation's training row."""
        found: dict[str, Any] = self.one(
            "select to_jsonb(t) from public.training_data t where conversation_id = %s", conversation_id
        )
        return found

    def kept(self) -> dict[int | None, str | None]:
        """Why each conversation's row is dropped, if it is."""
        return dict(self.all("select conversation_id, dropped from public.training_data order by conversation_id"))

    def _insert(self, table: str, row: dict[str, Any]) -> int:
        insert = sql.SQL("insert into public.{} ({}) values ({}) returning id").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(map(sql.Placeholder, row)),
        )
        found = self.database.execute(insert, row).fetchone()
        assert found
        return int(found[0])
