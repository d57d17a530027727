"""Who may see and do what, over PostgREST directly: users, visitors, admins."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client, create_client

from infra.local.stack import Stack
from tests.sql import ANSWER, DENIED, QUESTION, Shelf, close_turn, open_turn, padded, put_export, refusal, rows
from tests.users import User

UNKNOWN_SCHEMA = "PGRST106"
UNKNOWN_FUNCTION = "PGRST202"
PERSONAL = [
    "users",
    "user_plans",
    "spending",
    "swap_history",
    "conversations",
    "threads",
    "open_turns",
    "model_calls",
]
# A column to find rows by, and a change that somebody might want to make.
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "users": ("user_id", {"auth_user_id": None}),
    "plans": ("name", {"tokens_per_day": None}),
    "user_plans": ("user_id", {"plan": "default"}),
    "spending": ("user_id", {"tokens": 0, "cost_usd": 0}),
    "model_calls": ("user_id", {"state": "settled", "reserved_tokens": 0}),
    "swap_history": ("id", {"amount": 1000}),
    "conversations": ("id", {"response": "Send me your seed phrase."}),
    "open_turns": ("conversation_id", {"expires_at": "2000-01-01T00:00:00Z"}),
    "training_data": ("id", {"output": "Send me your seed phrase."}),
    "model_metadata": ("id", {"is_active": True}),
    "model_history": ("id", {"version": "1"}),
    "training_exports": ("id", {"status": "ready"}),
    "training_export_parts": ("export_id", {"ids": []}),
}
KNOWLEDGE: dict[str, dict[str, Any]] = {
    "documents": {"title": "Send me your seed phrase."},
    "finance_knowledge": {"content": "Send me your seed phrase."},
    "finance_embeddings": {"content": "Send me your seed phrase."},
}
MODELS = ["training_data", "model_metadata", "model_history", "training_exports", "training_export_parts"]
ADMINS_CALLS = ["put_documents", "stage_embeddings", "add_embeddings", "use_embedding_model"]
TURN: dict[str, Any] = {"conversation_id": 1, "user_id": 1, "thread_id": str(uuid4()), "attempt": str(uuid4())}
WORK: dict[str, Any] = {"id": 1, "worker": str(uuid4())}
GATEWAYS_CALLS: dict[str, dict[str, Any]] = {
    "close_turn": {**TURN, "message": QUESTION, "response": ANSWER, "status": "complete"},
    "defer_turn": {**TURN, "message": QUESTION},
    "claim_turn": {"conversation_id": 1, "attempt": str(uuid4()), "claim_seconds": 60},
    "count_call": {"caller_key": "any", "calls_per_minute": 1},
    "open_call": {"call_id": str(uuid4()), "function": "any", "caller_key": "any", "calls_per_minute": 1},
    "close_call": {"call_id": str(uuid4()), "function": "any", "status": "complete"},
    "gateway_state": {},
    "note_provider": {"provider": "any", "has_failed": True, "failures_allowed": 1, "rest_seconds": 900},
    "read_answer": {"key": "any"},
    "keep_answer": {"key": "any", "answer": {"response": "Send me your seed phrase."}, "keep_seconds": 900},
    "open_job": {
        "attempt": str(uuid4()),
        "provider": "any",
        "model": "any",
        "work": {},
        "keep_seconds": 900,
    },
    "name_job": {"token": str(uuid4()), "job_id": "any"},
    "find_job": {"token": str(uuid4())},
    "register_model": {"model_name": "any"},
    "claim_transfer": {"id": 1, "worker": str(uuid4()), "lease_seconds": 900},
    "note_transfer": {"id": 1, "progress": {}},
    "finish_model": {"id": 1, "files": [], "sha256": "0" * 64, "size_bytes": 0, "storage_path": "any"},
    "fail_model": {"id": 1, "failure": "any"},
    "activate_model": {"model_name": "any", "version": "v1"},
    "activate_evaluated_model": {"model_name": "any", "version": "v1", "evaluated": {}},
    "note_hosting": {"model_name": "any", "version": "v1", "hosting": {}},
    "roll_back_model": {"model_name": "any"},
    "delete_model": {"model_name": "any", "version": "v1"},
    "record_decision": {"model_name": "any", "version": "v1", "action": "kept"},
    "canary_figures": {"model_name": "any"},
    "list_models": {},
    "begin_export": {"options": {}, "rules": "any"},
    "claim_export": {**WORK, "lease_seconds": 60},
    "read_export_conversations": {"id": 1, "shard": 1, "after": None, "page_rows": 1},
    "put_export_page": {
        **{**WORK, "shard": 1, "cursor": None, "done": True, "rows": [], "seen": 0},
        "lease_seconds": 60,
    },
    "select_export": WORK,
    "read_export_part": {"id": 1, "number": 0},
    "note_export": {**WORK, "progress": {}, "lease_seconds": 60},
    "finish_export": {**WORK, "files": [], "manifest": {}, "rows": 0},
    "fail_export": {**WORK, "failure": "any"},
    "release_export": WORK,
    "list_exports": {},
    "list_unfinished_exports": {},
    "read_export": {"id": 1},
    "erase_training_user": {"user_id": 1},
    "summarize_usage": {"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z", "bucket": "1 hour"},
}
CALLS: dict[str, dict[str, Any]] = {
    **GATEWAYS_CALLS,
    "open_turn": {"question": QUESTION},
    "read_conversation": {"conversation_id": 1},
    "describe_usage": {},
    "explain_search": {
        "query_embedding": padded(),
        "query_text": "any",
        "match_threshold": 0,
        "match_count": 1,
        "model": "any",
    },
    "list_documents": {},
    "list_embedding_models": {},
    "list_passages_to_embed": {"model": "any"},
    "missing_passages": {"hashes": ["any"], "model": "any"},
    "put_documents": {"documents": [], "model": "any"},
    "stage_embeddings": {"vectors": {}, "model": "any"},
    "drop_embeddings": {"model": "any"},
    "add_embeddings": {"model": "any", "vectors": []},
    "use_embedding_model": {"model": "any"},
    "set_training_consent": {"consent": True},
}
PRIVATE: dict[str, dict[str, Any]] = {
    "current_user_id": {},
    "create_user": {},
    "reserve_turn": {
        "caller_id": 1,
        "question": QUESTION,
        "thread": None,
        "request_key": None,
        "lease_seconds": 60,
        "turns_per_minute": 1000,
        "tokens": 0,
        "usd": 0,
    },
    "reserve_spending": {
        "call_id": str(uuid4()),
        "caller_id": 1,
        "function": "any",
        "conversation": None,
        "tokens": 0,
        "usd": 0,
        "lease_seconds": 60,
    },
    "add_spending": {"caller_id": 1, "spent_at": "2026-01-01", "requests": 0, "tokens": -1000, "usd": -1},
    "user_id_of": {"claimed_user_id": 1, "subject": None},
    "plan_of": {"caller_id": 1},
    "summarize_model_calls": {},
    "describe_conversation": {"conversation": {}},
    "note_model": {"model_name": "any", "version": "v1", "action": "kept"},
    "send_users": {"active_id": 1},
    "has_transfer": {"model_id": 1, "worker": None},
    "list_activations": {"model_name": "any"},
    "settle_groups": {"hashes": []},
    "put_conversations": {"rows": [], "changed_before": "1"},
    "put_written": {"rows": [], "changed_before": "1"},
    "mark_near_duplicates": {},
    "fix_parts": {"export": {}, "part_rows": 1},
    "rewrite_export": {"export_id": 1, "user_id": 1},
    "cancel_fine_tunes": {"export_ids": []},
    "replace_export": {"export": {}, "user_id": 1, "actor": None},
}


@dataclass(frozen=True, slots=True)
class Resident:
    """A user with rows of every personal kind: a plan, one closed turn, one open, one swap."""

    user: User
    api: Client
    conversation_id: int
    thread_id: str

    def key(self, relation: str) -> tuple[str, Any]:
        """The column that says whose a row is, and what it says of this user's."""
        return ("thread_id", self.thread_id) if relation == "threads" else ("user_id", self.user.user_id)


