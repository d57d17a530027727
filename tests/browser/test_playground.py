"""The page in a browser: signing in, an answer that types itself, its sources, and all that can go wrong meanwhile."""

import asyncio
import os
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from infra.local import parts, playground, ports
from infra.local.stack import Stack
from tests.browser.pages import SIZES, Browser, Tab, browser
from tests.commands import load_knowledge
from tests.functions.anybody import learned, streams
from tests.functions.test_deferred import queue_of
from tests.infra import running
from tests.stand_ins import Model, serving
from tests.users import User

pytestmark = pytest.mark.timeout(240)  # the first one brings the stack, and the browser where there is none
PASSWORD = "correct horse battery"
PIECES = ["TON is ", "the native coin ", "of The Open Network."]
ATTACK = '<script>window.ran = 1</script><img src=x onerror="window.ran = 1"><svg/onload="window.ran = 1">'
FULL = """**TON (Toncoin)** is the native cryptocurrency of The Open Network blockchain [1]. It is used for

- paying *transaction*, computation and storage fees,
- staking by the validators that secure the network,
- services such as TON DNS names [2].

The docs at https://docs.example.org say more.
"""


@dataclass(slots=True)
class Gated(Model):
    """A model that says of [gated] questions one piece each time the test lets it."""

    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    async def _chunks(self, question: str, pieces: list[str]) -> AsyncIterator[str]:
        async for chunk in Model._chunks(self, question, pieces):
            if "[gated]" in question:
                while not self.gate.acquire(blocking=False):  # noqa: ASYNC110  # the test's own thread lets it go
                    await asyncio.sleep(0.01)
            yield chunk


@pytest.fixture(scope="module")
def served_model() -> Iterator[Gated]:
    stand_in = Gated()
    stand_in.raw["[full]"] = streams(*FULL.splitlines(keepends=True))
    stand_in.raw["[attack]"] = streams("It says ", ATTACK, " and [a link](javascript:window.ran=1).")
    with serving(stand_in.app()) as stand_in.url:
        yield stand_in


@pytest.fixture
def model(served_model: Gated) -> Iterator[Gated]:
    """The model, whose gate is shut."""
    served_model.gate = threading.Semaphore(0)
    yield served_model
    served_model.gate.release(100)  # nobody is left waiting


@pytest.fixture(scope="module")
def site(stack: Stack, served_model: Gated) -> Iterator[str]:
    """The page's origin: a gateway of its own, and behind it functions and a worker that ask the stand-in."""
    load_knowledge(stack.environment)
    with queue_of(stack) as queue:
        asked = {"MODEL_BASE_URL": f"{served_model.url}/v1", "MODEL_NAME": "stand-in", "QUEUE_URL": queue.url}
        asked["PROMPT_TOKENS"] = "3000"
        with stack.functions(**asked) as functions, stack.worker(**asked), gateway(stack, functions) as url:
            yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running_browser:
        yield running_browser


@pytest.fixture
def user(stack: Stack) -> User:
    return User.sign_up(stack)


@pytest.fixture
def tab(chromium: Browser, site: str, user: User) -> Iterator[Tab]:
    """A tab in which the user is signed in."""
    with chromium.tab(site) as opened:
        sign_in(opened, user)
        yield opened


def test_signs_up_and_sees_an_answer_piece_by_piece(chromium: Browser, site: str, stack: Stack, model: Gated) -> None:
    email = f"{uuid.uuid4().hex}@example.com"
    with chromium.tab(site) as tab:
        tab.click("text=Create an account")
        tab.fill("[name=email]", email)
        tab.fill("[name=password]", PASSWORD)
        tab.press("Enter")
        tab.sees(".welcome")
        ask(tab, "What is TON token? [gated]")

        for number in range(len(PIECES)):
            model.gate.release()
            said = "".join(PIECES[: number + 1]).strip()
            tab.until(f"document.querySelector('.answer-text').textContent.trim() === {said!r}")
            assert tab.sees("[title='Stop the answer']") == ""
        model.gate.release(10)

        tab.sees(".answer-actions")
        assert tab.evaluate("document.querySelector('[aria-live=polite]:not(#toasts)').textContent") == (
            "Answer: " + "".join(PIECES)
        )
    with psycopg.connect(stack.database_url) as connection:
        asked = "select status from public.conversations where message = %s and user_id = (select user_id"
        asked += " from public.users join auth.users as auth on auth_user_id = auth.id where auth.email = %s)"
        assert connection.execute(asked, ["What is TON token? [gated]", email]).fetchall() == [("complete",)]


