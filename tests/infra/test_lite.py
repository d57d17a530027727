"""What config.mjs cures in @supabase/lite holds through the stack, and stock lite still needs every cure."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from postgrest import APIError
from supabase import Client, create_client

from infra.local import parts, ports
from infra.local.keys import Keys
from infra.local.stack import Stack
from tests.infra import email_address, reload_schema, running

CONFIGURATION = parts.ROOT / "infra/local/lite/supabase/config.mjs"
BOOTSTRAP = parts.ROOT / "infra/local/lite/bootstrap.sql"
TABLES = """
    create extension if not exists vector with schema extensions;
    create table lite_contract (
        id int primary key,
        made_at timestamptz default '2026-01-02 03:04:05+00',
        noted_at timestamp default '2026-01-02 03:04:05',
        price numeric(10, 2) default 12.50,
        raw bytea default '\\xdead',
        embedding extensions.vector(3)
    );
    alter table lite_contract enable row level security;
    create table lite_contract_private (id int);
    revoke all on lite_contract_private from anon;
    insert into lite_contract (id) values (1);
"""
DROP = "drop table if exists lite_contract, lite_contract_private, lite_contract_late"


@dataclass(frozen=True)
class Served:
    """A database behind lite, as its clients see it."""

    url: str
    keys: Keys
    database: psycopg.Connection
    closed_table: str  # anon was refused it before lite's first request, which is when stock lite grants

    @property
    def service(self) -> Client:
        return create_client(self.url, self.keys.secret)

    @property
    def visitor(self) -> Client:
        return create_client(self.url, self.keys.publishable)

    def column(self, name: str) -> object:
        """A column of the only row, as it comes over REST."""
        [row] = self.service.table("lite_contract").select(name).execute().data
        assert isinstance(row, dict)
        return row[name]


def stores_metadata_as_an_object(lite: Served) -> bool:
    email = email_address()
    body = {"email": email, "password": "correct horse", "data": {"full_name": "Ada"}}
    headers = {"apikey": lite.keys.publishable}
    httpx.post(f"{lite.url}/auth/v1/signup", json=body, headers=headers).raise_for_status()
    query = "select raw_user_meta_data ->> 'full_name' from auth.users where email = %s"
    return lite.database.execute(query, [email]).fetchall() == [("Ada",)]


def takes_a_list_for_a_vector(lite: Served) -> bool:
    try:
        lite.service.table("lite_contract").update({"embedding": [1, 2, 3]}).eq("id", 1).execute()
    except APIError as error:
        assert error.code == "22P02"
        return False
    return lite.column("embedding") == "[1,2,3]"


def leaves_grants_alone(lite: Served) -> bool:
    try:
        lite.visitor.table(lite.closed_table).select("*").execute()
    except APIError as error:
        return error.code == "42501"
    return False


def reloads_the_schema(lite: Served) -> bool:
    lite.service.table("lite_contract").select("id").execute()
    lite.database.execute("create table lite_contract_late (id int)")
    query = lite.service.table("lite_contract_late").select("id")
    return reload_schema(lite.database, query.execute, seconds=2)


# Each cure by its name in config.mjs, and what it is there for.
CURES: dict[str, Callable[[Served], bool]] = {
    "jsonb": stores_metadata_as_an_object,
    "numeric": lambda lite: lite.column("price") == 12.5,
    "bytea": lambda lite: lite.column("raw") == "\\xdead",
    "timestamptz": lambda lite: lite.column("made_at") == "2026-01-02T03:04:05+00:00",
    "timestamp": lambda lite: lite.column("noted_at") == "2026-01-02T03:04:05",
    "rlsState": leaves_grants_alone,
    "serializeVectors": takes_a_list_for_a_vector,
    "listener": reloads_the_schema,
}


@pytest.fixture(scope="module")
def lite(stack: Stack) -> Iterator[Served]:
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        served = Served(stack.url, stack.keys, database, closed_table="users")
        database.execute(DROP)
        database.execute(TABLES)
        assert reload_schema(database, served.service.table("lite_contract").select("id").execute)
        yield served
        database.execute(DROP)
        database.execute("notify pgrst, 'reload schema'")


@pytest.mark.parametrize("name", CURES)
def test_a_cure_holds_through_the_stack(lite: Served, name: str) -> None:
    assert CURES[name](lite)


def test_every_cure_is_one_of_the_configuration() -> None:
    configuration = CONFIGURATION.read_text()

    assert all(name in configuration for name in CURES)


def test_stock_lite_still_needs_every_cure(stack: Stack, tmp_path: Path) -> None:
    with (
        scratch_database(stack.database_url) as url,
        psycopg.connect(url, autocommit=True) as database,
        stock_lite(tmp_path, url, stack.keys) as origin,
    ):
        stock = Served(origin, stack.keys, database, closed_table="lite_contract_private")
        faults = {name for name, holds in CURES.items() if not holds(stock)}

    assert faults == set(CURES)


@contextmanager
def scratch_database(stack_url: str) -> Iterator[str]:
    """A database of the same server, with the tables of the contract."""
    url = urlsplit(stack_url)._replace(path="/stock_lite").geturl()
    with psycopg.connect(stack_url, autocommit=True) as server:
        server.execute("drop database if exists stock_lite with (force)")
        server.execute("create database stock_lite")
        with psycopg.connect(url) as database:
            database.execute(BOOTSTRAP.read_bytes())
            database.execute(TABLES)
        yield url
        server.execute("drop database stock_lite with (force)")


@contextmanager
def stock_lite(folder: Path, database_url: str, keys: Keys) -> Iterator[str]:
    """lite on the database as its own documentation sets it up."""
    with ports.reserve(None) as held:
        configuration = {
            "db": {"driver": "postgres", "url": database_url},
            "api": {"port": ports.number(held), "schemas": ["public"]},
            "auth": {
                "enabled": True,
                "jwt_secret": keys.jwt_secret,
                "publishable_key": keys.publishable,
                "secret_key": keys.secret,
                "email": {"enable_confirmations": False},
            },
        }
        (folder / "supabase").mkdir()
        (folder / "supabase/config.json").write_text(json.dumps(configuration))
        command = [parts.node(), str(parts.LITE_CLI), "start", "--no-admin"]
        environment = {**os.environ, "LITE_TELEMETRY": "0", "DO_NOT_TRACK": "1"}
        with running(command, f"{ports.url(ports.number(held))}/auth/v1/health", cwd=folder, env=environment):
            yield ports.url(ports.number(held))