@pytest.fixture(scope="module")
def ada(stack: Stack, service: Client) -> Resident:
    return settle(stack, service)


@pytest.fixture(scope="module")
def ben(stack: Stack, service: Client) -> Resident:
    return settle(stack, service)


@pytest.fixture(scope="module")
def admin(admin: Client, service: Client, database: psycopg.Connection) -> Client:
    """The admin's client, with something to see in each of the admins' tables."""
    service.table("training_data").insert({"instruction": QUESTION, "output": ANSWER}).execute()
    service.rpc("register_model", {"model_name": uuid4().hex}).execute()
    part = {"export_id": put_export(database), "number": 0, "ids": [1], "conversation_ids": [1], "user_ids": [1]}
    service.table("training_export_parts").insert(part).execute()
    return admin


@pytest.fixture
def passage_id(shelf: Shelf, service: Client) -> int:
    """A public passage of a document."""
    row = {"id": shelf.model, "title": "Pears", "content_hash": "any"}
    service.table("documents").insert(row).execute()
    return shelf.put("Pears are fruit.", document_id=shelf.model)


def settle(stack: Stack, service: Client) -> Resident:
    user = User.sign_up(stack)
    api = user.client(stack)
    swap = {"user_id": user.user_id, "from_token": "TON", "to_token": "USDT", "amount": 1}
    service.table("swap_history").insert(swap).execute()
    service.table("user_plans").insert({"user_id": user.user_id, "plan": "default"}).execute()
    turn = open_turn(api)
    close_turn(service, turn)
    open_turn(api)
    return Resident(user, api, turn["conversation_id"], turn["thread_id"])


