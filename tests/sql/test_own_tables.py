"""An app that has users and swaps of its own: the migrations come to them as guests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from infra.local import migrations
from infra.local.parts import ROOT
from infra.local.stack import Stack

# As much of Auth as the migrations lean on.
AUTH = """
    create table auth.users (id uuid primary key, email text);
    create function auth.jwt() returns jsonb language sql stable
        as $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $$;
    create function auth.uid() returns uuid language sql stable as $$ select (auth.jwt() ->> 'sub')::uuid $$;
"""
TABLES = """
    create table public.users (user_id bigint primary key, name text);
    create table public.swap_history (
        user_id bigint not null references public.users (user_id),
        from_token varchar(10),
        to_token varchar(10),
        amount numeric(20, 9),
        created_at timestamptz,
        tx_hash text primary key
    );
    insert into public.users values (700, 'Ada'), (800, 'Ben');
    insert into public.swap_history values
        (700, 'TON', 'USDT', 1.5, '2026-01-01', 'a'),
        (700, 'USDT', 'TON', 3, '2026-01-02', 'b'),
        (800, 'TON', 'NOT', 9, '2026-01-03', 'c');
"""
SHAPE = """
    select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.oid in ('public.users'::regclass, 'public.swap_history'::regclass)
    union all
    select conrelid::regclass::text, conname, pg_get_constraintdef(oid), true from pg_constraint
    where conrelid in ('public.users'::regclass, 'public.swap_history'::regclass)
