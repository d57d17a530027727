"""How search behaves among many rows: recall against an exact search, latency, throughput, build time and size.

The data: independent Gaussian vectors say nothing about real recall, for real passages lie in groups on few of the
dimensions. So each row is a passage of the evaluation set moved by a part of the way between two others that are
near each other, and the whole is lifted from the model's 384 dimensions to 1536 by a fixed random rotation, which
leaves every cosine as it is. The queries are the evaluation set's questions, lifted by the same rotation.
"""

import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import mean, median, quantiles
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from shared.embeddings import DIMENSIONS

Vectors = NDArray[np.float32]
Progress = Callable[[str, float], None]
SEED = 7
COUNT = 10
QUERIES = 200
CHUNK = 5_000
RARE = 0.01
THROUGHPUT_SECONDS = 5
CLIENTS = 2
HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)

# What each way asks: plainly as the guide's function does, or through our function, which a caller's policies pass too.
PLAIN = "select id from bench.{} order by embedding operator(extensions.<=>) %(vector)s::extensions.vector limit 10"
PLAIN_FILTERED = PLAIN.replace(" order by", " where category = 'rare' order by")
OURS = "select id from public.match_finance_knowledge(%(vector)s::extensions.vector, -1, 10, 'bench')"
OURS_FILTERED = OURS.replace("'bench'", "'bench', filter_category => 'rare'")
HYBRID = "select id from public.search_finance_knowledge(%(vector)s::extensions.vector, %(text)s, -1, 10, 'bench')"
IVFFLAT = "create index on bench.{} using ivfflat (embedding extensions.vector_cosine_ops) with (lists = 100)"
FULL_HNSW = "create index on bench.{} using hnsw (embedding extensions.vector_cosine_ops)"
OUR_INDEX = "public.finance_knowledge_embedding_idx"


@dataclass(frozen=True, slots=True)
class Measures:
    """Recalls are means over the queries, `found_filtered` the mean number of rows, of the ten there should be.

    There is no recall where the ranking is meant to be another one than by the vectors alone.
    """

    recall: float | None
    p50_ms: float
    p95_ms: float
    queries_per_second: float
    recall_filtered: float | None
    found_filtered: float
    p50_filtered_ms: float
    build_seconds: float
    index_bytes: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Vectors and categories in the order of their ids, from 0, and the queries with their exact answers."""

    vectors: Vectors
    rare: NDArray[np.bool_]
    texts: Sequence[str]
    queries: Vectors
    questions: Sequence[str]

    def exact(self, size: int, only_rare: bool) -> list[set[int]]:
        """The ids of each query's ten nearest among the first `size`."""
        ids = np.flatnonzero(self.rare[:size]) if only_rare else np.arange(size)
        best: list[set[int]] = []
        for start in range(0, len(self.queries), 20):
            similar = self.queries[start : start + 20] @ self.vectors[ids].T
            nearest = np.argpartition(-similar, COUNT, axis=1)[:, :COUNT]
            best += [set(map(int, ids[row])) for row in nearest]
        return best


def corpus(passages: Vectors, texts: Sequence[str], queries: Vectors, questions: Sequence[str], size: int) -> Corpus:
    """`size` rows around the passages, each with the text of the one it was moved from; the same at every call."""
    random = np.random.default_rng(SEED)
    near = np.argsort(-(passages @ passages.T), axis=1)[:, 1:9]
    rotation = np.linalg.qr(random.standard_normal((DIMENSIONS, passages.shape[1])))[0].astype(np.float32)
    vectors = np.empty((size, DIMENSIONS), np.float32)
    said: list[str] = []
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        centre, other = random.integers(len(passages), size=(2, count))
        step = passages[other] - passages[near[other, random.integers(near.shape[1], size=count)]]
        part = random.uniform(0.2, 1.0, (count, 1)).astype(np.float32)
        said += [texts[place] for place in centre]
        vectors[start : start + count] = _unit(passages[centre] + part * step) @ rotation.T
    chosen = random.permutation(len(questions))[:QUERIES]
    lifted = _unit(queries[chosen]) @ rotation.T
    return Corpus(vectors, random.random(size) < RARE, said, lifted, [questions[place] for place in chosen])


def fill(database: psycopg.Connection, made: Corpus, progress: Progress) -> None:
    """`bench.passages`: the guide's columns, without an index but the key's."""
    columns = "id bigint primary key, content text, embedding extensions.vector(1536), category text"
    database.execute(
        f"drop schema if exists bench cascade; create schema bench; create table bench.passages ({columns})"
    )
    with database.cursor() as cursor, cursor.copy("copy bench.passages from stdin with (format binary)") as copy:
        copy.write(HEADER)
        for start in range(0, len(made.vectors), CHUNK):
            copy.write(b"".join(_row(made, place) for place in range(start, min(start + CHUNK, len(made.vectors)))))
            progress("making the rows", start / len(made.vectors))
        copy.write(struct.pack("!h", -1))
    database.execute("analyze bench.passages")


def measure_exact(url: str, made: Corpus, size: int) -> Measures:
    """Every row compared, which is always right."""
    with _small(url, size) as table:
        return _measures(url, made, size, PLAIN.format(table), PLAIN_FILTERED.format(table), query_count=12)


