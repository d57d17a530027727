"""The search for passages over PostgREST: what is near, whose it is, and what bounds it."""

from typing import Any

import httpx
import psycopg
import pytest
from supabase import Client

from infra.local.stack import Stack
from tests.sql import DENIED, EAST, Shelf, padded, refusal, rows
from tests.users import User

FUNCTIONS = ["search_finance_knowledge", "match_finance_knowledge", "match_finance_embeddings"]
# Two spellings of one account: the same hash, as bounceable and as not.
ACCOUNT = "EQAtcRZCtyawRAFifKn7rDL1yFMPsZA8xNsCJYcXkhpIgYD0"
ACCOUNT_AGAIN = "UQAtcRZCtyawRAFifKn7rDL1yFMPsZA8xNsCJYcXkhpIgd0x"
GUIDES_METADATA = {"type": "token_info", "source": "whatswap"}
EVERYTHING: dict[str, Any] = {"match_threshold": -1, "match_count": 100}


@pytest.fixture
def three(shelf: Shelf) -> Shelf:
    """The same direction as the question's, one half as like, one not at all; and another model's."""
    for content, vector in [("same", (1, 0)), ("near", (1, 1)), ("far", (0, 1))]:
        shelf.put(content, vector, token_symbol="TON")
    shelf.put("other", embedding_model=f"{shelf.model}-2", vector=(1, 0))
    return shelf