"""


@contextmanager
def app_with(stack: Stack, tables: LiteralString) -> Iterator[psycopg.Connection]:
    """The database of an app with these tables, before our first migration."""
    name = f"app_{uuid4().hex}"
    url = urlsplit(stack.database_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(stack.database_url, autocommit=True) as server:
        server.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(url, autocommit=True) as database:
                database.execute((ROOT / "infra/local/lite/bootstrap.sql").read_bytes())
                database.execute(AUTH)
                database.execute(tables)
                yield database
        finally:
            server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def migrate(database: psycopg.Connection) -> None:
    migrations.apply(database.info.dsn, ROOT / "sql/migrations")


def sign_up(database: psycopg.Connection) -> UUID:
    auth_user_id = uuid4()
    database.execute("insert into auth.users (id, email) values (%s, 'ada@example.com')", [auth_user_id])
    return auth_user_id


def test_an_apps_own_tables_keep_their_rows_and_their_shape(stack: Stack) -> None:
    with app_with(stack, TABLES) as database:
        shape = set(database.execute(SHAPE).fetchall())
        swaps = database.execute("select * from public.swap_history").fetchall()

        migrate(database)

        assert set(database.execute(SHAPE).fetchall()) - shape == {
            ("users", "auth_user_id", "uuid", False),
            ("users", "training_consent", "boolean", True),
            ("users", "training_consent_at", "timestamp with time zone", False),
            ("users", "users_auth_user_id_key", "UNIQUE (auth_user_id)", True),
            (
                "users",
                "users_auth_user_id_fkey",
                "FOREIGN KEY (auth_user_id) REFERENCES auth.users(id) ON DELETE SET NULL",
                True,
            ),
        }
        assert shape <= set(database.execute(SHAPE).fetchall())
        users = database.execute("select * from public.users").fetchall()
        assert users == [(700, "Ada", None, False, None), (800, "Ben", None, False, None)]
        assert database.execute("select * from public.swap_history").fetchall() == swaps


def test_a_turn_is_closed_where_the_gateway_may_not_read_the_apps_users(stack: Stack) -> None:
    grants: LiteralString = "revoke all on public.users from service_role, authenticated, anon;"
    with app_with(stack, TABLES + grants) as database:
        migrate(database)
        closing = [700, uuid4(), uuid4()]
        database.execute("set role service_role")

        database.execute(
            "select public.close_turn(1, %s, %s, %s, 'What is TON?', 'A coin.', 'complete', input_tokens => 40)",
            closing,
        )
        opened = database.execute(
            "select public.open_call(%s, 'ai-with-rag', '700', 20, claimed_user_id => 700)", [uuid4()]
        ).fetchone()

        assert opened
        assert (opened[0]["outcome"], opened[0]["user_id"]) == ("open", 700)
        assert database.execute("select user_id, tokens from public.spending where period = 'day'").fetchall() == [
            (700, 40)
        ]


def test_conversations_are_exported_where_the_gateway_may_not_read_the_apps_users(stack: Stack) -> None:
    grants: LiteralString = "revoke all on public.users from service_role, authenticated, anon;"
    options = {"min_feedback": 1, "min_quality": 0, "formats": ["alpaca"], "incremental": False, "dry_run": False}
    worker = uuid4()
    with app_with(stack, TABLES + grants) as database:
        migrate(database)
        database.execute(
            """
            insert into public.conversations (user_id, thread_id, message, response, status, feedback)
            select user_id, gen_random_uuid(), 'What is TON?', 'A coin.', 'complete', 1 from public.users
            """
        )
        database.execute("set role service_role")

        def call(query: LiteralString, *values: Any) -> Any:
            [told] = database.execute(query, values).fetchone() or [None]
            return told

        database.execute("update public.users set training_consent = true where user_id = 700")
        id = call("select public.begin_export(%s, 'any')", Jsonb(options))["id"]
        call("select public.claim_export(%s, %s, 60)", id, worker)
        [read] = call("select public.read_export_conversations(%s, 1, null, 10)", id)["rows"]
        row = [read[0], None, None, None, 0.5, [], "train", "aa", "aa", None, None, None, None]
        put = call("select public.put_export_page(%s, 1, %s, null, true, %s, 1, 60)", id, worker, Jsonb([row]))
        call("select public.claim_export(%s, %s, 60)", id, worker)
        selected = call("select public.select_export(%s, %s)", id, worker)
        erased = call("select public.erase_training_user(700)")

        assert (read[1], put["outcome"], selected["rows"]) == (700, "noted", 1)
        assert (erased["conversations"], erased["training_data"]) == (1, 1)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.execute("select name from public.users")


def test_what_an_apps_own_policies_allow_stays_allowed(stack: Stack) -> None:
    policies: LiteralString = """
        alter table public.users enable row level security;
        create policy "users change their own row" on public.users to authenticated using (name = 'Ada');
    """
    with app_with(stack, TABLES + policies) as database:
        migrate(database)
        database.execute("set role authenticated")

        renamed = database.execute("update public.users set name = 'Ada' where user_id in (700, 800)")

        assert renamed.rowcount == 1


@pytest.mark.parametrize(
    "users",
    [
        "create table public.users (user_id bigint primary key, name text);",
        "create table public.users (user_id bigserial primary key, name text);",
        "create table public.users (user_id bigint generated always as identity primary key);",
        "create table public.users (user_id bigserial primary key, name text not null);",
    ],
    ids=["ids of its own", "a serial id", "an identity", "a name that must be given"],
)
def test_an_app_with_users_of_its_own_makes_their_rows_itself(stack: Stack, users: LiteralString) -> None:
    with app_with(stack, users) as database:
        sign_up(database)
        migrate(database)

        sign_up(database)

        assert database.execute("select * from public.users").fetchall() == []


def test_a_user_does_not_tie_himself_to_a_row(stack: Stack) -> None:
    policies: LiteralString = """
        alter table public.users enable row level security;
        create policy "users do as they like" on public.users to authenticated using (true) with check (true);
    """
    with app_with(stack, TABLES + policies) as database:
        migrate(database)
        auth_user_id = sign_up(database)
        database.execute("set role authenticated")

        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="auth_user_id"):
            database.execute("update public.users set auth_user_id = %s where user_id = 700", [auth_user_id])
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="auth_user_id"):
            database.execute("insert into public.users values (900, 'Eve', %s)", [auth_user_id])


@pytest.mark.parametrize("known_by", ["a tie", "a claim"])
def test_a_turn_comes_with_the_apps_own_swaps(stack: Stack, known_by: str) -> None:
    with app_with(stack, TABLES) as database:
        migrate(database)
        auth_user_id = sign_up(database)
        claims: dict[str, Any] = {"sub": str(auth_user_id), "role": "authenticated"}
        if known_by == "a tie":
            database.execute("update public.users set auth_user_id = %s where user_id = 700", [auth_user_id])
        else:
            claims["user_id"] = 700
        database.execute("select set_config('request.jwt.claims', %s::jsonb::text, false)", [Jsonb(claims)])
        database.execute("set role authenticated")

        turn = database.execute("select public.open_turn('What is TON?')").fetchone()

        assert turn
        assert (turn[0]["outcome"], turn[0]["user_id"]) == ("open", 700)
        assert [(swap["from_token"], swap["amount"]) for swap in turn[0]["swaps"]] == [("USDT", 3), ("TON", 1.5)]


def test_an_app_without_realtime_takes_the_migrations_too(stack: Stack) -> None:
    with app_with(stack, "drop schema realtime cascade") as database:
        migrate(database)

        assert database.execute("select to_regclass('public.conversations')::text").fetchone() == ("conversations",)
