"""The schema from outside: supabase-py as an app, a user or the gateway would use it, and SQL to look behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from postgrest import APIError
from psycopg import sql
from supabase import Client

QUESTION = "What is TON?"
ANSWER = "TON is the coin of The Open Network."
DENIED = "42501"
EAST, NORTH = (1.0, 0.0), (0.0, 1.0)  # vectors that have nothing in common


@dataclass(frozen=True, slots=True)
class Shelf:
    """Passages of one test, found under `model`; its documents' ids begin with it."""

    database: psycopg.Connection
    model: str

    def put(self, content: str, vector: Sequence[float] = NORTH, **columns: Any) -> int:
        """Store a passage as the database's owner; gives its id. Searches of these tests look EAST."""
        row = {"content": content, "embedding": str(padded(*vector)), "embedding_model": self.model, **columns}
        insert = sql.SQL("insert into public.finance_knowledge ({}) values ({}) returning id").format(
            sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join(map(sql.Placeholder, row))
        )
        found = self.database.execute(insert, row).fetchone()
        assert found
        return int(found[0])

    def search(self, api: Client, words: str | None = None, **arguments: Any) -> list[dict[str, Any]]:
        """What search_finance_knowledge answers, or the `function` that is named."""
        function = arguments.pop("function", "search_finance_knowledge")
        asked = {"query_embedding": padded(*EAST), "query_text": words, "model": self.model}
        found: list[dict[str, Any]] = rows(api.rpc(function, {**asked, **arguments}))
        return found

    def contents(self, api: Client, words: str | None = None, **arguments: Any) -> list[str]:
        """The texts a search finds, best first."""
        return [row["content"] for row in self.search(api, words, **arguments)]


def padded(*numbers: float) -> list[float]:
    """A vector of the columns' length."""
    return [*numbers, *[0.0] * (1536 - len(numbers))]


def rows(query: Any) -> Any:
    """What a query or a call gives."""
    return query.execute().data


def refusal(query: Any) -> str | None:
    """The code a query or a call is refused with."""
    with pytest.raises(APIError) as caught:
        query.execute()
    return caught.value.code


def open_turn(api: Client, question: str = QUESTION, **arguments: Any) -> dict[str, Any]:
    """What `open_turn` answers the user of `api`."""
    turn: dict[str, Any] = rows(api.rpc("open_turn", {"question": question, **arguments}))
    return turn


def close_turn(service: Client, turn: dict[str, Any], **arguments: Any) -> None:
    """Write an open turn's conversation as the gateway does."""
    reserved = {name: turn[name] for name in ("conversation_id", "user_id", "thread_id", "attempt")}
    answer = {"message": QUESTION, "response": ANSWER, "status": "complete"}
    service.rpc("close_turn", {**reserved, **answer, **arguments}).execute()
