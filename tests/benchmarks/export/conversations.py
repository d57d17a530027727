"""A million liked conversations, each unlike the others: runs of words of the knowledge, put together by chance."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from infra.local.parts import ROOT

SEED = 20261101
USERS = 10_000
FIRST_USER = 1_000_000
PERSONAL_SHARE = 0.05  # of the questions name somebody or something of his
RUN_WORDS = 5
QUESTION_RUNS, ANSWER_RUNS = 2, (8, 16)
SOURCES = Jsonb([{"id": n, "similarity": 0.87, "content_hash": f"{n:032x}"} for n in range(1, 4)])
COLUMNS = "user_id, thread_id, message, response, status, context_used, model_version, feedback"


def load(database_url: str, count: int) -> None:
    """Users who consent, and so many conversations of theirs. Realtime isn't told: it would hear nothing else."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("alter publication supabase_realtime drop table public.conversations")
        connection.execute(
            "insert into public.users (user_id, training_consent) select n, true from generate_series(%s, %s) as n",
            [FIRST_USER, FIRST_USER + USERS - 1],
        )
        with connection.cursor() as cursor, cursor.copy(f"copy public.conversations ({COLUMNS}) from stdin") as copy:
            for row in rows(count):
                copy.write_row(row)
        connection.execute("alter publication supabase_realtime add table public.conversations")
        connection.execute("vacuum analyze public.conversations")
        _until_realtime_has_read_it(connection)


def _until_realtime_has_read_it(connection: psycopg.Connection[Any]) -> None:
    """It decodes all that is written, whatever it tells of, and would take a core from the first who is measured."""
    [end] = connection.execute("select pg_current_wal_lsn()").fetchone() or [None]
    behind = "select count(*) from pg_replication_slots where confirmed_flush_lsn < %s"
    while (connection.execute(behind, [end]).fetchone() or [0])[0]:
        time.sleep(0.5)


def rows(count: int) -> Iterator[tuple[Any, ...]]:
    """Always the same ones."""
    chance, words = random.Random(SEED), _words()  # noqa: S311
    last = len(words) - RUN_WORDS

    def runs(number: int) -> str:
        starts = (int(chance.random() * last) for _ in range(number))
        return " ".join(" ".join(words[start : start + RUN_WORDS]) for start in starts)

    for number in range(count):
        question = f"{runs(QUESTION_RUNS).capitalize()}?"
        if chance.random() < PERSONAL_SHARE:
            question = f"{_personal(chance)} {question}"
        answer = f"{runs(chance.randint(*ANSWER_RUNS)).capitalize()}."
        user_id = FIRST_USER + number % USERS
        yield user_id, UUID(int=number + 1), question, answer, "complete", SOURCES, "together:ton", 1


def _personal(chance: random.Random) -> str:
    number = chance.randrange(10**9)
    return chance.choice(
        (
            f"My mail is user{number}@example.org.",
            f"I sent it to 0x{number:040x} yesterday.",
            f"Call me at +49 151 {number:08d}"[:25] + ".",
            f"The transaction is {number:064x}.",
        )
    )


def _words() -> list[str]:
    """The knowledge's plain words in their order."""
    texts = [
        json.loads(line)["content"]
        for file in sorted((ROOT / "sql/knowledge").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return [word for text in texts for word in text.lower().split() if word.strip(".,;:()").isalpha()]
