"""What PostgreSQL's own catalogue says of the schema, and what the migration files say of it."""

import re
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from infra.local.parts import ROOT

MIGRATIONS = sorted((ROOT / "sql/migrations").iterdir())
FILE_NAME = re.compile(r"(\d{14})_[a-z0-9_]+\.sql")  # as `supabase migration new` makes them
CREATES_TABLE = re.compile(r"create table (?:if not exists )?public\.(\w+)")
CREATES_POLICY = re.compile(r'create policy "([^"]+)"\s+on public\.(\w+)')
ENABLES_SECURITY = re.compile(r"alter table public\.(\w+) enable row level security")
OURS = """
    create temp view our_relations as
        select oid, relname as name, relkind as kind, relrowsecurity, reloptions from pg_class
        where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f');
    create temp view our_tables as select * from our_relations where kind in ('r', 'p');
    create temp view private_relations as
        select oid, relname as name, relkind as kind, relrowsecurity, reloptions from pg_class
        where relnamespace = 'private'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f');
    create temp view our_functions as
        select oid, oid::regprocedure::text as name, proconfig, prosecdef, pronamespace from pg_proc
        where pronamespace in ('public'::regnamespace, 'private'::regnamespace)
          and not exists (select from pg_depend where objid = pg_proc.oid and deptype = 'e');
"""
KNOWLEDGE = ["documents", "finance_embeddings", "finance_knowledge"]
# What a search calls, and what writing or reading a passage computes.
SEARCH = [
    "match_finance_embeddings",
    "match_finance_knowledge",
    "private.account",
    "private.current_embedding_model",
    "private.current_user_id",
    "private.identifiers",
    "private.match_words",
    "private.prose",
    "private.rank_passages",
    "private.words",
    "search_finance_knowledge",
]
# The guide's columns, in PostgreSQL's own names of the types; swap_history's follow from the queries it makes.
GUIDE = {
    "finance_embeddings": {
        "id": "bigint",
        "content": "text",
        "embedding": "vector(1536)",
        "metadata": "jsonb",
        "token_symbol": "text",
        "token_address": "text",
        "created_at": "timestamp with time zone",
    },
    "finance_knowledge": {
        "id": "bigint",
        "content": "text",
        "embedding": "vector(1536)",
        "category": "text",
        "token_symbol": "text",
        "created_at": "timestamp with time zone",
    },
    "conversations": {
        "id": "bigint",
        "user_id": "bigint",
        "message": "text",
        "response": "text",
        "context_used": "jsonb",
        "model_version": "text",
        "feedback": "integer",
        "created_at": "timestamp with time zone",
    },
    "training_data": {
        "id": "bigint",
        "instruction": "text",
        "input": "text",
        "output": "text",
        "source": "text",
        "quality_score": "double precision",
        "tags": "text[]",
        "created_at": "timestamp with time zone",
    },
    "model_metadata": {
        "id": "bigint",
        "model_name": "text",
        "version": "text",
        "base_model": "text",
        "training_data_size": "integer",
        "fine_tuned_on": "timestamp with time zone",
        "deployed_at": "timestamp with time zone",
        "performance_metrics": "jsonb",
        "storage_path": "text",
        "is_active": "boolean",
    },
    "swap_history": {
        "user_id": "bigint",
        "from_token": "text",
        "to_token": "text",
        "amount": "numeric",
        "created_at": "timestamp with time zone",
    },
    "users": {"user_id": "bigint"},
}


@pytest.fixture(scope="module", autouse=True)
def views(database: psycopg.Connection) -> None:
    database.execute(OURS)


def names(database: psycopg.Connection, query: LiteralString) -> list[Any]:
    """The query's one column."""
    return [name for (name,) in database.execute(query).fetchall()]


def test_every_table_has_row_level_security_and_a_policy(database: psycopg.Connection) -> None:
    open_tables = names(
        database,
        """
        select name from our_tables
        where not (relrowsecurity and exists (select from pg_policy where polrelid = our_tables.oid))
        """,
    )

    assert open_tables == []


def test_every_policy_names_its_roles(database: psycopg.Connection) -> None:
    for_everybody = names(database, "select polname from pg_policy where polroles = '{0}'")

    assert for_everybody == []


