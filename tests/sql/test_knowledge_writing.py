"""Documents into the knowledge over PostgREST: whole or not at all, what is there stays, and writers at once agree."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from postgrest import APIError
from psycopg.types.json import Jsonb
from supabase import Client

from infra.local.stack import Stack
from tests.sql import ANSWER, EAST, NORTH, Shelf, close_turn, open_turn, padded, refusal, rows
from tests.users import User

Passage = dict[str, Any]
NO_USER = 2**62


def passage(content: str, vector: Sequence[float] | None = EAST) -> Passage:
    """A passage as it is put; without a vector one that is stored already must be its own."""
    given = {"content": content, "title": None, "content_hash": f"hash of {content}"}
    return given if vector is None else {**given, "embedding": str(padded(*vector))}


def document(id: str, *passages: Passage, **fields: Any) -> dict[str, Any]:
    hashes = [passage["content_hash"] for passage in passages]
    return {"id": id, "content_hash": str([fields, hashes]), "passages": list(passages), **fields}


def put(api: Client, shelf: Shelf, *documents: dict[str, Any]) -> list[dict[str, Any]]:
    outcomes: list[dict[str, Any]] = rows(
        api.rpc("put_documents", {"documents": list(documents), "model": shelf.model})
    )
    return outcomes


def stored(shelf: Shelf, id: str) -> list[tuple[int, str]]:
    """Ids and texts of the document's passages, in its order."""
    return shelf.database.execute(
        "select id, content from public.finance_knowledge where document_id = %s order by position", [id]
    ).fetchall()


@pytest.mark.parametrize("writer", ["admin", "service"])
def test_a_document_is_created_changed_and_left_alone(
    request: pytest.FixtureRequest, shelf: Shelf, writer: str
) -> None:
    api: Client = request.getfixturevalue(writer)
    id = shelf.model
    [created] = put(api, shelf, document(id, passage("one"), passage("two"), category="a"))
    before = dict((content, number) for number, content in stored(shelf, id))
    [unchanged] = put(api, shelf, document(id, passage("one"), passage("two"), category="a"))
    [updated] = put(api, shelf, document(id, passage("three"), passage("one", None), category="b"))

    outcome = {"id": id, "passages": 2}
    assert created == {**outcome, "outcome": "created", "written": 2}
    assert unchanged == {**outcome, "outcome": "unchanged", "written": 0}
    assert updated == {**outcome, "outcome": "updated", "written": 1}
    assert [content for _, content in stored(shelf, id)] == ["three", "one"]
    assert dict((content, number) for number, content in stored(shelf, id))["one"] == before["one"]
    assert {row["category"] for row in shelf.search(api, match_count=9)} == {"b"}


def test_a_text_that_is_stored_lends_its_vector_to_another_document(service: Client, shelf: Shelf) -> None:
    put(service, shelf, document(f"{shelf.model}-1", passage("same", (0.6, 0.8))))

    [outcome] = put(service, shelf, document(f"{shelf.model}-2", passage("same", None)))

    assert outcome["outcome"] == "created"
    similarities = [row["similarity"] for row in shelf.search(service, match_threshold=-1)]
    assert similarities == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (document("", passage("new")), "documents_id_check"),
        (document("bad", passage("")), "finance_knowledge_content_check"),
        (document("bad", passage("new"), passage("never embedded", None)), 'column "embedding"'),
        (document("bad", passage("new", [float("nan")])), "NaN not allowed"),
        (document("bad", {**passage("new"), "embedding": "[1,2,3]"}), "expected 1536 dimensions"),
        (document("bad", passage("new"), owner_id=NO_USER), "owner_id"),
        (document("bad", passage("new"), metadata="words"), "metadata"),
    ],
    ids=["no id", "empty", "no vector", "NaN", "three dimensions", "no user", "no metadata"],
)
def test_a_document_that_cannot_be_written_is_as_it_was_and_fails_no_other(
    service: Client, shelf: Shelf, bad: dict[str, Any], why: str
) -> None:
    kept, other = f"{shelf.model}-kept", f"{shelf.model}-other"
    put(service, shelf, document(kept, passage("old")))
    before = stored(shelf, kept)
    bad = {**bad, "id": bad["id"] and kept}

    outcomes = put(service, shelf, bad, document(other, passage("well")))

    assert [outcome["outcome"] for outcome in outcomes] == ["failed", "created"]
    assert why in outcomes[0]["error"]
    assert stored(shelf, kept) == before
    assert [content for _, content in stored(shelf, other)] == ["well"]