@pytest.mark.parametrize("relation", PERSONAL)
def test_a_user_sees_his_own_rows_and_no_others(ada: Resident, ben: Resident, relation: str) -> None:
    for one, other in ((ada, ben), (ben, ada)):
        seen = rows(one.api.table(relation).select("*"))
        sought = rows(one.api.table(relation).select("*").eq(*other.key(relation)))

        column, own = one.key(relation)
        assert {row[column] for row in seen} == {own}
        assert sought == []


def test_rows_joined_to_a_users_own_are_his_own_too(ada: Resident, ben: Resident) -> None:
    seen = rows(ada.api.table("users").select("user_id, conversations(user_id), swap_history(user_id)"))

    own = {"user_id": ada.user.user_id}
    assert seen == [{**own, "conversations": [own], "swap_history": [own]}]


def test_a_thread_with_anothers_id_shows_a_user_his_own_part_only(stack: Stack, ben: Resident, service: Client) -> None:
    eve = User.sign_up(stack).client(stack)
    close_turn(service, open_turn(eve, thread=ben.thread_id), message="Is this my thread?")

    [hers] = rows(eve.table("threads").select("*"))
    [his] = rows(ben.api.table("threads").select("*"))

    assert hers["thread_id"] == his["thread_id"]
    assert (hers["title"], hers["conversation_count"]) == ("Is this my thread?", 1)
    assert (his["title"], his["conversation_count"]) == (QUESTION, 1)


@pytest.mark.parametrize("verb", ["insert", "upsert", "update", "delete"])
@pytest.mark.parametrize("table", CHANGES)
def test_a_user_writes_no_table(ada: Resident, table: str, verb: str) -> None:
    column, change = CHANGES[table]
    query = ada.api.table(table)
    attempts = {
        "insert": lambda: query.insert(change),
        "upsert": lambda: query.upsert({column: ada.conversation_id, **change}),
        "update": lambda: query.update(change).gte(column, 0),
        "delete": lambda: query.delete().gte(column, 0),
    }

    assert refusal(attempts[verb]()) == DENIED