def test_every_view_asks_as_its_caller(database: psycopg.Connection) -> None:
    definers = names(
        database,
        """
        select name from (table our_relations union all table private_relations) as relations
        where kind = 'm' or kind = 'v' and not coalesce(reloptions @> '{security_invoker=true}', false)
        """,
    )

    assert definers == []


def test_no_private_table_is_open(database: psycopg.Connection) -> None:
    without_security = names(
        database, "select name from private_relations where kind in ('r', 'p') and not relrowsecurity"
    )
    readable = names(
        database,
        "select name from private_relations where has_any_column_privilege('authenticated', oid, 'select')"
        " or has_any_column_privilege('anon', oid, 'select')",
    )

    assert without_security == []
    assert sorted(readable) == ["knowledge_base", "staged_embeddings"]  # the latter by admins


def test_visitors_may_read_public_knowledge_and_nothing_else(database: psycopg.Connection) -> None:
    readable = names(database, "select name from our_relations where has_any_column_privilege('anon', oid, 'select')")
    writable = names(
        database,
        """
        select name from our_relations
        where has_any_column_privilege('anon', oid, 'insert, update, references')
          or has_table_privilege('anon', oid, 'delete, truncate, trigger')
        """,
    )
    seen = names(
        database,
        """
        select format('%s: %s', polrelid::regclass, pg_get_expr(polqual, polrelid)) from pg_policy
        where polroles @> array['anon'::regrole::oid] and polrelid in (select oid from our_tables)
        """,
    )

    assert sorted(readable) == sorted(KNOWLEDGE)
    assert writable == []
    assert sorted(seen) == ["documents: (owner_id IS NULL)", "finance_knowledge: (owner_id IS NULL)"]


def test_visitors_may_search_and_call_nothing_else(database: psycopg.Connection) -> None:
    functions = names(
        database,
        "select oid::regproc::text from our_functions where has_function_privilege('anon', oid, 'execute')",
    )

    assert sorted(functions) == SEARCH


def test_signed_in_users_may_write_feedback_and_admins_knowledge(database: psycopg.Connection) -> None:
    columns = names(
        database,
        """
        select format('%s.%s', name, attname) from our_relations
        join pg_attribute on attrelid = oid and attnum > 0 and not attisdropped
        where has_column_privilege('authenticated', oid, attnum, 'insert, update, references')
        """,
    )
    deletable = names(
        database, "select name from our_relations where has_table_privilege('authenticated', oid, 'delete')"
    )
    others = names(
        database, "select name from our_relations where has_table_privilege('authenticated', oid, 'truncate, trigger')"
    )
    conditions = names(
        database,
        """
        select distinct condition from pg_policy
        cross join lateral (
          values (pg_get_expr(polqual, polrelid)), (pg_get_expr(polwithcheck, polrelid))
        ) as of_policy (condition)
        where polcmd <> 'r' and condition is not null
          and polrelid in (select oid from our_tables where name in ('documents', 'finance_knowledge'))
        """,
    )

    assert [column for column in columns if column.split(".")[0] not in KNOWLEDGE] == ["conversations.feedback"]
    assert sorted(deletable) == sorted(KNOWLEDGE)
    assert others == []
    assert conditions == ["( SELECT private.is_admin() AS is_admin)"]


def test_signed_in_users_may_call_what_is_meant_for_them_and_nothing_else(database: psycopg.Connection) -> None:
    functions = names(
        database,
        "select oid::regproc::text from our_functions where has_function_privilege('authenticated', oid, 'execute')",
    )

    assert sorted(set(functions) - set(SEARCH)) == [
        # Whose effects row level security gives to admins only.
        "add_embeddings",
        "describe_usage",
        "drop_embeddings",
        "explain_search",
        "list_documents",
        "list_embedding_models",
        "list_passages_to_embed",
        "missing_passages",
        "open_turn",
        "private.describe_conversation",
        "private.is_admin",
        "private.plan_of",
        "private.put_document",
        "private.queue_as_writer",
        "private.reserve_turn",
        "private.set_training_consent",
        "private.summarize_model_calls",
        "put_documents",
        "read_conversation",
        "set_training_consent",
        "stage_embeddings",
        "use_embedding_model",
    ]


def test_every_function_has_a_fixed_search_path(database: psycopg.Connection) -> None:
    loose = names(
        database,
        """select name from our_functions where not coalesce(proconfig @> array['search_path=""'], false)""",
    )

    assert loose == []


