"""GoTrue's admin API, which lite lacks: users created, read, changed and deleted in SQL, by the secret key only."""

import logging
import re
from asyncio import to_thread
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlencode
from uuid import UUID, uuid4

import bcrypt
import psycopg
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.keys import Keys

EMAIL = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")
SHORTEST_PASSWORD = 6
LONGEST_PASSWORD_BYTES = 72  # bcrypt reads no more
BCRYPT_COST = 10  # lite's and GoTrue's
TAKEN = {
    "users_pkey": ("user_already_exists", "A user with this id has already been registered"),
    "users_email_partial_key": ("email_exists", "A user with this email address has already been registered"),
    "users_phone_key": ("phone_exists", "A user with this phone number has already been registered"),
}
USERS = """
    select jsonb_strip_nulls(jsonb_build_object(
        'id', u.id,
        'aud', u.aud,
        'role', u.role,
        'email', coalesce(u.email, ''),
        'phone', coalesce(u.phone, ''),
        'email_confirmed_at', u.email_confirmed_at,
        'phone_confirmed_at', u.phone_confirmed_at,
        'confirmed_at', u.confirmed_at,
        'invited_at', u.invited_at,
        'last_sign_in_at', u.last_sign_in_at,
        'banned_until', u.banned_until,
        'deleted_at', u.deleted_at,
        'created_at', u.created_at,
        'updated_at', u.updated_at,
        'is_anonymous', u.is_anonymous
    )) || jsonb_build_object(
        'app_metadata', u.raw_app_meta_data,
        'user_metadata', u.raw_user_meta_data,
        'identities', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'identity_id', i.id,
                'id', i.provider_id,
                'user_id', i.user_id,
                'identity_data', i.identity_data,
                'provider', i.provider,
                'email', i.email,
                'last_sign_in_at', i.last_sign_in_at,
                'created_at', i.created_at,
                'updated_at', i.updated_at
            ) order by i.created_at), '[]')
            from auth.identities i where i.user_id = u.id
        )
    )
    from auth.users u
"""

logger = logging.getLogger(__name__)
Work = Callable[[Request, AsyncConnection], Awaitable[Response]]
Model = TypeVar("Model", bound=BaseModel)


class AuthError(Exception):
    """A refusal in GoTrue's shape; `details` stand beside the message."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": status, "error_code": code, "msg": message, **details}

    def response(self) -> Response:
        return JSONResponse(self.body, self.status, {"access-control-allow-origin": "*"})


class Attributes(BaseModel):
    """What `create_user` and `update_user_by_id` send; what is missing stays as it is."""

    id: UUID | None = None
    email: str | None = None
    phone: str | None = None
    password: str | None = None
    password_hash: str | None = None
    user_metadata: dict[str, Any] = {}
    app_metadata: dict[str, Any] = {}
    email_confirm: bool = False
    phone_confirm: bool = False
    role: str | None = None
    ban_duration: str | None = None


class Deletion(BaseModel):
    """`delete_user`'s one wish."""

    should_soft_delete: bool = False


