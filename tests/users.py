"""People for the tests: signed up through the auth API, asking through HTTP."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import bcrypt
import httpx
import psycopg
from supabase import Client, ClientOptions, create_client

from infra.local.stack import Stack
from tests.sql import add_auth_user, put_on_plan

CHEAPEST_ROUNDS = 4  # that bcrypt has


@dataclass(frozen=True, slots=True)
class User:
    """A signed-in user: the access token, and the ids it stands for."""

    token: str
    auth_user_id: str
    user_id: int
    email: str
    password: str

    @classmethod
    def sign_up(cls, stack: Stack) -> "User":
        """Somebody new who signs in; Auth's own sign-up would spend most of the tests' time on his password's hash."""
        email, password = f"{uuid.uuid4().hex}@example.com", uuid.uuid4().hex
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(CHEAPEST_ROUNDS)).decode()
        with psycopg.connect(stack.database_url) as connection:
            auth_user_id = add_auth_user(connection, email, hashed)
            row = connection.execute(
                "select user_id from public.users where auth_user_id = %s", [auth_user_id]
            ).fetchone()
        assert row
        api = create_client(stack.url, stack.keys.publishable)
        session = api.auth.sign_in_with_password({"email": email, "password": password}).session
        assert session
        return cls(session.access_token, auth_user_id, row[0], email, password)

    def client(self, stack: Stack) -> Client:
        """supabase-py in this user's name."""
        options = ClientOptions(headers={"Authorization": f"Bearer {self.token}"})
        return create_client(stack.url, stack.keys.publishable, options)

    def put_on_plan(self, stack: Stack, **limits: Any) -> str:
        """A plan of this user's own; gives its name."""
        with psycopg.connect(stack.database_url) as connection:
            return put_on_plan(connection, self.user_id, **limits)

    def ask(self, origin: str, message: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """POST a question to ai-finance at `origin`."""
        return self.call(origin, "POST", "", {"message": message, **body}, headers)

    def call(
        self, origin: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        return httpx.request(
            method,
            f"{origin}/functions/v1/ai-finance{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.token}"} | (headers or {}),
            timeout=50,
        )

    @contextmanager
    def ask_in_events(self, origin: str, message: str, **body: Any) -> Iterator[Iterator[tuple[str, Any]]]:
        """The answer's server-sent events as they come; leaving hangs up."""
        with httpx.stream(
            "POST",
            f"{origin}/functions/v1/ai-finance",
            json={"message": message, "stream": True, **body},
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=50,
        ) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            yield _events(response)

    def conversation(self, stack: Stack, conversation_id: int) -> dict[str, Any]:
        """The stored row, whoever's it is."""
        with psycopg.connect(stack.database_url) as connection, connection.cursor() as cursor:
            cursor.execute("select to_jsonb(c) from public.conversations c where id = %s", [conversation_id])
            row = cursor.fetchone()
        assert row, f"no conversation {conversation_id}"
        found: dict[str, Any] = row[0]
        return found


def _events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
