"""Migrations applied and recorded as the Supabase CLI does it, so that both agree on what a database has."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

FILE_NAME = re.compile(r"(?P<version>\d+)_(?P<name>.*)\.sql")
# Where a semicolon may stand without ending a statement, and the words that open and close such a place.
TOKEN = re.compile(
    r"""
      --[^\n]*
    | /\*(?:/\*.*?\*/|.)*?\*/
    | \be'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$
    | (?P<atomic>\bbegin\s+atomic\b)
    | (?P<case>\bcase\b)
    | (?P<end>\bend\b)
    | (?P<semicolon>;)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
COMMENTS = re.compile(r"\A(?:\s|--[^\n]*|/\*.*?\*/)*", re.DOTALL)


class MigrationError(RuntimeError):
    """A migration that PostgreSQL refused: file, line and PostgreSQL's words. Nothing of it was applied."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file, cut into its statements."""

    file: Path
    version: str
    name: str
    sql: str

    @classmethod
    def read(cls, folder: Path) -> list["Migration"]:
        """A folder's migrations in the order they are applied."""
        found = [(file, match) for file in folder.iterdir() if (match := FILE_NAME.fullmatch(file.name))]
        made = [cls(file, match["version"], match["name"], file.read_text()) for file, match in found]
        return sorted(made, key=lambda migration: migration.file.name)


def apply(database_url: str, folder: Path) -> list[str]:
    """Apply what the database has not yet, each file in a transaction of its own; gives the applied files' names.

    PostgREST, or what stands in for it, is told that the schema changed. Raises `MigrationError`.
    """
    applied = []
    with psycopg.connect(database_url, autocommit=True) as connection:
        rows = connection.execute("select version from supabase_migrations.schema_migrations").fetchall()
        known = {version for (version,) in rows}
        for migration in Migration.read(folder):
            if migration.version not in known:
                _apply_one(connection, migration)
                applied.append(migration.file.name)
        connection.execute("notify pgrst, 'reload schema'")
    return applied


def statements(sql: str) -> Iterator[tuple[int, str]]:
    """Each statement with its offset in the file: its comments before it, without its semicolon."""
    start = depth = 0
    for token in TOKEN.finditer(sql):
        if token["atomic"] or (token["case"] and depth):
            depth += 1
        elif token["end"] and depth:
            depth -= 1
        elif token["semicolon"] and not depth:
            yield from _trimmed(sql, start, token.start())
            start = token.end()
    yield from _trimmed(sql, start, len(sql))


def _trimmed(sql: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    text = sql[start:end]
    if text.strip():
        yield start + len(text) - len(text.lstrip()), text.strip()


def _apply_one(connection: psycopg.Connection, migration: Migration) -> None:
    connection.execute("reset all")  # what an earlier file set for its session
    with connection.transaction():
        for offset, statement in statements(migration.sql):
            try:
                connection.execute(statement.encode())
            except psycopg.Error as error:
                raise MigrationError(_explained(migration, offset, statement, error)) from error
        connection.execute(
            "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)",
            (migration.version, migration.name, [statement for _, statement in statements(migration.sql)]),
        )


def _explained(migration: Migration, offset: int, statement: str, error: psycopg.Error) -> str:
    inside = len(statement) - len(COMMENTS.sub("", statement, count=1))
    if position := error.diag.statement_position:
        inside = int(position) - 1
    line = migration.sql.count("\n", 0, offset + inside) + 1
    return f"{migration.file}, line {line}: {str(error).strip()}"
