"""The schema from outside: supabase-py as an app, a user or the gateway would use it, and SQL to look behind it."""

from typing import Any

import pytest
from postgrest import APIError
from supabase import Client

QUESTION = "What is TON?"
ANSWER = "TON is the coin of The Open Network."


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
