"""Realtime's topics of users, asked as Realtime asks: whose may be heard, and whether anything opens them."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.types.json import Jsonb

from infra.local import subscriptions
from tests.sql import DENIED
from tests.users import User

OPEN_POLICIES = """
    create policy "the app lets everybody hear everything" on realtime.messages for select to anon, authenticated
        using (true);
    create policy "the app lets everybody send everything" on realtime.messages for insert to anon, authenticated
        with check (true);
"""


@pytest.fixture
def topics(database: psycopg.Connection, owner: User) -> Iterator[psycopg.Connection]:
    """A message on the owner's topic, one on another user's, and one on a topic of the app's own."""
    with database.transaction(force_rollback=True):
        database.execute("delete from realtime.messages")
        for topic in (f"user:{owner.user_id}", "user:0", f"user:{owner.auth_user_id}"):
            database.execute("insert into realtime.messages (topic, extension) values (%s, 'broadcast')", [topic])
        yield database
        database.execute("reset role")


def act_as(database: psycopg.Connection, user: User | None) -> None:
    claims = {"sub": user.auth_user_id, "role": "authenticated"} if user else {"role": "anon"}
    database.execute(subscriptions.ACT_AS, [Jsonb(claims)])


def heard(database: psycopg.Connection) -> set[str]:
    return {topic for (topic,) in database.execute("select topic from realtime.messages").fetchall()}


def refusal(database: psycopg.Connection, topic: str) -> str | None:
    """The code that sending to the topic is refused with; None where it isn't."""
    try:
        with database.transaction(force_rollback=True):
            database.execute("insert into realtime.messages (topic, extension) values (%s, 'broadcast')", [topic])
    except psycopg.Error as refused:
        return refused.sqlstate
    return None


def test_a_user_hears_his_own_topic_only(topics: psycopg.Connection, owner: User) -> None:
    act_as(topics, owner)

    assert heard(topics) == {f"user:{owner.user_id}"}


def test_a_user_hears_no_presence(topics: psycopg.Connection, owner: User) -> None:
    topics.execute("update realtime.messages set extension = 'presence'")

    act_as(topics, owner)

    assert heard(topics) == set()


def test_a_visitor_hears_and_sends_nothing(topics: psycopg.Connection) -> None:
    act_as(topics, None)

    assert heard(topics) == set()
    assert [refusal(topics, topic) for topic in ("user:0", "anything")] == [DENIED, DENIED]


def test_a_user_sends_nothing(topics: psycopg.Connection, owner: User) -> None:
    act_as(topics, owner)

    assert [refusal(topics, topic) for topic in (f"user:{owner.user_id}", "anything")] == [DENIED, DENIED]


def test_an_apps_open_policies_do_not_open_the_topics_of_users(topics: psycopg.Connection, owner: User) -> None:
    topics.execute(OPEN_POLICIES)

    act_as(topics, owner)
    as_owner = heard(topics), [refusal(topics, f"user:{owner.user_id}"), refusal(topics, "user:0")]
    topics.execute("reset role")
    act_as(topics, None)
    as_visitor = heard(topics), [refusal(topics, "user:0")]

    apps_own = f"user:{owner.auth_user_id}"
    assert as_owner == ({f"user:{owner.user_id}", apps_own}, [DENIED, DENIED])
    assert as_visitor == ({apps_own}, [DENIED])


def test_an_apps_own_topics_stay_as_open_as_it_wants_them(topics: psycopg.Connection, owner: User) -> None:
    topics.execute(OPEN_POLICIES)

    act_as(topics, None)

    assert [refusal(topics, topic) for topic in ("room", f"user:{owner.auth_user_id}")] == [None, None]