def test_a_citation_opens_its_source_with_the_words_that_were_taken(tab: Tab) -> None:
    ask(tab, "What is TON token? [full]")
    tab.click(".citation >> nth=0")

    assert "What TON token (Toncoin) is" in tab.sees(".passage.pointed h3")
    assert "% similar" in tab.sees(".passage.pointed .similarity")
    marked = tab.evaluate("[...document.querySelectorAll('.passage.pointed mark')].map((mark) => mark.textContent)")
    assert "TON (Toncoin) is the native cryptocurrency of The Open Network blockchain" in marked

    tab.press("Escape")
    tab.until("!document.querySelector('dialog.sources').open")
    assert tab.evaluate("document.activeElement.className") == "citation"


def test_warns_of_a_link_that_stands_in_no_source(tab: Tab) -> None:
    ask(tab, "What is TON token? [full]")

    assert "docs.example.org" in tab.sees(".answer .notice")


def test_a_thumb_is_kept_and_taken_back(tab: Tab, stack: Stack, user: User) -> None:
    ask(tab, "What is TON token?")
    tab.click("[title='Good answer']")
    tab.until("document.activeElement.getAttribute('aria-pressed') === 'true'")
    eventually(lambda: conversations(stack, user, "feedback") == [(1,)])

    tab.click("[title='Good answer']")
    eventually(lambda: conversations(stack, user, "feedback") == [(0,)])


def test_another_tab_gets_the_answer(tab: Tab) -> None:
    ask(tab, "What is TON token?")
    tab.until("location.hash.length > 10")
    other = tab.another(tab.evaluate("location.hash"))
    other.sees(".answer-actions")
    elsewhere = tab.another("#/swaps")
    elsewhere.sees(".thread")
    joined(other, elsewhere)

    ask(tab, "And what are its fees?")

    assert "native coin" in other.sees(".turn:nth-child(2) .answer-text")
    assert other.sees(".turn:nth-child(2) .question-text") == "And what are its fees?"
    elsewhere.sees(".thread .dot")
    tab.click(".turn:nth-child(2) [title='Good answer']")
    elsewhere.until("!document.querySelector('.thread .dot')")
    assert tab.count(".turn") == 2
    other.click(".turn:first-child >> text=Sources")
    other.sees(".passage mark")


def test_offline_in_mid_answer_and_back_is_one_whole_answer(tab: Tab, model: Gated, stack: Stack, user: User) -> None:
    tab.expects_refusals = True
    ask(tab, "What is TON token? [gated]", waits=False)
    model.gate.release()
    tab.until("document.querySelector('.answer-text').textContent.includes('TON is')")

    tab.offline(True)
    assert "offline" in tab.sees(".offline")
    tab.sees("[data-status=waiting]")
    tab.offline(False)

    tab.sees(".answer-actions")
    assert tab.sees(".answer-text") == "".join(PIECES)
    assert tab.count(".turn") == 1
    assert conversations(stack, user, "status, response") == [("complete", "".join(PIECES))]
    tab.until("document.querySelector('.offline').textContent === ''")


def test_a_model_that_is_down_says_so_and_is_asked_again_in_the_same_conversation(
    tab: Tab, model: Gated, stack: Stack, user: User
) -> None:
    tab.expects_refusals = True
    ask(tab, "What is TON token? [fail]", waits=False)

    assert "The model isn’t answering" in tab.sees(".failure")
    assert len(tab.sees(".failure .request code")) == 36
    tab.click("text=Try again")
    tab.sees(".failure")
    assert conversations(stack, user, "status") == [("failed",)]
    tab.until("location.hash.length > 10")
    tab.call("reload")
    assert "No answer was given" in tab.sees(".failure")


