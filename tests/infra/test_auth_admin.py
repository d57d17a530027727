"""The admin API through supabase-py and supabase-js, and at its edges through HTTP."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import bcrypt
import httpx
import jwt
import psycopg
import pytest
from supabase import Client, create_client
from supabase_auth.errors import AuthApiError, AuthWeakPasswordError
from supabase_auth.types import AdminUserAttributes, User

from infra.local.stack import Stack
from tests.infra import email_address, run_node

PASSWORD = "correct horse"


@pytest.fixture
def service(stack: Stack) -> Client:
    return create_client(stack.url, stack.keys.secret)


@pytest.fixture
def visitor(stack: Stack) -> Client:
    return create_client(stack.url, stack.keys.publishable)


@pytest.fixture
def database(stack: Stack) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        yield connection


def create(service: Client, **attributes: Any) -> User:
    wanted: AdminUserAttributes = {"email": email_address(), "password": PASSWORD, "email_confirm": True}
    return service.auth.admin.create_user({**wanted, **attributes}).user  # type: ignore[typeddict-item]


def sign_in(visitor: Client, user: User, password: str = PASSWORD) -> str:
    """The access token of a new session."""
    assert user.email
    session = visitor.auth.sign_in_with_password({"email": user.email, "password": password}).session
    assert session
    return session.access_token


def refusal(call: Any, *arguments: Any) -> tuple[int, str | None]:
    with pytest.raises(AuthApiError) as caught:
        call(*arguments)
    return caught.value.status, caught.value.code


def test_a_created_user_has_what_was_asked_for(service: Client) -> None:
    email = email_address()

    user = create(
        service, email=email.upper(), user_metadata={"name": "Ada"}, app_metadata={"role": "editor"}, phone=str(uuid4())
    )

    assert user.email == email
    assert user.email_confirmed_at
    assert not user.phone_confirmed_at
    assert user.user_metadata["name"] == "Ada"
    assert user.app_metadata == {"provider": "email", "providers": ["email", "phone"], "role": "editor"}
    assert {identity.provider for identity in user.identities or []} == {"email", "phone"}


def test_a_created_user_can_sign_in(service: Client, visitor: Client) -> None:
    user = create(service, app_metadata={"role": "editor"})

    token = sign_in(visitor, user)

    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["sub"] == user.id
    assert claims["app_metadata"]["role"] == "editor"
    assert visitor.auth.get_user().user.id == user.id  # type: ignore[union-attr]


def test_an_unconfirmed_user_cannot_sign_in_until_confirmed(service: Client, visitor: Client) -> None:
    user = create(service, email_confirm=False)
    assert refusal(sign_in, visitor, user) == (400, "email_not_confirmed")

    service.auth.admin.update_user_by_id(user.id, {"email_confirm": True})

    assert sign_in(visitor, user)


def test_a_password_hash_from_elsewhere_is_taken_over(service: Client, visitor: Client) -> None:
    password_hash = bcrypt.hashpw(b"from elsewhere", bcrypt.gensalt(4)).decode()

    user = create(service, password=None, password_hash=password_hash)

    assert sign_in(visitor, user, "from elsewhere")


def test_creating_a_user_fires_the_triggers_on_auth_users(service: Client, database: psycopg.Connection) -> None:
    database.execute(
        """
        create table public.admin_greeted (name text);
        create function public.admin_greet() returns trigger language plpgsql security definer as $$
        begin
            insert into public.admin_greeted values (new.raw_user_meta_data ->> 'name');
            return new;
        end $$;
        create trigger admin_greet after insert on auth.users for each row execute function public.admin_greet();
        """
    )
    try:
        create(service, user_metadata={"name": "Ada"})
        greeted = database.execute("select name from public.admin_greeted").fetchall()
    finally:
        database.execute(
            "drop trigger admin_greet on auth.users; drop function public.admin_greet; drop table public.admin_greeted"
        )

    assert greeted == [("Ada",)]


def test_an_update_changes_only_what_was_sent(service: Client) -> None:
    user = create(service, user_metadata={"name": "Ada", "theme": "dark"}, app_metadata={"role": "editor"})

    updated = service.auth.admin.update_user_by_id(
        user.id, {"user_metadata": {"theme": None, "language": "en"}, "app_metadata": {"role": "owner"}}
    ).user

    assert updated.email == user.email
    assert updated.user_metadata == {"name": "Ada", "language": "en", "email_verified": True}
    assert updated.app_metadata == {"provider": "email", "providers": ["email"], "role": "owner"}
    assert service.auth.admin.get_user_by_id(user.id).user == updated


def test_a_changed_address_and_password_are_what_signs_in(service: Client, visitor: Client) -> None:
    user, email = create(service), email_address()

    updated = service.auth.admin.update_user_by_id(user.id, {"email": email, "password": "battery staple"}).user

    assert refusal(sign_in, visitor, user) == (400, "invalid_credentials")
    assert sign_in(visitor, updated, "battery staple")
    assert updated.identities
    assert updated.identities[0].identity_data["email"] == email


def test_a_changed_password_ends_the_sessions(service: Client, visitor: Client) -> None:
    user = create(service)
    sign_in(visitor, user)

    service.auth.admin.update_user_by_id(user.id, {"password": "battery staple"})

    assert refusal(visitor.auth.refresh_session) == (400, "refresh_token_not_found")


def test_a_banned_user_can_neither_sign_in_nor_refresh(service: Client, visitor: Client) -> None:
    user = create(service)
    sign_in(visitor, user)

    service.auth.admin.update_user_by_id(user.id, {"ban_duration": "24h"})
    refused = refusal(visitor.auth.refresh_session), refusal(sign_in, visitor, user)
    service.auth.admin.update_user_by_id(user.id, {"ban_duration": "none"})

    assert refused == ((400, "user_banned"), (400, "user_banned"))
    assert sign_in(visitor, user)


def test_a_deleted_user_is_gone(service: Client, visitor: Client, database: psycopg.Connection) -> None:
    user = create(service)
    token = sign_in(visitor, user)

    service.auth.admin.delete_user(user.id)

    assert refusal(service.auth.admin.get_user_by_id, user.id) == (404, "user_not_found")
    assert refusal(visitor.auth.get_user, token) == (403, "user_not_found")
    assert refusal(sign_in, visitor, user) == (400, "invalid_credentials")
    for table in ("identities", "sessions", "refresh_tokens"):
        assert database.execute(f"select from auth.{table} where user_id = %s", [user.id]).fetchall() == []


def test_a_softly_deleted_user_leaves_only_the_row(service: Client, visitor: Client) -> None:
    user = create(service, user_metadata={"name": "Ada"})

    service.auth.admin.delete_user(user.id, should_soft_delete=True)

    kept = service.auth.admin.get_user_by_id(user.id).user
    assert kept.deleted_at
    assert kept.user_metadata == {}
    assert str(user.email) not in kept.model_dump_json()
    assert refusal(sign_in, visitor, user) == (400, "invalid_credentials")
    assert create(service, email=user.email).id != user.id


def test_users_are_listed_in_pages_the_newest_first(stack: Stack, service: Client) -> None:
    older, newer = create(service), create(service)

    pages = [service.auth.admin.list_users(page=page, per_page=1) for page in (1, 2)]
    answer = httpx.get(f"{stack.url}/auth/v1/admin/users?per_page=1", headers={"apikey": stack.keys.secret})

    assert [[user.id for user in page] for page in pages] == [[newer.id], [older.id]]
    following, last = (
        f"</auth/v1/admin/users?page={page}&per_page=1>" for page in (2, answer.headers["x-total-count"])
    )
    assert answer.headers["link"] == f'{following}; rel="next", {last}; rel="last"'
    assert answer.json()["aud"] == "authenticated"


def test_supabase_js_can_do_the_same(stack: Stack) -> None:
    seen = run_node("admin_users.mjs", stack.url, stack.keys.secret, stack.keys.publishable, email_address())

    assert seen.pop("total") >= 1
    assert seen == {
        "sameUser": True,
        "role": "editor",
        "theme": "dark",
        "duplicate": [422, "email_exists"],
        "gone": [404, "user_not_found"],
    }


def test_a_taken_address_is_refused(service: Client) -> None:
    user, other = create(service, phone=str(uuid4())), create(service)

    assert refusal(service.auth.admin.create_user, {"email": user.email}) == (422, "email_exists")
    assert refusal(service.auth.admin.create_user, {"phone": user.phone}) == (422, "phone_exists")
    assert refusal(service.auth.admin.update_user_by_id, other.id, {"email": user.email}) == (422, "email_exists")


def test_a_weak_password_is_refused_with_its_reasons(service: Client) -> None:
    with pytest.raises(AuthWeakPasswordError) as caught:
        create(service, password="short")

    assert caught.value.status == 422
    assert caught.value.reasons == ["length"]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"email": "nobody"},
        {"email": "a@example.com", "password": "x" * 73},
        {"email": "a@example.com", "ban_duration": "a while"},
        {"email": "a@example.com", "user_metadata": {"name": "\0"}},
    ],
)
def test_what_cannot_be_a_user_is_refused(service: Client, attributes: dict[str, Any]) -> None:
    assert refusal(service.auth.admin.create_user, attributes) == (400, "validation_failed")


def test_an_unknown_user_is_not_found(service: Client) -> None:
    admin, unknown = service.auth.admin, str(uuid4())

    assert refusal(admin.get_user_by_id, unknown) == (404, "user_not_found")
    assert refusal(admin.update_user_by_id, unknown, {"role": "editor"}) == (404, "user_not_found")
    assert refusal(admin.delete_user, unknown) == (404, "user_not_found")


def test_what_the_stack_leaves_out_says_so(service: Client) -> None:
    admin, email = service.auth.admin, email_address()

    assert refusal(admin.invite_user_by_email, email) == (501, "not_implemented")
    assert refusal(admin.generate_link, {"type": "magiclink", "email": email}) == (501, "not_implemented")


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "users", b"{", (400, "bad_json")),
        ("POST", "users", b"[]", (400, "bad_json")),
        ("POST", "users", b'{"email": 1}', (400, "bad_json")),
        ("GET", "users/nobody", None, (404, "validation_failed")),
        ("GET", "users?page=none", None, (400, "validation_failed")),
        ("GET", "users?per_page=0", None, (400, "validation_failed")),
    ],
)
def test_a_malformed_request_is_refused(
    stack: Stack, method: str, path: str, body: bytes | None, expected: tuple[int, str]
) -> None:
    answer = httpx.request(
        method, f"{stack.url}/auth/v1/admin/{path}", content=body, headers={"apikey": stack.keys.secret}
    )

    error = answer.json()
    assert (answer.status_code, error["error_code"]) == expected
    assert error["code"] == answer.status_code
    assert error["msg"]


def test_only_the_secret_key_opens_the_admin_api(stack: Stack, service: Client, visitor: Client) -> None:
    secret, publishable = stack.keys.secret, stack.keys.publishable
    user_token = sign_in(visitor, create(service))
    service_token = jwt.encode({"role": "service_role", "exp": time.time() + 60}, stack.keys.jwt_secret, "HS256")
    forged = jwt.encode({"role": "service_role", "exp": time.time() + 60}, "x" * 32, "HS256")
    expired = jwt.encode({"role": "service_role", "exp": 1}, stack.keys.jwt_secret, "HS256")

    def ask(apikey: str | None, bearer: str | None) -> int | str:
        headers = {"apikey": apikey, "authorization": bearer and f"Bearer {bearer}"}
        sent = {name: value for name, value in headers.items() if value}
        answer = httpx.get(f"{stack.url}/auth/v1/admin/users", headers=sent)
        return 200 if answer.is_success else f"{answer.status_code} {answer.json()['error_code']}"

    assert ask(secret, None) == 200
    assert ask(secret, secret) == 200
    assert ask(None, secret) == 200
    assert ask(publishable, service_token) == 200
    assert ask(None, None) == "401 no_authorization"
    assert ask(publishable, None) == "403 not_admin"
    assert ask(publishable, user_token) == "403 not_admin"
    assert ask(secret, user_token) == "403 not_admin"
    assert ask(secret + "x", None) == "403 bad_jwt"
    assert ask(publishable, forged) == "403 bad_jwt"
    assert ask(publishable, expired) == "403 bad_jwt"