@pytest.mark.parametrize("documents", [{}, "words", [5], [{"id": "x"}], [[]]], ids=str)
def test_what_are_no_documents_is_refused(service: Client, shelf: Shelf, documents: Any) -> None:
    call = service.rpc("put_documents", {"documents": documents, "model": shelf.model})
    try:
        outcomes = rows(call)
    except APIError as error:
        assert (error.code or "")[:2] == "22"
    else:
        assert [outcome["outcome"] for outcome in outcomes] == ["failed"]


def test_a_change_of_owner_is_seen_at_once(
    service: Client, owner: User, owners_api: Client, outsider: Client, shelf: Shelf
) -> None:
    put(service, shelf, document(shelf.model, passage("mine")))
    assert shelf.contents(outsider) == ["mine"]

    put(service, shelf, document(shelf.model, passage("mine", None), owner_id=owner.user_id))

    assert (shelf.contents(outsider), shelf.contents(owners_api)) == ([], ["mine"])


def test_the_first_to_be_put_makes_its_model_the_one_in_use(database: psycopg.Connection) -> None:
    call = "select public.put_documents(%s, %s)"
    with database.transaction(force_rollback=True):
        database.execute("truncate public.documents, public.finance_knowledge, private.knowledge_base")

        database.execute(call, [Jsonb([document("bad", passage("never embedded", None))]), "a failing one"])
        database.execute(call, [Jsonb([document("first", passage("first"))]), "the first"])
        database.execute(call, [Jsonb([document("second", passage("second"))]), "the second"])

        assert database.execute("select private.current_embedding_model()").fetchone() == ("the first",)


def test_writers_at_once_wait_for_each_other_in_no_circle(service: Client, shelf: Shelf) -> None:
    ids = [f"{shelf.model}-{number}" for number in range(6)]

    def write(turn: int) -> list[str]:
        order = ids if turn % 2 else ids[::-1]
        documents = [document(id, passage(f"{id} of {turn}", NORTH), passage(f"{id} shared")) for id in order]
        outcomes = put(service, shelf, *documents)
        if turn % 3 == 0:
            service.table("documents").delete().eq("id", ids[turn % 6]).execute()
        return [outcome["outcome"] for outcome in outcomes]

    with ThreadPoolExecutor(8) as pool:
        outcomes = [outcome for written in pool.map(write, range(16)) for outcome in written]
    put(service, shelf, *(document(id, passage(f"{id} at last"), passage(f"{id} shared")) for id in ids))

    assert "failed" not in outcomes
    for id in ids:
        assert [content for _, content in stored(shelf, id)] == [f"{id} at last", f"{id} shared"]


def test_a_change_leaves_alone_what_it_does_not_change(service: Client, shelf: Shelf) -> None:
    places = "select ctid from public.finance_knowledge where document_id = %s and content = 'one'"
    put(service, shelf, document(shelf.model, passage("one"), metadata={"reviewed": None}))
    before = shelf.database.execute(places, [shelf.model]).fetchall()

    put(service, shelf, document(shelf.model, passage("one", None), passage("two"), metadata={"reviewed": None}))

    [metadata] = {str(row["metadata"]) for row in shelf.search(service)}
    assert shelf.database.execute(places, [shelf.model]).fetchall() == before
    assert metadata == "{'reviewed': None}"