def test_an_answer_that_is_stopped_keeps_what_was_said(tab: Tab, model: Gated, stack: Stack, user: User) -> None:
    ask(tab, "What is TON token? [gated]", waits=False)
    model.gate.release()
    tab.until("document.querySelector('.answer-text').textContent.includes('TON is')")
    tab.click("[title='Stop the answer']")

    assert "Stopped" in tab.sees(".answer-note")
    eventually(lambda: conversations(stack, user, "status, response") == [("partial", "TON is")])
    assert tab.sees("[title=Send]") == ""


def test_an_expired_session_leads_to_signing_in_and_back_to_the_question(tab: Tab, user: User) -> None:
    tab.expects_refusals = True
    ask(tab, "What is TON token?")
    tab.until("location.hash.length > 10")
    before = tab.evaluate("location.hash")
    tab.evaluate(SPOILED)

    ask(tab, "And what are its fees?", waits=False)
    assert "session has ended" in tab.sees(".gate .notice")
    sign_in(tab, user, waits_for=".answer-actions")

    assert tab.evaluate("location.hash") == before
    assert tab.evaluate("document.querySelector('#question').value") == "And what are its fees?"


def test_a_question_under_way_ends_with_its_session(tab: Tab, model: Gated, stack: Stack, user: User) -> None:
    ask(tab, "What is TON token? [gated]", waits=False)
    model.gate.release()
    tab.until("document.querySelector('.answer-text').textContent.includes('TON is')")
    tab.fill("#question", "And what are its fees?")
    tab.click("[title='Sign out']")
    tab.sees(".gate h1")
    assert tab.evaluate("location.hash + sessionStorage.length") == "#/chat0"
    eventually(lambda: conversations(stack, user, "status") == [("partial",)])

    other = User.sign_up(stack)
    sign_in(tab, other)
    tab.sees(".threads >> text=What you ask is kept here.")
    assert tab.evaluate("document.querySelector('#question').value") == ""
    ask(tab, "What is slippage?")

    assert conversations(stack, other, "message") == [("What is slippage?",)]


def test_signing_out_works_where_auth_is_away(tab: Tab) -> None:
    tab.evaluate(AWAY)
    tab.click("[title='Sign out']")

    tab.sees(".gate h1")
    assert tab.evaluate("Object.keys(localStorage).filter((name) => name.startsWith('sb-')).length") == 0


def test_an_address_that_is_none_is_home(tab: Tab) -> None:
    tab.go("#/chat/%")

    assert "What would you like to know?" in tab.sees(".welcome h2")
    assert tab.count(".shell .sidebar") == 1


def test_what_a_passage_and_an_answer_hold_never_runs(tab: Tab, stack: Stack, site: str) -> None:
    passage = {"title": f"Zorbcoin {ATTACK}", "content": f"Zorbcoin is a token of one island. {ATTACK}"}
    with learned(stack, passage):
        ask(tab, f"What is Zorbcoin? {ATTACK} [attack]")
        tab.click(".answer-actions >> text=Sources")
        shown = tab.sees(".passage:has-text('Zorbcoin') .passage-text")

    assert ATTACK in shown
    assert ATTACK in tab.sees(".answer-text")
    assert ATTACK in tab.sees(".question-text")
    assert tab.evaluate("window.ran === undefined")
    dangerous = "script:not([src]), main img, main svg[onload], [onerror], [href^='javascript']"
    assert tab.evaluate(f"document.querySelectorAll({dangerous!r}).length") == 0


def test_the_keyboard_is_enough(tab: Tab, user: User) -> None:
    tab.evaluate("document.activeElement.blur()")
    tab.press("/")
    tab.press("a")
    tab.press("Shift+Enter")
    tab.press("b")
    assert tab.evaluate("document.querySelector('#question').value") == "a\nb"

    tab.press("Enter")

    assert tab.sees(".question-text") == "a\nb"
    tab.sees(".answer-actions")
    assert tab.evaluate("document.querySelector('#question').value") == ""


