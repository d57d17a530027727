"""Why a search finds what it finds: what admins are told of the lists that it fuses."""

from typing import Any

import pytest
from supabase import Client

from tests.sql import DENIED, EAST, Shelf, padded, refusal
from tests.users import User

WORDS = "the marmalade ledger of $ZUB"
EVERYTHING: dict[str, Any] = {"match_threshold": -1, "match_count": 20}


@pytest.fixture
def three(shelf: Shelf) -> Shelf:
    """One near by meaning, one by its words, one by the name of a token."""
    shelf.put("a thing of the same direction", EAST)
    shelf.put("the marmalade ledger", (1, 1))
    shelf.put("what ZUB is", (1, 2), token_symbol="ZUB")
    return shelf


def explain(shelf: Shelf, api: Client, words: str | None, **arguments: Any) -> list[dict[str, Any]]:
    return shelf.search(api, words, function="explain_search", **EVERYTHING | arguments)


@pytest.mark.parametrize("who", ["admin", "service"])
def test_each_passage_has_its_place_in_the_lists_it_is_in(
    request: pytest.FixtureRequest, three: Shelf, who: str
) -> None:
    found = {row["content"]: row["ranks"] for row in explain(three, request.getfixturevalue(who), WORDS)}

    places = {
        content: {name: listed["rank"] for name, listed in ranks.items()} for content, ranks in sorted(found.items())
    }
    assert places == {
        "a thing of the same direction": {"meaning": 1},
        "the marmalade ledger": {"meaning": 2, "words": 1},
        "what ZUB is": {"meaning": 3, "words": 2, "names": 1},
    }
    assert found["a thing of the same direction"]["meaning"]["value"] == pytest.approx(1)
    assert found["the marmalade ledger"]["meaning"]["value"] == pytest.approx(0.5**0.5)
    assert found["the marmalade ledger"]["words"]["value"] >= found["what ZUB is"]["words"]["value"] > 0


def test_what_the_lists_add_is_the_score(admin: Client, three: Shelf) -> None:
    for row in explain(three, admin, WORDS):
        assert sum(listed["share"] for listed in row["ranks"].values()) == pytest.approx(row["score"])


@pytest.mark.parametrize("words", [None, WORDS, "nothing that is written"])
@pytest.mark.parametrize(
    "arguments", [{}, {"match_count": 1}, {"match_threshold": 0.9}, {"filter_token_symbol": "$zub"}]
)
def test_explained_or_not_a_search_finds_the_same(
    admin: Client, three: Shelf, words: str | None, arguments: dict[str, Any]
) -> None:
    explained = explain(three, admin, words, **arguments)
    plain = three.search(admin, words, **EVERYTHING | arguments)

    assert [row.pop("ranks") for row in explained] != []
    assert explained == [{name: row[name] for name in explained[0]} for row in plain]


def test_without_words_there_is_the_meaning_alone(admin: Client, three: Shelf) -> None:
    assert [set(row["ranks"]) for row in explain(three, admin, None)] == [{"meaning"}] * 3


def test_users_are_not_told(outsider: Client, three: Shelf) -> None:
    call = outsider.rpc(
        "explain_search", {"query_embedding": padded(*EAST), "query_text": WORDS, "model": three.model, **EVERYTHING}
    )

    assert refusal(call) == DENIED


def test_an_admin_is_told_of_no_users_private_passage(
    owner: User, admin: Client, service: Client, three: Shelf
) -> None:
    three.put("the marmalade ledger of an owner", EAST, owner_id=owner.user_id)

    for api in (admin, service):
        assert "the marmalade ledger of an owner" not in [row["content"] for row in explain(three, api, WORDS)]