def routes(keys: Keys, pool: AsyncConnectionPool) -> list[Route]:
    """The admin API below `/auth/v1`. One request is one transaction."""

    def admin(work: Work) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            _require_secret(request, keys)
            try:
                async with pool.connection() as connection:
                    return await work(request, connection)
            except psycopg.Error as error:
                raise _refusal(error) from error

        return endpoint

    return [
        Route("/admin/users", admin(list_users), methods=["GET"]),
        Route("/admin/users", admin(create_user), methods=["POST"]),
        Route("/admin/users/{id}", admin(read_user), methods=["GET"]),
        Route("/admin/users/{id}", admin(update_user), methods=["PUT"]),
        Route("/admin/users/{id}", admin(delete_user), methods=["DELETE"]),
        Route("/admin/{rest:path}", admin(not_served), methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        Route("/invite", admin(not_served), methods=["POST"]),
    ]


async def list_users(request: Request, connection: AsyncConnection) -> Response:
    """A page of users, the newest first; pages are counted in `x-total-count` and `link`."""
    page, per_page = _number(request, "page", 1), _number(request, "per_page", 50)
    rows = await connection.execute(
        f"{USERS} order by u.created_at desc, u.id limit %s offset %s", [per_page, (page - 1) * per_page]
    )
    users = [user for (user,) in await rows.fetchall()]
    total = (await (await connection.execute("select count(*) from auth.users")).fetchall())[0][0]
    last = -(-total // per_page)
    links = [(page + 1, "next"), (last, "last")] if page < last else [(last, "last")]
    headers = {
        "x-total-count": str(total),
        "link": ", ".join(
            f'<{request.url.path}?{urlencode({"page": number, "per_page": per_page})}>; rel="{name}"'
            for number, name in links
        ),
    }
    return JSONResponse({"users": users, "aud": "authenticated"}, headers=headers)


async def create_user(request: Request, connection: AsyncConnection) -> Response:
    """A user with a confirmed or unconfirmed address, and the identities that belong to it."""
    attributes = await _sent(request, Attributes)
    if not (attributes.email or attributes.phone):
        raise AuthError(400, "validation_failed", "Cannot create a user without either an email or phone")
    providers = [name for name in ("email", "phone") if getattr(attributes, name)]
    values = {
        **await _values(attributes),
        "id": attributes.id or uuid4(),
        "app_metadata": Jsonb({"provider": providers[0], "providers": providers, **attributes.app_metadata}),
    }
    await connection.execute(
        """
        insert into auth.users (
            id, role, email, phone, encrypted_password, email_confirmed_at, phone_confirmed_at,
            raw_app_meta_data, raw_user_meta_data, banned_until
        ) values (
            %(id)s, coalesce(%(role)s, 'authenticated'), %(email)s, %(phone)s, %(password_hash)s,
            case when %(email_confirm)s then now() end, case when %(phone_confirm)s then now() end,
            %(app_metadata)s, %(user_metadata)s, now() + nullif(%(ban_duration)s, 'none')::interval
        )
        """,
        values,
    )
    await _identify(connection, values)
    return JSONResponse(await _user(connection, values["id"]))


async def read_user(request: Request, connection: AsyncConnection) -> Response:
    return JSONResponse(await _user(connection, _id(request)))


async def update_user(request: Request, connection: AsyncConnection) -> Response:
    """The user with what was sent changed; a key set to null leaves the metadata, a new password ends every session."""
    values = {**await _values(await _sent(request, Attributes)), "id": _id(request)}
    await _user(connection, values["id"])
    await connection.execute(
        """
        update auth.users set
            role = coalesce(%(role)s, role),
            email = coalesce(%(email)s, email),
            phone = coalesce(%(phone)s, phone),
            encrypted_password = coalesce(%(password_hash)s, encrypted_password),
            email_confirmed_at = coalesce(email_confirmed_at, case when %(email_confirm)s then now() end),
            phone_confirmed_at = coalesce(phone_confirmed_at, case when %(phone_confirm)s then now() end),
            raw_app_meta_data = (raw_app_meta_data || %(app_metadata)s)
                - array(select key from jsonb_each(%(app_metadata)s) where value = 'null'),
            raw_user_meta_data = (raw_user_meta_data || %(user_metadata)s)
                - array(select key from jsonb_each(%(user_metadata)s) where value = 'null'),
            banned_until = case
                when %(ban_duration)s::text is null then banned_until
                else now() + nullif(%(ban_duration)s, 'none')::interval
            end,
            updated_at = now()
        where id = %(id)s
        """,
        values,
    )
    await _identify(connection, values)
    if values["password_hash"]:
        await _end_sessions(connection, values["id"])
    return JSONResponse(await _user(connection, values["id"]))


async def delete_user(request: Request, connection: AsyncConnection) -> Response:
    """Delete the row and all that hangs on it, or with `should_soft_delete` keep it without a trace of the person."""
    user_id = _id(request)
    deletion = await _sent(request, Deletion)
    await _user(connection, user_id)
    await _end_sessions(connection, user_id)
    if deletion.should_soft_delete:
        await _obscure(connection, user_id)
    else:
        await connection.execute("delete from auth.users where id = %s", [user_id])
    return JSONResponse({})


async def not_served(request: Request, _connection: AsyncConnection) -> Response:
    path = request.url.path.removeprefix("/auth/v1/")
    raise AuthError(501, "not_implemented", f"{path} is not served by the embedded stack")


def _require_secret(request: Request, keys: Keys) -> None:
    """A bearer token speaks before the API key, as it does with GoTrue: a user's token never gets the key's rights."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    credential = token if scheme.lower() == "bearer" else request.headers.get("apikey")
    if not credential:
        raise AuthError(401, "no_authorization", "This endpoint requires a valid Bearer token")
    claims = keys.claims(credential)
    if claims is None:
        raise AuthError(403, "bad_jwt", "invalid JWT: unable to parse or verify signature")
    if claims["role"] != "service_role":
        raise AuthError(403, "not_admin", "User not allowed")


def _refusal(error: psycopg.Error) -> AuthError:
    constraint = error.diag.constraint_name
    if isinstance(error, psycopg.errors.UniqueViolation) and constraint in TAKEN:
        return AuthError(422, *TAKEN[constraint])
    if isinstance(error, psycopg.DataError):
        return AuthError(400, "validation_failed", str(error.diag.message_primary or error))
    logger.error("a user could not be written", exc_info=error)
    return AuthError(500, "unexpected_failure", f"Database error: {error.diag.message_primary or error}")


def _id(request: Request) -> UUID:
    try:
        return UUID(request.path_params["id"])
    except ValueError as error:
        raise AuthError(404, "validation_failed", "user_id must be an UUID") from error


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise AuthError(400, "validation_failed", f"Bad Pagination Parameters: {name} must be a positive number")
    return int(text)


async def _sent(request: Request, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise AuthError(400, "bad_json", f"Could not parse request body as JSON: {reason}") from error


async def _values(attributes: Attributes) -> dict[str, Any]:
    """The statements' parameters. An address confirmed here is noted in the metadata, as GoTrue does."""
    if attributes.email and not EMAIL.fullmatch(attributes.email):
        raise AuthError(400, "validation_failed", "Unable to validate email address: invalid format")
    verified = {"email_verified": True} if attributes.email_confirm else {}
    return {
        **attributes.model_dump(exclude={"password"}),
        "email": attributes.email.lower() if attributes.email else None,
        "phone": attributes.phone or None,
        "password_hash": await _password_hash(attributes),
        "app_metadata": Jsonb(attributes.app_metadata),
        "user_metadata": Jsonb({**attributes.user_metadata, **verified}),
    }


async def _password_hash(attributes: Attributes) -> str | None:
    if attributes.password is None:
        return attributes.password_hash
    if len(attributes.password) < SHORTEST_PASSWORD:
        message = f"Password should be at least {SHORTEST_PASSWORD} characters."
        raise AuthError(422, "weak_password", message, weak_password={"reasons": ["length"]})
    password = attributes.password.encode()
    if len(password) > LONGEST_PASSWORD_BYTES:
        raise AuthError(400, "validation_failed", f"Password cannot be longer than {LONGEST_PASSWORD_BYTES} bytes")
    return (await to_thread(bcrypt.hashpw, password, bcrypt.gensalt(BCRYPT_COST))).decode()


async def _user(connection: AsyncConnection, user_id: UUID) -> Any:
    rows = await connection.execute(f"{USERS} where u.id = %s", [user_id])
    found = await rows.fetchone()
    if found is None:
        raise AuthError(404, "user_not_found", "User not found")
    return found[0]


async def _identify(connection: AsyncConnection, values: dict[str, Any]) -> None:
    """The identity behind each address that was sent."""
    for provider in ("email", "phone"):
        if not values[provider]:
            continue
        data = {"sub": str(values["id"]), provider: values[provider], "email_verified": False, "phone_verified": False}
        await connection.execute(
            """
            insert into auth.identities (id, provider, provider_id, user_id, identity_data, last_sign_in_at)
            values (gen_random_uuid(), %(provider)s, %(id)s::text, %(id)s, %(data)s, now())
            on conflict (provider, provider_id) do update
                set identity_data = identities.identity_data || excluded.identity_data, updated_at = now()
            """,
            {"provider": provider, "id": values["id"], "data": Jsonb(data)},
        )


async def _end_sessions(connection: AsyncConnection, user_id: UUID) -> None:
    await connection.execute("delete from auth.refresh_tokens where user_id = %s", [user_id])
    await connection.execute("delete from auth.sessions where user_id = %s", [user_id])


async def _obscure(connection: AsyncConnection, user_id: UUID) -> None:
    await connection.execute(
        """
        update auth.users set
            deleted_at = now(),
            updated_at = now(),
            email = encode(sha256((id || email)::bytea), 'hex'),
            phone = encode(sha256((id || phone)::bytea), 'hex'),
            encrypted_password = null,
            email_change = null,
            phone_change = null,
            confirmation_token = null,
            recovery_token = null,
            email_change_token_new = null,
            email_change_token_current = null,
            raw_app_meta_data = '{}',
            raw_user_meta_data = '{}'
        where id = %s
        """,
        [user_id],
    )
    await connection.execute(
        """
        update auth.identities
        set provider_id = encode(sha256((provider || provider_id)::bytea), 'hex'), identity_data = '{}'
        where user_id = %s
        """,
        [user_id],
    )