def test_staged_vectors_are_found_by_nobody_until_their_document_is_whole(service: Client, shelf: Shelf) -> None:
    hashes = [passage(content)["content_hash"] for content in ("one", "two")]
    staged = {"vectors": {hashes[0]: str(padded(*EAST))}, "model": shelf.model}

    for _ in range(2):
        rows(service.rpc("stage_embeddings", staged))
    missing = rows(service.rpc("missing_passages", {"hashes": hashes, "model": shelf.model}))
    before = shelf.contents(service)
    [outcome] = put(service, shelf, document(shelf.model, passage("one", None), passage("two")))

    left = shelf.database.execute(
        "select from private.staged_embeddings where embedding_model = %s", [shelf.model]
    ).fetchall()
    assert (missing, before, left) == ([hashes[1]], [], [])
    assert (outcome["outcome"], set(shelf.contents(service))) == ("created", {"one", "two"})


def test_a_document_changed_past_the_gateway_tells_its_passages_and_can_be_put_back(
    service: Client, owner: User, outsider: Client, owners_api: Client, shelf: Shelf
) -> None:
    given = document(shelf.model, passage("mine"), category="a")
    put(service, shelf, given)

    rows(service.table("documents").update({"owner_id": owner.user_id, "category": "b"}).eq("id", shelf.model))
    found = (shelf.contents(outsider), shelf.contents(owners_api, filter_category="b"))
    [back] = put(service, shelf, given)

    assert found == ([], ["mine"])
    assert back["outcome"] == "updated"
    assert shelf.contents(outsider, filter_category="a") == ["mine"]


def test_the_guides_rows_may_say_the_same_twice(service: Client, shelf: Shelf) -> None:
    row = {"content": "A meme coin.", "embedding": padded(*EAST), "embedding_model": shelf.model}

    for symbol in ("DOGE", "PEPE", "PEPE"):
        rows(service.table("finance_embeddings").insert({**row, "token_symbol": symbol}))

    assert [row["token_symbol"] for row in shelf.search(service)] == ["DOGE", "PEPE", "PEPE"]


def test_metadata_is_an_object(shelf: Shelf) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        shelf.put("A coin.", metadata='["a"]')


@pytest.mark.usefixtures("no_model_in_use")
def test_a_document_beside_rows_of_another_model_does_not_change_the_one_in_use(service: Client, shelf: Shelf) -> None:
    shelf.put("the guide's", embedding_model="text-embedding-ada-002", content_hash=shelf.model)

    put(service, shelf, document(shelf.model, passage("ours")))

    models = rows(service.rpc("list_embedding_models", {}))
    shelf.database.execute("delete from public.finance_knowledge where content_hash = %s", [shelf.model])
    assert [row["model"] for row in models if row["is_current"]] == ["text-embedding-ada-002"]


@pytest.mark.usefixtures("no_model_in_use")
@pytest.mark.parametrize(
    "change",
    [
        "delete from public.finance_embeddings where id = %s",
        "update public.finance_embeddings set content = 'another text' where id = %s",
        "update public.finance_knowledge set owner_id = %s where id = %s",
    ],
    ids=["delete", "text", "owner"],
)
def test_what_changes_in_the_model_in_use_takes_its_like_of_others_along(
    service: Client, owner: User, shelf: Shelf, change: str
) -> None:
    other = f"{shelf.model}-2"
    rows(service.rpc("use_embedding_model", {"model": shelf.model}))
    kept, changed = shelf.put("kept"), shelf.put("a text")
    vectors = [{"id": id, "embedding": str(padded(*EAST))} for id in (kept, changed)]
    added = [rows(service.rpc("add_embeddings", {"model": other, "vectors": vectors})) for _ in range(2)]

    values = [owner.user_id, changed] if "owner_id" in change else [changed]
    shelf.database.execute(change.encode(), values)

    lacking = rows(service.rpc("list_passages_to_embed", {"model": other, "of_model": shelf.model}))
    assert added == [2, 0]
    assert [row["content"] for row in shelf.search(service, model=other)] == ["kept"]
    assert [row["id"] for row in lacking] == ([] if "delete" in change else [changed])