def measure_guide(
    database: psycopg.Connection, url: str, made: Corpus, index: str, *, is_built_first: bool
) -> Measures:
    """An index of the guide's table, built before the rows came or after."""
    table = "built_first" if is_built_first else "passages"
    seconds = 0.0
    if is_built_first:
        database.execute(f"create table bench.{table} (like bench.passages including all)")
        database.execute(index.format(table).encode())
        database.execute("insert into bench.built_first select * from bench.passages")
    else:
        seconds = _timed(lambda: database.execute(index.format(table).encode()))
    database.execute(f"analyze bench.{table}")
    name = _index_of(database, table)
    measured = _measures(url, made, len(made.vectors), PLAIN.format(table), PLAIN_FILTERED.format(table))
    measured = replace(measured, build_seconds=seconds, index_bytes=_bytes(database, name))
    database.execute(f"drop index {name}" if not is_built_first else f"drop table bench.{table}")
    return measured


def measure_ours(database: psycopg.Connection, url: str, made: Corpus, size: int) -> tuple[Measures, Measures]:
    """Our table and functions at this size: by meaning alone, and by meaning and words."""
    definition = _definition(database)
    database.execute(f"drop index {OUR_INDEX}")
    database.execute(
        "insert into public.finance_knowledge (id, content, content_hash, embedding, embedding_model, category)"
        " select id, content, id::text, embedding, 'bench', category from bench.passages"
        " where id < %s and id > (select coalesce(max(id), -1) from public.finance_knowledge)",
        [size],
    )
    seconds = _timed(lambda: database.execute(definition.encode()))
    database.execute("vacuum analyze public.finance_knowledge")
    size_on_disk = _bytes(database, OUR_INDEX)
    near = _measures(url, made, size, OURS, OURS_FILTERED)
    both = _measures(url, made, size, HYBRID, HYBRID.replace("'bench'", "'bench', filter_category => 'rare'"))
    return (
        replace(near, build_seconds=seconds, index_bytes=size_on_disk),
        replace(both, recall=None, recall_filtered=None, build_seconds=seconds, index_bytes=size_on_disk),
    )


def _measures(url: str, made: Corpus, size: int, query: str, filtered: str, query_count: int = QUERIES) -> Measures:
    asked = [
        {"vector": str(vector.tolist()), "text": text}
        for vector, text in zip(made.queries[:query_count], made.questions[:query_count], strict=True)
    ]
    with psycopg.connect(url, autocommit=True) as client:
        times, found = _ask(client, query, asked)
        times_filtered, found_filtered = _ask(client, filtered, asked)
    return Measures(
        recall=_recall(found, made.exact(size, only_rare=False)),
        p50_ms=median(times),
        p95_ms=quantiles(times, n=20)[-1],
        queries_per_second=_throughput(url, query, asked),
        recall_filtered=_recall(found_filtered, made.exact(size, only_rare=True)),
        found_filtered=mean(len(ids) for ids in found_filtered),
        p50_filtered_ms=median(times_filtered),
        build_seconds=0,
        index_bytes=0,
    )


def _ask(client: psycopg.Connection, query: str, asked: Sequence[dict[str, str]]) -> tuple[list[float], list[set[int]]]:
    """Milliseconds and ids, once all is warm: each query is asked twice, and the second time counts."""
    times, found = [], []
    for arguments in [*asked, *asked]:
        started = time.perf_counter()
        rows = client.execute(query.encode(), arguments).fetchall()
        times.append((time.perf_counter() - started) * 1000)
        found.append({row[0] for row in rows})
    return times[len(asked) :], found[len(asked) :]


def _throughput(url: str, query: str, asked: Sequence[dict[str, str]]) -> float:
    """Queries a second of a few clients at once, who ask for some seconds."""
    counts = [0] * CLIENTS
    until = time.perf_counter() + THROUGHPUT_SECONDS

    def client(number: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while time.perf_counter() < until:
                connection.execute(query.encode(), asked[(counts[number] * CLIENTS + number) % len(asked)]).fetchall()
                counts[number] += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=client, args=[number]) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def _recall(found: Sequence[set[int]], exact: Sequence[set[int]]) -> float:
    return mean(len(ids & right) / len(right) for ids, right in zip(found, exact, strict=False))


@contextmanager
def _small(url: str, size: int) -> Iterator[str]:
    """A table of the first `size` rows."""
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("create table bench.small as select * from bench.passages where id < %s", [size])
        database.execute("analyze bench.small")
        yield "small"
        database.execute("drop table bench.small")


def _row(made: Corpus, place: int) -> bytes:
    """A row in PostgreSQL's binary copy format; a vector is its dimensions, a zero, and big-endian floats."""
    vector = struct.pack("!hh", DIMENSIONS, 0) + made.vectors[place].astype(">f4").tobytes()
    fields = (struct.pack("!q", place), made.texts[place].encode(), vector, b"rare" if made.rare[place] else b"common")
    return struct.pack("!h", len(fields)) + b"".join(struct.pack("!i", len(field)) + field for field in fields)


def _definition(database: psycopg.Connection) -> str:
    """Our index as the migration has it."""
    row = database.execute("select pg_get_indexdef(%s::regclass)", [OUR_INDEX]).fetchone()
    assert row
    return str(row[0])


def _index_of(database: psycopg.Connection, table: str) -> str:
    row = database.execute(
        "select indexrelid::regclass::text from pg_index where indrelid = %s::regclass and not indisprimary",
        [f"bench.{table}"],
    ).fetchone()
    assert row
    return str(row[0])


def _bytes(database: psycopg.Connection, relation: str) -> int:
    row = database.execute("select pg_relation_size(%s::regclass)", [relation]).fetchone()
    assert row
    return int(row[0])


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
