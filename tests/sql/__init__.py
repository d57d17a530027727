"""The schema from outside: supabase-py as an app, a user or the gateway would use it, and SQL to look behind it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

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


def sign_up(database: psycopg.Connection, mint: Callable[..., Client]) -> Client:
    """A new user's client; Auth's own sign-up would spend most of these tests' time on a password."""
    return mint(sub=add_auth_user(database, f"{uuid4().hex}@example.com"))


def add_auth_user(database: psycopg.Connection, email: str, hashed_password: str | None = None) -> str:
    """Auth's row of a user whose address is confirmed; gives his id there."""
    auth_user_id = str(uuid4())
    database.execute(
        "insert into auth.users (id, email, encrypted_password, email_confirmed_at) values (%s, %s, %s, now())",
        [auth_user_id, email, hashed_password],
    )
    return auth_user_id


def put_on_plan(database: psycopg.Connection, user_id: int, **limits: Any) -> str:
    """A plan of the user's own with these limits; gives its name."""
    name = uuid4().hex
    plan = {"name": name, **limits}
    insert = sql.SQL("insert into public.plans ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, plan)), sql.SQL(", ").join(map(sql.Placeholder, plan))
    )
    database.execute(insert, plan)
    database.execute(
        "insert into public.user_plans values (%s, %s) on conflict (user_id) do update set plan = excluded.plan",
        [user_id, name],
    )
    return name


def put_versions(database: psycopg.Connection, model_name: str, versions: Mapping[str, Mapping[str, Any]]) -> None:
    """Versions of a model with these columns, all at once, as its active one and its canary need it."""
    with database.transaction():
        for version, columns in versions.items():
            row = {"model_name": model_name, "version": version, **columns}
            insert = sql.SQL("insert into public.model_metadata ({}) values ({})").format(
                sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join(map(sql.Placeholder, row))
            )
            database.execute(insert, row)


def put_export(database: psycopg.Connection, **columns: Any) -> int:
    """An export as if it had been made; gives its id."""
    row = {
        "options": "{}",
        "rules": "any",
        "collected_from": "0",
        "collected_until": "0",
        "to_collect": 0,
        "status": "ready",
        **columns,
    }
    insert = sql.SQL("insert into public.training_exports ({}) values ({}) returning id").format(
        sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join(map(sql.Placeholder, row))
    )
    found = database.execute(insert, row).fetchone()
    assert found
    return int(found[0])


def retire(database: psycopg.Connection, model_name: str) -> None:
    """Delete a model's versions; no test of those that follow is answered by one of them."""
    database.execute(
        "update public.model_metadata set is_active = false, traffic_weight = null where model_name = %s", [model_name]
    )
    database.execute("delete from public.model_metadata where model_name = %s", [model_name])


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


def refusal_message(query: Any) -> str:
    """What a query or a call is refused with, in words; the embedded stack has one code for much of it."""
    with pytest.raises(APIError) as caught:
        query.execute()
    assert caught.value.message
    return caught.value.message


def open_turn(api: Client, question: str = QUESTION, **arguments: Any) -> dict[str, Any]:
    """What `open_turn` answers the user of `api`."""
    turn: dict[str, Any] = rows(api.rpc("open_turn", {"question": question, **arguments}))
    return turn


def close_turn(service: Client, turn: dict[str, Any], **arguments: Any) -> None:
    """Write an open turn's conversation as the gateway does."""
    reserved = {name: turn[name] for name in ("conversation_id", "user_id", "thread_id", "attempt")}
    answer = {"message": QUESTION, "response": ANSWER, "status": "complete"}
    service.rpc("close_turn", {**reserved, **answer, **arguments}).execute()


def open_call(service: Client, user_id: int | None = None, **arguments: Any) -> dict[str, Any]:
    """What `open_call` answers the gateway, for a user or for a visitor; with the call's id."""
    call_id = arguments.setdefault("call_id", str(uuid4()))
    standard = {"function": "ai-with-rag", "caller_key": str(uuid4()), "calls_per_minute": 1000}
    called: dict[str, Any] = rows(service.rpc("open_call", {**standard, "claimed_user_id": user_id, **arguments}))
    return called | {"call_id": call_id}


def close_call(service: Client, call: dict[str, Any], **arguments: Any) -> None:
    """Charge an open call as the gateway does."""
    standard = {"call_id": call["call_id"], "function": "ai-with-rag", "status": "complete"}
    service.rpc("close_call", {**standard, "user_id": call.get("user_id"), **arguments}).execute()


def spent(service: Client, user_id: int, period: str = "day") -> list[tuple[int, int, float]]:
    """The requests, tokens and USD of each of the user's days, or months, that has any; the first one first."""
    found = service.table("spending").select("*").eq("user_id", user_id).eq("period", period).order("starts_on")
    return [(row["requests"], row["tokens"], row["cost_usd"]) for row in rows(found)]


def let_die(database: psycopg.Connection, user_id: int) -> None:
    """As if all who hold anything of the user's had died a while ago."""
    database.execute("update public.model_calls set expires_at = now() - interval '1 s' where user_id = %s", [user_id])
    database.execute("update public.open_turns set expires_at = now() - interval '1 s' where user_id = %s", [user_id])


def waits_for(database: psycopg.Connection, backend_pid: int) -> bool:
    """Whether anybody waits for what this connection holds."""
    found = database.execute("select from pg_stat_activity where %s = any (pg_blocking_pids(pid))", [backend_pid])
    return bool(found.fetchall())
