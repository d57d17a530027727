"""The public origin: what it passes on, what it refuses, and the sessions an app gets through it."""

import asyncio
import os
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from supabase import Client, acreate_client, create_client
from supabase_auth.errors import AuthApiError
from supabase_auth.types import Session

from infra.local import parts, ports
from infra.local.stack import Stack
from tests.infra import Functions, email_address, reload_schema, run_node, running
from tests.stand_ins import serving
from tests.users import User

MEGABYTE = 1024 * 1024
PASSWORD = "correct horse"
WHO = """
    create or replace function public.gateway_who() returns text language sql as 'select current_user::text';
    create table if not exists public.gateway_editors_only (id int);
    alter table public.gateway_editors_only enable row level security;
    create policy "editors read" on public.gateway_editors_only for select to authenticated
        using (auth.jwt() -> 'app_metadata' ->> 'role' = 'editor');
    insert into public.gateway_editors_only values (1);
"""
FORGET = "drop function if exists public.gateway_who; drop table if exists public.gateway_editors_only"


@pytest.fixture(scope="module")
def gateway(stack: Stack) -> Iterator[tuple[str, Functions]]:
    """A second gateway, with functions of the test's own and nothing where lite should be."""
    functions = Functions()
    with serving(functions.app()) as functions.url, ports.reserve(None) as nothing, ports.reserve(None) as held:
        environment = {
            **os.environ,
            "GATEWAY_PORT": str(ports.number(held)),
            "SUPABASE_URL": ports.url(ports.number(held)),
            "LITE_URL": ports.url(ports.number(nothing)),
            "FUNCTIONS_URL": functions.url,
            "AWS_ENDPOINT_URL": ports.url(ports.number(nothing)),
            "DATABASE_URL": stack.database_url,
            "SUPABASE_PUBLISHABLE_KEY": stack.keys.publishable,
            "SUPABASE_SECRET_KEY": stack.keys.secret,
            "SUPABASE_JWT_SECRET": stack.keys.jwt_secret,
        }
        url = ports.url(ports.number(held))
        command = [sys.executable, "-m", "infra.local.gateway"]
        with running(command, f"{url}/health", cwd=parts.ROOT, env=environment):
            yield url, functions


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[psycopg.Connection]:
    """The stack's database, with a function that tells the caller's role and a table for editors."""
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(FORGET)
        connection.execute(WHO)
        service = create_client(stack.url, stack.keys.secret)
        assert reload_schema(connection, service.table("gateway_editors_only").select("id").execute)
        yield connection
        connection.execute(FORGET)
        connection.execute("notify pgrst, 'reload schema'")


@pytest.fixture
def visitor(stack: Stack) -> Client:
    return create_client(stack.url, stack.keys.publishable)


def sign_up(client: Client, **data: Any) -> Session:
    session = client.auth.sign_up({"email": email_address(), "password": PASSWORD, "options": {"data": data}}).session
    assert session
    return session


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_events_arrive_one_by_one(gateway: tuple[str, Functions]) -> None:
    url, functions = gateway

    with httpx.stream("GET", f"{url}/functions/v1/events") as answer:
        pieces = answer.iter_text()
        for number in range(3):
            functions.told.release()
            assert next(pieces) == f"data: {number}\n\n"

        assert list(pieces) == []
        assert answer.headers["content-type"].startswith("text/event-stream")


def test_a_function_sees_that_the_client_has_left_its_stream(gateway: tuple[str, Functions]) -> None:
    url, functions = gateway
    functions.left_alone.clear()

    with httpx.stream("GET", f"{url}/functions/v1/silence") as answer:
        assert next(answer.iter_text()) == "data: 0\n\n"

    assert functions.left_alone.wait(10)


def test_a_function_sees_that_the_client_has_left_before_an_answer(gateway: tuple[str, Functions]) -> None:
    url, functions = gateway
    functions.arrived.clear()
    functions.left_alone.clear()

    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/functions/v1/thinking", json={"message": "?"}, timeout=httpx.Timeout(5, read=0.2))

    assert functions.arrived.wait(10)
    assert functions.left_alone.wait(10)


def test_path_and_query_arrive_as_they_were_sent(gateway: tuple[str, Functions]) -> None:
    url, _ = gateway
    target = "/functions/v1/a%2Fb/./c?x=%2C,|&y=1+2&y=%20"

    with httpx.Client() as client:
        seen = client.get(url, extensions={"target": target.encode()}).json()

    assert seen["target"] == target


def test_headers_arrive_but_for_those_of_the_connection(gateway: tuple[str, Functions]) -> None:
    url, functions = gateway
    sent = {"connection": "x-hop", "x-hop": "1", "te": "trailers", "x-kept": "2", "authorization": "Bearer 3"}

    with httpx.Client() as client:
        client.headers.clear()
        seen = client.get(f"{url}/functions/v1/mirror", headers=sent).json()["headers"]

    assert seen == {"host": functions.url.removeprefix("http://"), "x-kept": "2", "authorization": "Bearer 3"}


