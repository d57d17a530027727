"""Whoever calls ai-with-rag: visitors, users and servers by their headers, and the knowledge they ask about."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
from supabase import create_client

from infra.local.stack import Stack
from tests.users import User

Headers = dict[str, str]
ANYTHING = -1.0  # a threshold that every passage passes
NOT = "EQAvlWFDxGF2lXm67y4yzC17wYKD9A0guwPkMs1gOsM__NOT"
STON = "EQA2kCVNwVsil2EM2mB0SkXytxCqQjS4mttjDpnXmwG9T6bO"
# Enough of everything for tests that aren't about limits; visitors all come from 127.0.0.1.
GENEROUS = {
    "TURNS_PER_MINUTE": "1000",
    "ANONYMOUS_TURNS_PER_MINUTE": "1000",
    "SEARCHES_PER_MINUTE": "1000",
    "ANONYMOUS_SEARCHES_PER_MINUTE": "1000",
}
TOKENS: list[dict[str, Any]] = [
    {
        "title": "Notcoin",
        "content": "Notcoin is a jetton on TON that grew out of a Telegram game.",
        "tokenSymbol": "NOT",
        "tokenAddress": NOT,
        "source": "https://notco.in/about",
        "metadata": {"reviewed": "2026-01"},
    },
    {
        "title": "STON",
        "content": "STON is the governance jetton of the exchange STON.fi on TON.",
        "tokenSymbol": "STON",
        "tokenAddress": STON,
    },
    {"title": "Slippage", "content": "Slippage is the difference between the price expected and the price paid."},
]


def visitor(stack: Stack) -> Headers:
    return {"apikey": stack.keys.publishable}


def server(stack: Stack) -> Headers:
    return {"apikey": stack.keys.secret}


def signed_in(user: User) -> Headers:
    return {"Authorization": f"Bearer {user.token}"}


def admin(stack: Stack) -> Headers:
    """A user whom the project has made an admin, with the token of a new session."""
    user = User.sign_up(stack)
    service = create_client(stack.url, stack.keys.secret)
    service.auth.admin.update_user_by_id(user.auth_user_id, {"app_metadata": {"role": "admin"}})
    visitor = create_client(stack.url, stack.keys.publishable)
    session = visitor.auth.sign_in_with_password({"email": user.email, "password": user.password}).session
    assert session
    return {"Authorization": f"Bearer {session.access_token}"}


def call(origin: str, headers: Headers, path: str = "", body: Any = None, method: str = "POST") -> httpx.Response:
    url = f"{origin}/functions/v1/ai-with-rag{path}"
    return httpx.request(method, url, json=body, headers=headers, timeout=50)


def ask(origin: str, headers: Headers, query: str, **body: Any) -> httpx.Response:
    return call(origin, headers, "", {"query": query, **body})


def search(origin: str, headers: Headers, query: str, **body: Any) -> httpx.Response:
    return call(origin, headers, "/search", {"query": query, **body})


@contextmanager
def ask_in_events(origin: str, headers: Headers, query: str, **body: Any) -> Iterator[Iterator[tuple[str, Any]]]:
    """The answer's server-sent events as they come; leaving hangs up."""
    url = f"{origin}/functions/v1/ai-with-rag"
    sent = {"query": query, "stream": True, **body}
    with httpx.stream("POST", url, json=sent, headers=headers, timeout=50) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield events(response)


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@contextmanager
def learned(stack: Stack, *documents: dict[str, Any], origin: str = "") -> Iterator[str]:
    """Documents in the knowledge, for as long as it lasts, under a category that only they have; gives it.

    The functions at `origin` embed them, the stack's own where none is named.
    """
    with a_category(stack) as category:
        put = [{"id": f"{category}/{number}", "category": category, **each} for number, each in enumerate(documents)]
        answer = call(origin or stack.url, server(stack), "/documents", put, "PUT")
        assert answer.status_code == 200, answer.text
        yield category


@contextmanager
def a_category(stack: Stack) -> Iterator[str]:
    """A name for what other tests shall not find; what stands under it goes in the end."""
    category = uuid.uuid4().hex
    try:
        yield category
    finally:
        with psycopg.connect(stack.database_url) as connection:
            connection.execute("delete from public.documents where category = %s", [category])
            connection.execute("delete from public.finance_knowledge where category = %s", [category])


def says(text: str) -> bytes:
    """The body of a model that says this, whole."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def streams(*pieces: str) -> bytes:
    """The body of a model that says this, piece by piece."""
    deltas: list[tuple[dict[str, str], str | None]] = [({"content": piece}, None) for piece in pieces]
    chunks = [
        {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in [*deltas, ({}, "stop")]
    ]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks]).encode() + b"data: [DONE]\n\n"