def test_a_thread_is_found_again_with_its_older_turns(chromium: Browser, site: str, stack: Stack, user: User) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(TURNS, [user.user_id, uuid.uuid4()])
    with chromium.tab(site) as tab:
        sign_in(tab, user)
        tab.click(".thread")
        tab.until("document.querySelectorAll('.turn').length === 20")
        assert tab.sees(".turn:last-child .question-text") == "Question 25"
        tab.click("text=Load older")

        tab.until("document.querySelectorAll('.turn').length === 25")
        assert tab.sees(".turn:first-child .question-text") == "Question 1"
        assert tab.count("text=Load older") == 0


def test_answers_that_are_not_whole_are_shown_as_such(chromium: Browser, site: str, stack: Stack, user: User) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(UNFINISHED, [user.user_id, uuid.uuid4()])
    with chromium.tab(site) as tab:
        sign_in(tab, user)
        tab.click(".thread")

        assert "No answer was given" in tab.sees(".turn:nth-child(1) .failure")
        assert "Broke off" in tab.sees(".turn:nth-child(2) .answer-note")
        assert "Still being answered" in tab.sees(".turn:nth-child(3) .answer")
        with psycopg.connect(stack.database_url) as connection:
            finished = "update public.conversations set status = 'complete', response = 'Now.' where user_id = %s"
            connection.execute(f"{finished} and status = 'pending'", [user.user_id])
        tab.sees(".turn:nth-child(3) .answer-text >> text=Now.")


def test_a_wrong_password_says_what_to_do(chromium: Browser, site: str, user: User) -> None:
    with chromium.tab(site) as tab:
        tab.expects_refusals = True
        tab.fill("[name=email]", user.email)
        tab.fill("[name=password]", PASSWORD)
        tab.press("Enter")

        assert "No account has this email and password" in tab.sees(".form-error:not(:empty)")


def test_the_consent_is_the_users_and_kept(tab: Tab, stack: Stack, user: User) -> None:
    tab.go("#/settings")
    tab.click("[role=switch]")
    assert "Thank you" in tab.sees(".toast")
    assert "Allowed on" in tab.sees(".toggle + .hint")

    with psycopg.connect(stack.database_url) as connection:
        asked = "select training_consent from public.users where user_id = %s"
        assert connection.execute(asked, [user.user_id]).fetchall() == [(True,)]


def test_swaps_are_the_users_own(tab: Tab, stack: Stack, user: User) -> None:
    swap(stack, User.sign_up(stack), 999)
    tab.go("#/swaps")
    assert "No swaps yet" in tab.sees(".state")

    swap(stack, user, 12)
    tab.go("#/usage")
    tab.sees(".meter")
    tab.go("#/swaps")
    assert "TON → USDT" in tab.sees("tbody tr")
    assert tab.count("tbody tr") == 1


def test_the_page_of_a_static_host_talks_to_its_project(
    chromium: Browser, site: str, stack: Stack, user: User, tmp_path: Path
) -> None:
    playground.write(tmp_path / "page", site, stack.keys.publishable, f"{site}/functions/v1")
    host = Starlette(routes=[Mount("/app", StaticFiles(directory=tmp_path / "page", html=True))])
    with serving(host) as origin, chromium.tab(f"{origin}/app/") as tab:
        sign_in(tab, user)
        ask(tab, "What is TON token?")
        joined(tab)
        policy = tab.evaluate("document.querySelector('[http-equiv]').content")

    assert f"connect-src 'self' {site} ws{site.removeprefix('http')}" in policy


def test_the_policy_allows_nothing_inline_and_no_other_origin(site: str) -> None:
    policy = httpx.get(site).headers["content-security-policy"]

    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    host = site.removeprefix("http://")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert "; require-trusted-types-for 'script'; trusted-types dompurify; " in policy
    assert policy.endswith(f"; connect-src 'self' ws://{host} wss://{host}; frame-ancestors 'none'")
    assert httpx.get(f"{site}/vendor/supabase.js").headers["content-security-policy"] == policy
    assert httpx.get(f"{site}/nothing.js").status_code == 404


