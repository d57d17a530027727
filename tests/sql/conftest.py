"""Who asks in these tests, and passages to ask for."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import jwt
import psycopg
import pytest
from supabase import Client, ClientOptions, create_client

from infra.local.stack import Stack
from tests.sql import Shelf, retire, rows, sign_up
from tests.sql.exports import Exports
from tests.sql.models import Family
from tests.users import User


@pytest.fixture(scope="session")
def service(stack: Stack) -> Client:
    return create_client(stack.url, stack.keys.secret)


@pytest.fixture(scope="session")
def visitor(stack: Stack) -> Client:
    return create_client(stack.url, stack.keys.publishable)


@pytest.fixture(scope="session")
def admin(stack: Stack, service: Client) -> Client:
    """The client of a user whom the project has made an admin."""
    account = {"email": f"{uuid4().hex}@example.com", "password": uuid4().hex}
    service.auth.admin.create_user({**account, "email_confirm": True, "app_metadata": {"role": "admin"}})  # type: ignore[typeddict-item]
    api = create_client(stack.url, stack.keys.publishable)
    api.auth.sign_in_with_password(account)  # type: ignore[arg-type]
    return api


@pytest.fixture(scope="session")
def owner(stack: Stack) -> User:
    """A user who has passages of his own."""
    return User.sign_up(stack)


@pytest.fixture(scope="session")
def owners_api(stack: Stack, owner: User) -> Client:
    return owner.client(stack)


@pytest.fixture(scope="session")
def outsider(stack: Stack) -> Client:
    """A user who has none."""
    return User.sign_up(stack).client(stack)


@pytest.fixture(scope="session")
def database(stack: Stack) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def mint(stack: Stack) -> Callable[..., Client]:
    """A client whose token has these claims, by default of somebody whom Supabase's Auth has never heard of."""

    def with_claims(**claims: Any) -> Client:
        standard = {
            "iss": f"{stack.url}/auth/v1",
            "aud": "authenticated",
            "role": "authenticated",
            "sub": str(uuid4()),
            "exp": time.time() + 600,
        }
        token = jwt.encode({**standard, **claims}, stack.keys.jwt_secret, "HS256")
        options = ClientOptions(headers={"Authorization": f"Bearer {token}"})
        return create_client(stack.url, stack.keys.publishable, options)

    return with_claims


@pytest.fixture
def api(database: psycopg.Connection, mint: Callable[..., Client]) -> Client:
    return sign_up(database, mint)


@pytest.fixture
def user_id(api: Client) -> int:
    [row] = rows(api.table("users").select("user_id"))
    found: int = row["user_id"]
    return found


@pytest.fixture
def neighbour(database: psycopg.Connection, mint: Callable[..., Client]) -> Client:
    return sign_up(database, mint)


@pytest.fixture
def shelf(database: psycopg.Connection) -> Iterator[Shelf]:
    """A place for a test's own passages, under a model that no other test has."""
    shelf = Shelf(database, uuid4().hex)
    yield shelf
    database.execute("delete from public.documents where id like %s", [f"{shelf.model}%"])
    database.execute("delete from public.finance_knowledge where embedding_model like %s", [f"{shelf.model}%"])


@pytest.fixture
def no_model_in_use(database: psycopg.Connection) -> Iterator[None]:
    """As on the first day, when nobody has said which model plain searches mean."""
    kept = database.execute("delete from private.knowledge_base returning embedding_model").fetchall()
    yield
    database.execute("delete from private.knowledge_base")
    for row in kept:
        database.execute("insert into private.knowledge_base (embedding_model) values (%s)", row)


@pytest.fixture
def family(service: Client, database: psycopg.Connection) -> Iterator[Family]:
    """A model of the test's own."""
    family = Family(service, uuid4().hex)
    yield family
    retire(database, family.name)


@pytest.fixture
def exports(service: Client, database: psycopg.Connection) -> Iterator[Exports]:
    """With no conversation, training row or export but the test's own."""
    exports = Exports(service, database)
    exports.clear()
    yield exports
    exports.clear()