@pytest.mark.parametrize("function", FUNCTIONS)
def test_anybody_finds_the_nearest_passages_of_one_model(
    visitor: Client, outsider: Client, admin: Client, service: Client, three: Shelf, function: str
) -> None:
    for api in (visitor, outsider, admin, service):
        found = three.search(api, function=function)

        assert [row["content"] for row in found] == ["same", "near"]
        assert [row["similarity"] for row in found] == pytest.approx([1, 0.5**0.5])
        assert [row["token_symbol"] for row in found] == ["TON", "TON"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_owner_finds_his_own_passage_by_meaning_and_by_words(
    owner: User, owners_api: Client, shelf: Shelf, function: str
) -> None:
    shelf.put("near to the question", EAST, owner_id=owner.user_id)
    shelf.put("the marmalade ledger", owner_id=owner.user_id)
    shelf.put("public and far", EAST)

    found = shelf.contents(owners_api, "marmalade ledger", function=function)

    assert sorted(found) == ["near to the question", "public and far", "the marmalade ledger"]


def test_a_passage_that_is_found_says_whether_it_is_private(owner: User, owners_api: Client, shelf: Shelf) -> None:
    own = shelf.put("mine", EAST, owner_id=owner.user_id)
    public = shelf.put("everybody's", EAST)

    found = {row["id"]: row["is_private"] for row in shelf.search(owners_api)}

    assert found == {own: True, public: False}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nobody_else_finds_it(
    owner: User, visitor: Client, outsider: Client, admin: Client, service: Client, shelf: Shelf, function: str
) -> None:
    shelf.put("the marmalade ledger", EAST, owner_id=owner.user_id, token_symbol="MINE")
    shelf.put("public", EAST)

    for api in (visitor, outsider, admin, service):
        for words in (None, "marmalade ledger $MINE"):
            assert shelf.contents(api, words, function=function, **EVERYTHING) == ["public"]
        assert shelf.contents(api, filter_token_symbol="MINE", function=function, **EVERYTHING) == []


@pytest.mark.parametrize(
    ("bounds", "contents"),
    [
        ({"match_threshold": -1}, ["same", "near", "far"]),
        ({"match_threshold": 0.9}, ["same"]),
        ({"match_threshold": 1}, []),
        ({"match_threshold": None}, []),
        ({"match_count": 1}, ["same"]),
        ({"match_count": 0}, []),
        ({"match_count": -1}, []),
    ],
)
def test_threshold_and_count_bound_what_is_found(
    outsider: Client, three: Shelf, bounds: dict[str, Any], contents: list[str]
) -> None:
    assert three.contents(outsider, function="match_finance_embeddings", **bounds) == contents


@pytest.mark.parametrize("count", [None, 101, 2**31 - 1])
def test_a_search_gives_a_hundred_at_most(
    outsider: Client, database: psycopg.Connection, shelf: Shelf, count: int | None
) -> None:
    database.execute(
        "insert into public.finance_knowledge (content, embedding, embedding_model)"
        " select 'passage ' || n, %s, %s from generate_series(1, 105) as n",
        [str(padded(*EAST)), shelf.model],
    )

    assert len(shelf.search(outsider, match_count=count)) == 100
    assert len(shelf.search(outsider, "passage", match_count=count)) == 100


@pytest.mark.parametrize("count", [2**31, 1.5, "many"])
def test_a_count_that_is_no_number_of_passages_is_refused(outsider: Client, shelf: Shelf, count: Any) -> None:
    arguments = {"query_embedding": padded(*EAST), "match_count": count}

    assert refusal(outsider.rpc("search_finance_knowledge", arguments)) in {"22P02", "22003"}


@pytest.mark.parametrize("words", [None, "the lemon contract"])
@pytest.mark.parametrize(("symbol", "address"), [("LMN", ACCOUNT), ("$lmn", ACCOUNT_AGAIN)])
def test_a_filter_leaves_what_it_names(
    outsider: Client, shelf: Shelf, symbol: str, address: str, words: str | None
) -> None:
    shelf.put("the lemon contract", EAST, token_symbol=symbol, token_address=address, category="fruit")
    shelf.put("a lemon contract of another", EAST, token_symbol="LIME", token_address="0:" + "1" * 64, category="Fruit")
    shelf.put("any lemon contract", EAST)

    symbols = [{"filter_token_symbol": written} for written in ("LMN", "lmn", "$lmn")]
    accounts = [{"filter_token_address": written} for written in (ACCOUNT, ACCOUNT_AGAIN)]
    categories = [{"filter_category": "fruit"}, {"filter_category": "fruit", **symbols[0], **accounts[0]}]
    for wanted in symbols + accounts + categories:
        assert shelf.contents(outsider, words, **wanted) == ["the lemon contract"]


@pytest.mark.parametrize("name", ["filter_token_symbol", "filter_token_address", "filter_category"])
def test_a_filter_that_names_nothing_leaves_nothing(outsider: Client, three: Shelf, name: str) -> None:
    assert three.contents(outsider, **{name: ""}) == three.contents(outsider, "same", **{name: "absent"}) == []


def test_scores_are_of_one_scale_and_the_best_comes_first(outsider: Client, shelf: Shelf) -> None:
    for place in range(12):
        shelf.put(f"kumquat number {place}", (1, place / 4))

    for words in (None, "kumquat", "kumquat number 7"):
        scores = [row["score"] for row in shelf.search(outsider, words, match_threshold=-1, match_count=12)]
        assert len(scores) == 12
        assert all(0 < score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)
    assert shelf.search(outsider)[0]["score"] == shelf.search(outsider, "kumquat 0")[0]["score"] == 1


def test_diversity_passes_over_twins(outsider: Client, shelf: Shelf) -> None:
    for name in ("one", "two", "three"):
        shelf.put(f"twin {name}", (1, 0.01))
    shelf.put("something else", (1, 0, 0.9))

    plain, diverse = (shelf.contents(outsider, match_count=2, diversity=share) for share in (0, 0.7))

    assert [content[:4] for content in plain] == ["twin", "twin"]
    assert diverse == [plain[0], "something else"]


@pytest.mark.parametrize("diversity", [-1, 0.3, 1, 1e308, None])
def test_diversity_leaves_out_nothing_there_is_room_for(outsider: Client, three: Shelf, diversity: Any) -> None:
    found = three.search(outsider, match_threshold=-1, diversity=diversity)

    assert sorted(row["content"] for row in found) == ["far", "near", "same"]
    assert found[0]["content"] == "same"
    assert three.search(outsider, match_threshold=2, diversity=diversity) == []


@pytest.mark.parametrize(
    "vector",
    [
        [],
        [1, 2, 3],
        padded(1) * 2,
        padded(1e30),
        padded(1e300),
        [None] * 1536,
        ["a"] * 1536,
        [padded(1)],
        "words",
        str([float("nan")] * 1536),
        str([float("inf")] * 1536),
        5,
        {"0": 1},
        True,
    ],
    ids=lambda vector: str(vector)[:20],
)
def test_what_is_no_vector_of_its_length_is_refused(stack: Stack, shelf: Shelf, vector: Any) -> None:
    shelf.put("same", EAST)
    arguments = {"query_embedding": vector, "query_text": "same", "model": shelf.model}

    answer = httpx.post(
        f"{stack.url}/rest/v1/rpc/search_finance_knowledge", json=arguments, headers={"apikey": stack.keys.publishable}
    )

    assert answer.status_code == 400


@pytest.mark.parametrize("vector", [padded(), None], ids=["zeros", "none"])
@pytest.mark.parametrize("words", [None, "same"])
def test_a_question_without_a_direction_finds_nothing(
    outsider: Client, three: Shelf, vector: list[float] | None, words: str | None
) -> None:
    assert three.search(outsider, words, query_embedding=vector, match_threshold=-1) == []


def test_a_passage_without_a_direction_is_not_found(outsider: Client, shelf: Shelf) -> None:
    shelf.put("pointless", ())

    assert shelf.contents(outsider, match_threshold=-1) == shelf.contents(outsider, "pointless") == []


@pytest.mark.parametrize("argument", ["query_text", "filter_category"])
def test_a_text_with_a_nul_in_it_is_refused(outsider: Client, argument: str) -> None:
    call = outsider.rpc("search_finance_knowledge", {"query_embedding": padded(*EAST), argument: "a\0b"})

    assert refusal(call) == "22021"


@pytest.mark.usefixtures("no_model_in_use")
@pytest.mark.parametrize("writer", ["admin", "service"])
@pytest.mark.parametrize("model", [None, "another"])
def test_the_guides_own_insert_and_calls_work(
    request: pytest.FixtureRequest, visitor: Client, shelf: Shelf, writer: str, model: str | None
) -> None:
    api: Client = request.getfixturevalue(writer)
    if model:
        rows(api.rpc("use_embedding_model", {"model": shelf.model}))
    passage = {"content": f"TON is a coin. {shelf.model}", "embedding": padded(0, 0, 1), "token_symbol": "TON"}

    [stored] = rows(api.table("finance_embeddings").insert({**passage, "metadata": GUIDES_METADATA}))
    calls: list[dict[str, Any]] = [{"match_threshold": 0.7, "match_count": 5}, {"match_count": 3}]
    found = [
        rows(visitor.rpc(f, {"query_embedding": padded(0, 0, 1), **call})) for f in FUNCTIONS[1:] for call in calls
    ]
    removed = rows(api.table("finance_embeddings").delete().eq("id", stored["id"]))

    match = {"id": stored["id"], "content": passage["content"], "similarity": 1, "token_symbol": "TON"}
    assert (stored["metadata"], stored["embedding_model"]) == (
        GUIDES_METADATA,
        (model and shelf.model) or "text-embedding-ada-002",
    )
    assert found == [[match]] * 4
    assert [row["id"] for row in removed] == [stored["id"]]


@pytest.mark.usefixtures("no_model_in_use")
def test_a_search_that_names_no_model_means_the_one_in_use(outsider: Client, service: Client, three: Shelf) -> None:
    before = three.contents(outsider, model=None)
    for model in (three.model, f"{three.model}-2"):
        rows(service.rpc("use_embedding_model", {"model": model}))
        found = [three.contents(outsider, words, model=None) for words in (None, "same other")]
        assert all(set(contents) == ({"same", "near"} if model == three.model else {"other"}) for contents in found)

    assert "same" not in before


@pytest.mark.parametrize("api", ["visitor", "outsider"])
def test_only_an_admin_says_which_model_is_in_use(request: pytest.FixtureRequest, shelf: Shelf, api: str) -> None:
    call = request.getfixturevalue(api).rpc("use_embedding_model", {"model": shelf.model})

    assert refusal(call) == DENIED