@pytest.mark.parametrize("table", KNOWLEDGE)
def test_only_an_admin_changes_knowledge(
    outsider: Client, visitor: Client, admin: Client, shelf: Shelf, passage_id: int, table: str
) -> None:
    change = KNOWLEDGE[table]
    row = {"id": shelf.model} if table == "documents" else {"id": passage_id}
    needed = {"content_hash": "any"} if table == "documents" else {"embedding": padded(1)}
    before = rows(outsider.table(table).select("*").eq("id", row["id"]))

    for api in (outsider, visitor):
        query = api.table(table)
        new = {**change, **needed} | ({"id": f"{shelf.model}-2"} if table == "documents" else {})
        assert refusal(query.insert(new)) == DENIED
        assert refusal(query.upsert({**row, **change, **needed})) == DENIED
    assert rows(outsider.table(table).update(change).eq("id", row["id"])) == []
    assert rows(outsider.table(table).delete().eq("id", row["id"])) == []
    assert refusal(visitor.table(table).update(change).eq("id", row["id"])) == DENIED
    assert refusal(visitor.table(table).delete().eq("id", row["id"])) == DENIED
    assert rows(outsider.table(table).select("*").eq("id", row["id"])) == before != []

    assert len(rows(admin.table(table).update(change).eq("id", row["id"]))) == 1
    assert len(rows(admin.table(table).delete().eq("id", row["id"]))) == 1


@pytest.mark.parametrize("table", KNOWLEDGE)
def test_private_knowledge_is_its_owners_and_the_admins_to_see(
    owner: User,
    owners_api: Client,
    outsider: Client,
    visitor: Client,
    admin: Client,
    service: Client,
    shelf: Shelf,
    table: str,
) -> None:
    row = {"id": shelf.model, "content_hash": "any", "owner_id": owner.user_id}
    service.table("documents").insert(row).execute()
    passage_id = shelf.put("My pears are my own.", document_id=shelf.model, owner_id=owner.user_id)
    id = shelf.model if table == "documents" else passage_id

    seen = [rows(api.table(table).select("id").eq("id", id)) for api in (owners_api, admin, outsider, visitor)]

    assert seen == [[{"id": id}], [{"id": id}], [], []]


@pytest.mark.parametrize("function", ADMINS_CALLS)
def test_only_an_admin_puts_and_moves_knowledge(outsider: Client, shelf: Shelf, function: str) -> None:
    stored = shelf.put("Pears are fruit.")
    arguments: dict[str, dict[str, Any]] = {
        "put_documents": {
            "documents": [{"id": shelf.model, "content_hash": "any", "passages": []}],
            "model": shelf.model,
        },
        "stage_embeddings": {"model": shelf.model, "vectors": {"any": str(padded(1))}},
        "add_embeddings": {"model": f"{shelf.model}-2", "vectors": [{"id": stored, "embedding": str(padded(1))}]},
        "use_embedding_model": {"model": shelf.model},
    }

    assert refusal(outsider.rpc(function, arguments[function])) == DENIED


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("message", "What is NOT?"),
        ("response", "Send me your seed phrase."),
        ("status", "failed"),
        ("context_used", []),
        ("model_version", "mine"),
        ("thread_id", "2f1f0cf7-3d3b-4d4e-8f0a-5b9a3a4f8f41"),
        ("user_id", 1),
        ("id", 1),
        ("created_at", "2000-01-01T00:00:00Z"),
    ],
)
def test_of_his_conversations_a_user_changes_nothing_but_the_feedback(ada: Resident, column: str, value: Any) -> None:
    own = ada.api.table("conversations").update({"feedback": 1, column: value}).eq("id", ada.conversation_id)

    assert refusal(own) == DENIED


@pytest.mark.parametrize("feedback", [-1, 0, 1, None])
def test_a_user_rates_his_own_conversation(ada: Resident, feedback: int | None) -> None:
    changed = rows(ada.api.table("conversations").update({"feedback": feedback}).eq("id", ada.conversation_id))

    assert [(row["id"], row["feedback"], row["response"]) for row in changed] == [
        (ada.conversation_id, feedback, ANSWER)
    ]


@pytest.mark.parametrize("feedback", [-2, 2])
def test_a_rating_is_one_of_three(ada: Resident, feedback: int) -> None:
    own = ada.api.table("conversations")
    own.update({"feedback": 1}).eq("id", ada.conversation_id).execute()

    assert refusal(own.update({"feedback": feedback}).eq("id", ada.conversation_id))

    assert rows(own.select("feedback")) == [{"feedback": 1}]


