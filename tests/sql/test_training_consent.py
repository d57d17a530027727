"""Consent: a user's own word, which models may learn from nothing without."""

import psycopg
import pytest
from supabase import Client

from tests.sql import DENIED, refusal, rows
from tests.sql.exports import Exports


def consent(api: Client) -> tuple[bool, str | None]:
    [row] = rows(api.table("users").select("training_consent, training_consent_at"))
    return row["training_consent"], row["training_consent_at"]


def test_nobody_has_consented_who_has_not_said_so(api: Client) -> None:
    assert consent(api) == (False, None)


def test_a_user_consents_and_takes_it_back(api: Client, neighbour: Client) -> None:
    given = rows(api.rpc("set_training_consent", {"consent": True}))
    agreed = consent(api)
    again = rows(api.rpc("set_training_consent", {"consent": True}))
    taken = rows(api.rpc("set_training_consent", {"consent": False}))

    assert given == again == {"outcome": "noted", "training_consent": True, "training_consent_at": agreed[1]}
    assert agreed[1]
    assert (taken["training_consent"], consent(api)) == (False, (False, taken["training_consent_at"]))
    assert taken["training_consent_at"] > agreed[1]
    assert consent(neighbour) == (False, None)


def test_consent_is_said_by_the_user_alone(api: Client, user_id: int) -> None:
    assert refusal(api.table("users").update({"training_consent": True}).eq("user_id", user_id)) == DENIED
    assert consent(api) == (False, None)


def test_the_gateway_writes_consent_down_with_its_time(service: Client, api: Client, user_id: int) -> None:
    service.table("users").update({"training_consent": True}).eq("user_id", user_id).execute()

    has_consented, since = consent(api)
    assert has_consented
    assert since


def test_a_caller_who_is_no_user_has_no_consent_to_give(database: psycopg.Connection) -> None:
    with database.transaction():
        database.execute("select set_config('request.jwt.claims', '{\"sub\": null}', true)")
        database.execute("set local role authenticated")
        told = database.execute("select public.set_training_consent(true)").fetchone()

    assert told == ({"outcome": "unknown"},)


def test_what_a_user_rated_before_counts_as_changed_when_he_consents(exports: Exports) -> None:
    user_id = exports.user(consents=False)
    rated, unrated = exports.ask(user_id), exports.ask(user_id, feedback=None)
    before = dict(exports.all("select id, changed_in::text from public.conversations"))
    assert exports.export() == []

    exports.all("update public.users set training_consent = true where user_id = %s", user_id)

    after = dict(exports.all("select id, changed_in::text from public.conversations"))
    assert int(after[rated]) > int(before[rated])
    assert after[unrated] == before[unrated]
    assert exports.export(incremental=True) == [rated]


def test_a_users_training_rows_go_when_he_takes_it_back(exports: Exports) -> None:
    ada, ben = exports.user(), exports.user()
    exports.ask(ada)
    kept = exports.ask(ben, "What is NOT?")
    exports.export()

    exports.all("update public.users set training_consent = false where user_id = %s", ada)

    assert exports.kept() == {kept: None}
    assert exports.export() == [kept]


def test_a_row_that_was_a_duplicate_of_his_is_kept_then(exports: Exports) -> None:
    ada, ben = exports.user(), exports.user()
    first, second = exports.ask(ben), exports.ask(ada)
    exports.export()
    assert exports.kept() == {first: "duplicate", second: None}

    exports.all("update public.users set training_consent = false where user_id = %s", ada)

    assert exports.kept() == {first: None}
    assert (exports.row(first)["votes"], exports.row(first)["duplicate_of"]) == (1, None)


@pytest.mark.parametrize("consents", [True, False])
def test_other_changes_of_a_user_change_nothing(exports: Exports, consents: bool) -> None:
    user_id = exports.user(consents)
    id = exports.ask(user_id)
    before = exports.one("select changed_in::text from public.conversations where id = %s", id)

    exports.all(
        "update public.users set training_consent = %s, created_at = now() where user_id = %s", consents, user_id
    )

    assert exports.one("select changed_in::text from public.conversations where id = %s", id) == before