@pytest.mark.usefixtures("no_model_in_use")
def test_dropping_a_model_leaves_the_one_in_use(service: Client, shelf: Shelf) -> None:
    rows(service.rpc("use_embedding_model", {"model": shelf.model}))
    stored = [shelf.put(f"text {number}") for number in range(5)]
    vectors = [{"id": id, "embedding": str(padded(*EAST))} for id in stored]
    rows(service.rpc("add_embeddings", {"model": f"{shelf.model}-2", "vectors": vectors}))

    counts = [rows(service.rpc("drop_embeddings", {"model": f"{shelf.model}-2", "row_count": 3})) for _ in range(3)]
    refused = rows(service.rpc("drop_embeddings", {"model": shelf.model}))

    assert (counts, refused) == ([3, 2, 0], 0)
    assert len(shelf.search(service, match_threshold=-1)) == 5


def test_embeddings_are_added_to_passages_as_the_writer_before_left_them(
    stack: Stack, service: Client, owner: User, outsider: Client, shelf: Shelf
) -> None:
    put(service, shelf, document(shelf.model, passage("mine"), passage("gone")))
    vectors = [{"id": id, "embedding": str(padded(*EAST))} for id, _ in stored(shelf, shelf.model)]
    arguments = {"model": f"{shelf.model}-2", "vectors": vectors}

    with ThreadPoolExecutor(1) as pool, psycopg.connect(stack.database_url) as writer:
        changed = [document(shelf.model, passage("mine", None), owner_id=owner.user_id)]
        writer.execute("select public.put_documents(%s, %s)", [Jsonb(changed), shelf.model])
        adding = pool.submit(lambda: rows(service.rpc("add_embeddings", arguments)))
        wait_until_queued(shelf.database)
        writer.commit()
        added = adding.result()

    assert added == 1
    assert shelf.search(outsider, model=f"{shelf.model}-2", match_threshold=-1) == []


def test_who_may_write_nothing_waits_for_no_writer(stack: Stack, outsider: Client, shelf: Shelf) -> None:
    with psycopg.connect(stack.database_url) as writer:
        writer.execute("select private.queue_as_writer()")

        assert rows(outsider.table("documents").delete().eq("id", shelf.model)) == []
        assert refusal(outsider.rpc("put_documents", {"documents": [{"passages": 5}], "model": "any"})) == "42501"
        assert refusal(outsider.rpc("add_embeddings", {"vectors": [], "model": "any"})) == "42501"


@pytest.mark.usefixtures("no_model_in_use")
def test_a_conversations_sources_outlive_the_model_that_found_them(
    service: Client, owners_api: Client, shelf: Shelf
) -> None:
    rows(service.rpc("use_embedding_model", {"model": shelf.model}))
    first = shelf.put("a source")
    [hash] = {row["content_hash"] for row in shelf.search(service, match_threshold=-1)}
    turn = open_turn(owners_api, request_key=shelf.model)
    used = [{"id": first, "similarity": 0.9, "content_hash": hash}]
    close_turn(service, turn, idempotency_key=shelf.model, context_used=used)
    vectors = [{"id": first, "embedding": str(padded(*EAST))}]
    rows(service.rpc("add_embeddings", {"model": f"{shelf.model}-2", "vectors": vectors}))
    rows(service.rpc("use_embedding_model", {"model": f"{shelf.model}-2"}))
    rows(service.rpc("drop_embeddings", {"model": shelf.model}))

    replayed = open_turn(owners_api, request_key=shelf.model)["conversation"]

    assert replayed["response"] == ANSWER
    assert [(source["content"], source["similarity"]) for source in replayed["sources"]] == [("a source", 0.9)]


def wait_until_queued(database: psycopg.Connection) -> None:
    """Until somebody waits for the writers' lock."""
    for _ in range(200):
        if database.execute("select from pg_locks where locktype = 'advisory' and not granted").fetchall():
            return
        time.sleep(0.02)
    raise AssertionError("nobody queued")