def test_functions_with_their_owners_rights_are_out_of_the_apis_reach(database: psycopg.Connection) -> None:
    schemas = names(database, "select distinct pronamespace::regnamespace::text from our_functions where prosecdef")

    assert schemas == ["private"]


def test_every_foreign_key_leads_an_index(database: psycopg.Connection) -> None:
    without = names(
        database,
        """
        select format('%s of %s', k.conname, k.conrelid::regclass) from pg_constraint k
        where k.contype = 'f' and k.connamespace = 'public'::regnamespace
          and not exists (
            select from pg_index i
            where i.indrelid = k.conrelid and i.indisvalid and i.indpred is null
              and (string_to_array(i.indkey::text, ' ')::smallint[])[1:cardinality(k.conkey)] @> k.conkey
          )
        """,
    )

    assert without == []


@pytest.mark.parametrize("table", GUIDE)
def test_every_column_of_the_guide_is_there(database: psycopg.Connection, table: str) -> None:
    rows = database.execute(
        """
        select attname, format_type(atttypid, atttypmod) from pg_attribute
        where attrelid = format('public.%%I', %s::text)::regclass and attnum > 0 and not attisdropped
        """,
        [table],
    ).fetchall()

    columns = {name: type_name.removeprefix("extensions.") for name, type_name in rows}
    assert GUIDE[table].items() <= columns.items()


@pytest.mark.parametrize("function", ["match_finance_knowledge", "match_finance_embeddings"])
@pytest.mark.parametrize("named", ["match_count => 3", "match_threshold => 0.7, match_count => 5"])
def test_the_match_functions_take_the_guides_arguments(
    database: psycopg.Connection, function: str, named: LiteralString
) -> None:
    query = sql.SQL("select * from public.{}(query_embedding => %s::text::extensions.vector, {})")

    found = database.execute(query.format(sql.Identifier(function), sql.SQL(named)), [str([0.1] * 1536)])

    assert [column.name for column in found.description or []] == ["id", "content", "similarity", "token_symbol"]


def test_the_gateway_writes_history_and_changes_none(database: psycopg.Connection) -> None:
    rights = names(
        database,
        """
        select privilege from unnest(array['select', 'insert', 'update', 'delete', 'truncate']) as privilege
        where has_table_privilege('service_role', 'public.model_history', privilege)
        """,
    )

    assert rights == ["select", "insert"]


def test_conversations_reach_realtime(database: psycopg.Connection) -> None:
    published = names(
        database,
        "select tablename from pg_publication_tables where pubname = 'supabase_realtime' and schemaname = 'public'",
    )

    assert "conversations" in published


def test_every_migration_has_a_name_and_a_place_of_its_own() -> None:
    matches = [FILE_NAME.fullmatch(file.name) for file in MIGRATIONS]

    versions = [match and match[1] for match in matches]
    assert None not in versions
    assert len(set(versions)) == len(versions)


def test_the_database_has_every_migration_in_order(database: psycopg.Connection) -> None:
    applied = names(
        database,
        "select format('%s_%s.sql', version, name) from supabase_migrations.schema_migrations order by version",
    )

    assert applied == [file.name for file in MIGRATIONS]


def test_pgvector_is_loaded_before_a_function_sets_anything_of_it() -> None:
    """Or PostgreSQL refuses it to the owner of a hosted project, who is no superuser, in a session of its own."""
    for file in MIGRATIONS:
        before, setting, _ = file.read_text().partition("\nset hnsw.")
        assert not setting or "\nselect '[1]'::extensions.vector;" in before, file.name


def test_a_tables_policies_stand_in_the_migration_that_creates_it(database: psycopg.Connection) -> None:
    creates, secures, allows = (
        {(file.name, found) for file in MIGRATIONS for found in pattern.findall(file.read_text())}
        for pattern in (CREATES_TABLE, ENABLES_SECURITY, CREATES_POLICY)
    )

    tables = names(database, "select name from our_tables")
    policies = database.execute(
        "select polname, name from pg_policy join our_tables on our_tables.oid = polrelid"
    ).fetchall()
    assert sorted(table for _, table in creates) == sorted(tables)
    assert secures == creates
    assert {(file, table) for file, (_, table) in allows} == creates
    assert sorted(policy for _, policy in allows) == sorted(policies)