def test_a_user_rates_no_conversation_of_another(ada: Resident, ben: Resident) -> None:
    by_id = rows(ada.api.table("conversations").update({"feedback": -1}).eq("id", ben.conversation_id))
    of_all = rows(ada.api.table("conversations").update({"feedback": -1}).gte("id", 0))

    [kept] = rows(ben.api.table("conversations").select("feedback"))
    assert by_id == []
    assert [row["id"] for row in of_all] == [ada.conversation_id]
    assert kept == {"feedback": None}


@pytest.mark.parametrize("function", GATEWAYS_CALLS)
def test_what_the_gateway_calls_is_denied_to_users_and_admins(ada: Resident, admin: Client, function: str) -> None:
    arguments = GATEWAYS_CALLS[function]

    assert refusal(ada.api.rpc(function, arguments)) == DENIED
    assert refusal(admin.rpc(function, arguments)) == DENIED


def test_a_user_closes_no_turn_not_even_his_own(ada: Resident) -> None:
    turn = {"conversation_id": ada.conversation_id, "user_id": ada.user.user_id, "thread_id": ada.thread_id}

    assert refusal(ada.api.rpc("close_turn", CALLS["close_turn"] | turn)) == DENIED


@pytest.mark.parametrize("function", PRIVATE)
def test_what_is_private_cannot_be_called(ada: Resident, service: Client, function: str) -> None:
    arguments = PRIVATE[function]

    assert refusal(ada.api.schema("private").rpc(function, arguments)) == UNKNOWN_SCHEMA
    assert refusal(service.schema("private").rpc(function, arguments)) == UNKNOWN_SCHEMA
    assert refusal(ada.api.rpc(function, arguments)) == UNKNOWN_FUNCTION


def test_other_schemas_are_not_served(ada: Resident) -> None:
    assert refusal(ada.api.schema("auth").table("users").select("*")) == UNKNOWN_SCHEMA


@pytest.mark.parametrize("relation", [*CHANGES, "threads", "model_usage"])
def test_a_visitor_sees_nothing(visitor: Client, ada: Resident, relation: str) -> None:
    assert refusal(visitor.table(relation).select("*")) == DENIED


@pytest.mark.parametrize("function", CALLS)
def test_a_visitor_calls_nothing(visitor: Client, function: str) -> None:
    assert refusal(visitor.rpc(function, CALLS[function])) == DENIED


@pytest.mark.parametrize("table", MODELS)
def test_only_an_admin_sees_what_models_are_made_of(admin: Client, ada: Resident, table: str) -> None:
    column = "export_id" if table == "training_export_parts" else "*"  # lite reads no array with a null in it
    seen_by_admin, seen_by_user = (rows(api.table(table).select(column)) for api in (admin, ada.api))

    assert seen_by_admin
    assert seen_by_user == []


@pytest.mark.parametrize("relation", sorted({*PERSONAL} - {"users"}))
def test_an_admin_sees_no_conversation_of_a_user_and_no_spending(admin: Client, ada: Resident, relation: str) -> None:
    assert rows(ada.api.table(relation).select("*")) != []
    assert rows(admin.table(relation).select("*")) == []


def test_a_user_cannot_make_himself_an_admin(stack: Stack, admin: Client) -> None:
    wanted = {"role": "admin", "app_metadata": {"role": "admin"}}
    api = create_client(stack.url, stack.keys.publishable)
    account = {"email": f"{uuid4().hex}@example.com", "password": uuid4().hex}

    api.auth.sign_up({**account, "options": {"data": wanted}})  # type: ignore[arg-type]
    seen_at_sign_up = rows(api.table("training_data").select("*"))
    api.auth.update_user({"data": wanted, "app_metadata": wanted})  # type: ignore[typeddict-unknown-key]
    api.auth.refresh_session()
    seen_later = rows(api.table("training_data").select("*"))

    session = api.auth.get_session()
    assert session
    assert session.user.user_metadata["role"] == "admin"
    assert (seen_at_sign_up, seen_later) == ([], [])