def test_a_functions_answer_is_left_as_it_is(gateway: tuple[str, Functions]) -> None:
    url, _ = gateway

    preflight = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    answer = httpx.options(f"{url}/functions/v1/mirror", headers=preflight)
    compressed = httpx.get(f"{url}/functions/v1/compressed")

    assert answer.status_code == 418
    assert "access-control-allow-origin" not in answer.headers
    assert [cookie.partition(";")[0] for cookie in answer.headers.get_list("set-cookie")] == ["a=1", "b=2"]
    assert compressed.headers["content-encoding"] == "gzip"
    assert int(compressed.headers["content-length"]) == compressed.num_bytes_downloaded
    assert compressed.text == "small"


@pytest.mark.parametrize(
    ("path", "megabytes"), [("/functions/v1/mirror", 6), ("/rest/v1/rows", 10), ("/auth/v1/token", 10)]
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_refused(
    stack: Stack, gateway: tuple[str, Functions], path: str, megabytes: int, is_chunked: bool
) -> None:
    origin = gateway[0] if path.startswith("/functions") else stack.url
    body = b"x" * (megabytes * MEGABYTE + 1)

    answer = httpx.post(f"{origin}{path}", content=chunks(body) if is_chunked else body)

    assert answer.status_code == 413
    assert answer.json()["code"] == "payload_too_large"
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_at_the_limit_arrives_whole(gateway: tuple[str, Functions], is_chunked: bool) -> None:
    url, _ = gateway
    body = b"x" * (6 * MEGABYTE)

    seen = httpx.post(f"{url}/functions/v1/mirror", content=chunks(body) if is_chunked else body).json()

    assert seen["bytes"] == len(body)


@pytest.mark.parametrize("path", ["/rest/v1/rows", "/auth/v1/user"])
def test_a_part_that_is_down_is_unavailable(gateway: tuple[str, Functions], path: str) -> None:
    url, _ = gateway

    answer = httpx.get(f"{url}{path}")

    assert answer.status_code == 503
    assert answer.json()["code"] == "upstream_unavailable"
    assert answer.headers["access-control-allow-origin"] == "*"


def test_an_unknown_path_is_not_found(stack: Stack) -> None:
    answer = httpx.get(f"{stack.url}/storage/v9/bucket")

    assert answer.status_code == 404
    assert answer.json() == {"message": "Not Found", "code": "not_found"}


def test_the_gateway_says_that_it_is_up_and_what_it_serves(stack: Stack) -> None:
    assert httpx.get(f"{stack.url}/health").json() == {"status": "ok"}
    assert httpx.get(stack.url).is_success


@pytest.mark.parametrize(
    "path",
    ["/rest/v1/rows", "/auth/v1/signup", "/auth/v1/admin/users", "/realtime/v1/api/broadcast", "/storage/v1/bucket"],
)
def test_a_page_of_another_origin_may_call(stack: Stack, path: str) -> None:
    origin = {"origin": "http://localhost:3000"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "apikey,content-type,prefer"}

    preflight = httpx.options(f"{stack.url}{path}", headers={**origin, **asked})
    answer = httpx.post(f"{stack.url}{path}", headers=origin, json={})

    assert preflight.is_success
    assert preflight.headers["access-control-allow-headers"] == asked["access-control-request-headers"]
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert answer.headers.get_list("access-control-allow-origin") == ["*"]


def test_key_and_token_decide_the_role(stack: Stack, database: psycopg.Connection, visitor: Client) -> None:
    publishable, secret = stack.keys.publishable, stack.keys.secret
    user = sign_up(visitor).access_token
    forged = jwt.encode(claims_of(user), "x" * 32, "HS256")
    expired = jwt.encode({**claims_of(user), "exp": 1}, stack.keys.jwt_secret, "HS256")

    def role(apikey: str | None, bearer: str | None) -> str | int:
        headers = {"apikey": apikey, "authorization": bearer and f"Bearer {bearer}"}
        sent = {name: value for name, value in headers.items() if value}
        answer = httpx.post(f"{stack.url}/rest/v1/rpc/gateway_who", headers=sent, json={})
        return str(answer.json()) if answer.is_success else answer.status_code

    assert role(publishable, None) == "anon"
    assert role(publishable, publishable) == "anon"
    assert role(secret, None) == "service_role"
    assert role(secret, secret) == "service_role"
    assert role(publishable, user) == "authenticated"
    assert role(secret, user) == "authenticated"
    assert role(None, None) == 401
    assert role(None, user) == 401
    assert role("sb_publishable_other", None) == 401
    assert role(publishable, forged) == 401
    assert role(publishable, expired) == 401


def test_a_session_lives_from_sign_up_to_sign_out(stack: Stack, visitor: Client) -> None:
    email = email_address()

    signed_up = visitor.auth.sign_up({"email": email, "password": PASSWORD}).session
    signed_in = visitor.auth.sign_in_with_password({"email": email, "password": PASSWORD}).session
    refreshed = visitor.auth.refresh_session().session
    assert signed_up
    assert signed_in
    assert refreshed
    user = visitor.auth.get_user(refreshed.access_token)
    visitor.auth.sign_out()

    assert user
    assert user.user.email == email
    assert len({session.refresh_token for session in (signed_up, signed_in, refreshed)}) == 3
    with pytest.raises(AuthApiError):
        visitor.auth.refresh_session(refreshed.refresh_token)
    with pytest.raises(AuthApiError):
        visitor.auth.get_user(refreshed.access_token)


def test_a_wrong_password_is_refused_as_auth_does(visitor: Client) -> None:
    with pytest.raises(AuthApiError) as caught:
        visitor.auth.sign_in_with_password({"email": email_address(), "password": PASSWORD})

    assert (caught.value.status, caught.value.code) == (400, "invalid_credentials")


def assert_complete(claims: dict[str, Any], stack: Stack) -> None:
    """A token as a hosted project's Auth issues it."""
    assert claims["iss"] == f"{stack.url}/auth/v1"
    assert claims["aud"] == claims["role"] == "authenticated"
    assert claims["app_metadata"] == {"provider": "email", "providers": ["email"]}
    assert claims["user_metadata"]["full_name"] == "Ada"
    assert claims["aal"] == "aal1"
    assert claims["amr"] == [{"method": "password", "timestamp": claims["iat"]}]
    assert claims["is_anonymous"] is False
    assert claims["session_id"]


def test_access_tokens_have_the_claims_of_a_hosted_project(stack: Stack, visitor: Client) -> None:
    signed_up = sign_up(visitor, full_name="Ada")
    refreshed = visitor.auth.refresh_session().session
    assert refreshed

    for session in (signed_up, refreshed):
        assert_complete(claims_of(session.access_token), stack)
        jwt.decode(session.access_token, stack.keys.jwt_secret, ["HS256"], audience="authenticated")


def test_the_async_client_gets_the_same_session(stack: Stack) -> None:
    async def session() -> Session | None:
        client = await acreate_client(stack.url, stack.keys.publishable)
        email, options = email_address(), {"data": {"full_name": "Ada"}}
        await client.auth.sign_up({"email": email, "password": PASSWORD, "options": options})  # type: ignore[typeddict-item]
        return (await client.auth.sign_in_with_password({"email": email, "password": PASSWORD})).session

    signed_in = asyncio.run(session())

    assert signed_in
    assert_complete(claims_of(signed_in.access_token), stack)


def test_supabase_js_gets_the_same_session(stack: Stack) -> None:
    email = email_address()

    seen = run_node("sessions.mjs", stack.url, stack.keys.publishable, email)

    for claims in seen.pop("claims"):
        assert_complete(claims, stack)
    assert seen == {"email": email, "signOutError": None, "refusal": "refresh_token_not_found"}


def test_policies_can_read_app_metadata(stack: Stack, database: psycopg.Connection, visitor: Client) -> None:
    editor = {"email": email_address(), "password": PASSWORD, "email_confirm": True, "app_metadata": {"role": "editor"}}
    create_client(stack.url, stack.keys.secret).auth.admin.create_user(editor)  # type: ignore[arg-type]
    rows = visitor.table("gateway_editors_only").select("id")
    assert rows.execute().data == []

    visitor.auth.sign_in_with_password({"email": str(editor["email"]), "password": PASSWORD})

    assert visitor.table("gateway_editors_only").select("id").execute().data == [{"id": 1}]


def test_a_client_cannot_give_itself_app_metadata(stack: Stack, database: psycopg.Connection, visitor: Client) -> None:
    wanted = {"role": "editor", "app_metadata": {"role": "editor"}, "raw_app_meta_data": {"role": "editor"}}
    body = {"email": email_address(), "password": PASSWORD, "data": wanted, **wanted}
    headers = {"apikey": stack.keys.publishable}
    spoofed = httpx.post(f"{stack.url}/auth/v1/signup", json=body, headers=headers).json()["access_token"]
    sign_up(visitor)
    visitor.auth.update_user({"data": wanted, **wanted})  # type: ignore[typeddict-item]
    updated = visitor.auth.refresh_session().session
    assert updated

    for token in (spoofed, updated.access_token):
        assert claims_of(token)["app_metadata"] == {"provider": "email", "providers": ["email"]}
        assert claims_of(token)["role"] == "authenticated"
        visitor.postgrest.auth(token)
        assert visitor.table("gateway_editors_only").select("id").execute().data == []


def chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), MEGABYTE):
        yield body[start : start + MEGABYTE]


def test_serves_sign_ups_after_the_database_has_dropped_its_connections(stack: Stack) -> None:
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        dropped = database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gateway'"
        ).fetchall()

    assert dropped
    assert User.sign_up(stack).user_id