@pytest.mark.parametrize("size", SIZES)
def test_every_view_is_for_everybody(chromium: Browser, site: str, stack: Stack, user: User, size: str) -> None:
    with chromium.tab(site, size) as tab:
        tab.expects_refusals = True
        tab.sees(".gate h1")
        tab.look("sign-in", size)
        sign_in(tab, user)
        tab.look("new-chat", size)
        for amount in (12, 3.5, 240):
            swap(stack, user, amount)
        ask(tab, "What is TON token? [full]")
        tab.look("answer", size)
        tab.click(".answer-actions >> text=Sources")
        tab.sees(".passage")
        tab.look("sources", size)
        tab.press("Escape")
        ask(tab, "Does it always answer? [fail]", waits=False)
        tab.sees(".failure")
        tab.look("failure", size)
        for view, there in (("swaps", "tbody"), ("usage", ".meter"), ("settings", "[role=switch]")):
            tab.go(f"#/{view}")
            tab.sees(f".view-{view} {there}")
            tab.look(view, size)
        if size == "phone":
            tab.click("[title=Menu]")
            tab.look("menu", size)


SPOILED = """
    (() => {
      const key = Object.keys(localStorage).find((name) => name.startsWith('sb-'))
      const session = JSON.parse(localStorage[key])
      localStorage[key] = JSON.stringify({...session, access_token: session.access_token + 'x', refresh_token: 'gone'})
    })()
"""
AWAY = """
    (() => {
      const { fetch } = window
      const away = () => Promise.resolve(new Response(null, { status: 503 }))
      window.fetch = (to, ...how) => (String(to).includes('/logout') ? away() : fetch(to, ...how))
    })()
"""
UNFINISHED = """
    insert into public.conversations (user_id, thread_id, message, response, status)
    select %s, %s, 'Question', response, status
    from (values (1, '', 'failed'), (2, 'Half of', 'partial'), (3, '', 'pending')) as turns (id, response, status)
    order by id
"""
TURNS = """
    insert into public.conversations (user_id, thread_id, message, response, status)
    select %s, %s, 'Question ' || number, 'Answer ' || number, 'complete' from generate_series(1, 25) as number
"""


def sign_in(tab: Tab, user: User, waits_for: str = "#question") -> None:
    tab.fill("[name=email]", user.email)
    tab.fill("[name=password]", user.password)
    tab.click("button[type=submit]")
    tab.sees(waits_for)


def ask(tab: Tab, question: str, waits: bool = True) -> None:
    """Ask, and wait for the end of the answer if it has one; a [gated] one hasn't."""
    before = tab.count(".turn")
    tab.fill("#question", question)
    tab.press("Enter")
    if waits and "[gated]" not in question:
        tab.sees(f".turn:nth-child({before + 1}) .answer-actions")


def joined(*tabs: Tab) -> None:
    """Wait until Realtime tells these tabs of what is written."""
    for tab in tabs:
        tab.until("document.documentElement.dataset.realtime === 'SUBSCRIBED'")


def conversations(stack: Stack, user: User, columns: str) -> list[Any]:
    with psycopg.connect(stack.database_url) as connection:
        asked = f"select {columns} from public.conversations where user_id = %s order by id"  # noqa: S608
        return connection.execute(asked, [user.user_id]).fetchall()


def swap(stack: Stack, user: User, amount: float) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "insert into public.swap_history (user_id, from_token, to_token, amount) values (%s, 'TON', 'USDT', %s)",
            [user.user_id, amount],
        )


def eventually(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def gateway(stack: Stack, functions: str) -> Iterator[str]:
    """The stack's gateway once more, in front of these functions."""
    with ports.reserve(None) as held:
        url = ports.url(ports.number(held))
        environment = {
            **os.environ,
            **parts.keys_environment(stack.keys),
            "GATEWAY_PORT": str(ports.number(held)),
            "SUPABASE_URL": stack.url,  # who issues the tokens
            "LITE_URL": ports.url(stack.ports["lite"]),
            "FUNCTIONS_URL": functions,
            "AWS_ENDPOINT_URL": ports.url(stack.ports["aws"]),
            "DATABASE_URL": stack.database_url,
        }
        with running([sys.executable, "-m", "infra.local.gateway"], f"{url}/health", cwd=parts.ROOT, env=environment):
            yield url
