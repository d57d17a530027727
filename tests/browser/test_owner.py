"""The owner's views in a browser: knowledge, models, exports and all usage, which nobody else is shown."""

import json
from collections.abc import Iterator

import psycopg
import pytest
from supabase import create_client

from infra.local.stack import Stack
from tests.browser.pages import SCREENSHOTS, SIZES, Browser, Tab, browser
from tests.browser.test_playground import ATTACK, gateway, sign_in
from tests.commands import load_knowledge
from tests.functions.anybody import a_category
from tests.functions.corpus import Corpus
from tests.functions.deployments import Registry, clients
from tests.functions.test_activation import EXAMPLES, Tuned, simulate
from tests.shared.model_files import CONFIG, weights
from tests.sql import put_export, retire
from tests.stand_ins import serving
from tests.training_stand_ins import KEY, Together
from tests.users import User

VIEWS = {"knowledge": "Knowledge", "models": "Models", "exports": "Exports", "figures": "All usage"}
EMPTY = {
    "knowledge": "No documents yet",
    "models": "No versions yet",
    "exports": "No exports yet",
    "figures": "Nobody has asked anything",
}
CALLS = """
    insert into public.model_calls (
      id, function, state, status, model_version, input_tokens, output_tokens, cost_usd, latency_ms, created_at
    )
    select
      gen_random_uuid(), 'ai-with-rag', 'settled', case when n % 23 = 0 then 'failed' else 'complete' end,
      (array['ton@v1', 'ton@v2', 'groq:llama-3.3-70b'])[1 + n % 3], 300 + n % 200, 80, 0.0002 * (1 + n % 3),
      300 + 150 * (n % 3) + (n * 7919) % 900, now() - (n * interval '36 minutes')
    from generate_series(1, 1200) as n
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Tuned]:
    models = Tuned()
    with serving(models.app()) as models.url:
        yield models


@pytest.fixture(scope="module")
def trainer() -> Iterator[Together]:
    """A provider whose jobs are trained for as long as a test lets them."""
    provider = Together(state="running")
    with serving(provider.app()) as provider.origin:
        yield provider


@pytest.fixture(scope="module")
def site(stack: Stack, served: Tuned, trainer: Together) -> Iterator[str]:
    """The page's origin, behind it functions with providers of training and of what comes of it, and no queues."""
    load_knowledge(stack.environment)
    rows = {"tuned": {"base_url": f"{served.url}/v1"}, "together": {}}
    rows["together"] = {"base_url": f"{trainer.origin}/chat", "tuning_url": f"{trainer.origin}/v1"}
    settings = {"MODEL_CHAIN": "tuned:chained", "MODEL_PROVIDERS": json.dumps(rows), "TUNED_API_KEY": "any"}
    settings |= {"TOGETHER_API_KEY": KEY, "EXPORT_QUEUE_URL": "", "DEPLOYMENT_QUEUE_URL": ""}
    with stack.functions(**settings) as functions, gateway(stack, functions) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running_browser:
        yield running_browser


@pytest.fixture(scope="module")
def owner(stack: Stack) -> User:
    """A user whom the project has made an admin."""
    user = User.sign_up(stack)
    service = create_client(stack.url, stack.keys.secret)
    service.auth.admin.update_user_by_id(user.auth_user_id, {"app_metadata": {"role": "admin"}})
    return user


@pytest.fixture
def tab(chromium: Browser, site: str, owner: User) -> Iterator[Tab]:
    """A tab in which the owner is signed in."""
    with chromium.tab(site) as opened:
        sign_in(opened, owner)
        yield opened


@pytest.fixture
def registry(stack: Stack, site: str) -> Iterator[Registry]:
    """A model of the test's own with an evaluation set, none of whose versions are left when it is over."""
    own = Registry(stack, site, *clients(stack))
    lines = "\n".join(map(json.dumps, EXAMPLES))
    own.storage.put_object(Bucket="ai-models", Key=f"{own.name}/evaluation.jsonl", Body=lines.encode())
    yield own
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        retire(database, own.name)


@pytest.fixture
def corpus(stack: Stack, site: str) -> Iterator[Corpus]:
    own = Corpus(stack, site)
    yield own
    own.clear()


def test_nobody_else_is_shown_them(chromium: Browser, site: str, stack: Stack) -> None:
    with chromium.tab(site) as tab:
        tab.expects_refusals = True
        sign_in(tab, User.sign_up(stack))
        assert [tab.count(f"nav >> text={title}") for title in VIEWS.values()] == [0, 0, 0, 0]

        for view in VIEWS:
            tab.go(f"#/{view}")
            assert "Not allowed" in tab.sees(f".view-{view} .state.error")
        for path in ("deploy-model", "deploy-model/usage", "export-training-data", "ai-with-rag/documents"):
            asked = f"import('./api.js').then(({{ call }}) => call('GET', '{path}')).catch(({{ status }}) => status)"
            assert tab.evaluate(asked) == 403


def test_documents_are_added_found_and_deleted(tab: Tab, stack: Stack) -> None:
    with a_category(stack) as category:
        tab.click("nav >> text=Knowledge")
        tab.click("text=Add documents")
        tab.fill("[name=content]", f"# Of {category}\n\nA swap at {category} costs 0.3 %. {ATTACK}")
        tab.fill("dialog >> label:text-is('Category') + input", category)
        tab.click("dialog >> [type=submit]")
        assert "created" in tab.sees(".outcomes li")
        assert "1 of 1 document is" in tab.sees("dialog [role=status]")
        tab.press("Enter")

        tab.fill("[type=search]", category.upper())
        tab.until("document.querySelectorAll('.documents tbody tr').length === 1")
        assert f"Of {category}" in tab.sees(".documents tbody tr")
        tab.click(".documents tbody button")
        assert f"“Of {category}”" in tab.sees("dialog .body")
        tab.click("dialog footer >> text=Delete")

        assert "No such document" in tab.sees(".documents .state")
        with psycopg.connect(stack.database_url) as connection:
            left = "select from public.documents where category = %s"
            assert connection.execute(left, [category]).fetchall() == []


def test_each_document_of_a_file_says_what_became_of_it(tab: Tab, stack: Stack) -> None:
    with a_category(stack) as category:
        documents = [
            {"id": f"{category}/1", "title": "One", "category": category, "content": f"One of {category}."},
            {"id": f"{category}/2", "title": "Two", "category": category, "content": 7},
        ]
        for outcomes in (["created", "failed"], ["unchanged", "failed"]):
            tab.go("#/knowledge")
            tab.sees(".documents tbody")
            tab.evaluate(DROP % json.dumps(json.dumps(documents)))
            assert "knowledge.json" in tab.sees("dialog .files")
            tab.click("dialog >> [type=submit]")
            tab.sees("dialog .form-end button:has-text('Done')")
            found = tab.evaluate("[...document.querySelectorAll('.outcomes .badge')].map((each) => each.textContent)")
            assert found == outcomes, str(
                tab.evaluate("[...document.querySelectorAll('dialog')].map((d) => [d.open, d.innerText])")
            )
            assert "content: " in tab.sees(".outcomes li:nth-child(2) small")
            tab.click("dialog .form-end button")


def test_a_question_shows_what_is_found_and_why(tab: Tab) -> None:
    tab.go("#/knowledge/why")
    tab.fill("[name=question]", "What is the TON token, $TON?")
    tab.press("Enter")

    first = tab.sees(".found li:first-child")

    assert "#1" in first
    assert "similar" in first
    shares = tab.evaluate("[...document.querySelectorAll('.found li:first-child .ranks div')].map((e) => e.innerText)")
    assert [text.split("\n")[0] for text in shares] == ["Meaning", "Words", "Names"]
    assert tab.count(".found mark") > 0
    assert tab.evaluate("document.querySelectorAll('main script, main [onerror]').length") == 0


def test_a_canary_is_compared_and_taken_back(tab: Tab, stack: Stack, registry: Registry) -> None:
    with_canary(registry, stack)
    tab.go("#/models")
    family = f"section.card:has(h2:text-is('{registry.name}'))"

    assert "fewer users like its answers" in tab.sees(f"{family} .canary")
    assert "v2 canary, 50 % of its users" in tab.sees(f"{family} .traffic")
    assert "10 % of 100" in tab.sees(f"{family} .canary tr:has-text('Thumbs up')")

    tab.click(f"{family} >> text=Roll back")
    tab.fill("dialog input", "users say so")
    tab.click("dialog footer >> text=Roll back")
    tab.sees(".toast")

    assert registry.served() == {"v1": 1}
    step = registry.row("v2")["history"][0]
    assert (step["action"], step["reason"]) == ("rolled_back", "users say so")
    assert step["actor"].startswith("user ")


def test_a_version_is_activated_through_the_gate_and_another_deleted(tab: Tab, registry: Registry) -> None:
    registry.ready("v1", "v2", "v3")
    registry.activate("v1", force=True)
    tab.go("#/models")
    tab.click(f"[aria-label='Activate {registry.name} v2']")
    assert "10 % of users, as a canary" in tab.sees("dialog output")
    tab.call("fill", "50", locator="dialog [type=range]")
    tab.click("dialog footer >> text=Activate")
    assert "v2 has users" in tab.sees(".toast")
    assert registry.served() == {"v1": 0.5, "v2": 0.5}

    tab.click(f"[title='Delete {registry.name} v3']")
    tab.click("dialog footer >> text=Delete")
    tab.until("document.querySelectorAll('.toast').length === 2")
    assert registry.call("GET", f"/{registry.name}/v3").status_code == 404

    tab.click(f"a[href='#/models/{registry.name}/v2']")
    assert "Became a canary" in tab.sees(".history")
    assert "passed" in tab.sees(".card:has-text('Evaluation at the gate')")


def test_a_training_jobs_files_are_deployed_and_had_again(tab: Tab, registry: Registry) -> None:
    source = registry.put({"model.safetensors": weights(2000), "config.json": CONFIG})
    tab.go("#/models")
    tab.click("text=Deploy >> nth=0")
    for name, text in (("modelName", registry.name), ("baseModel", "llama-3.1-8b"), ("source", source)):
        tab.fill(f"dialog [name={name}]", text)
    tab.press("Enter")
    assert f"{registry.name} v1 is ready" in tab.sees(".toast")

    tab.click(f"a[href='#/models/{registry.name}/v1']")
    assert source in tab.sees(".facts")
    assert "model.safetensors" in tab.sees("[aria-label=Files]")
    assert tab.evaluate(DOWNLOADED % "model") == 200

    tab.click(f"[title='Delete {registry.name} v1']")
    tab.click("dialog footer >> text=Delete")
    tab.sees(".view-models h1:text-is('Models')")
    assert registry.call("GET", f"/{registry.name}/v1").status_code == 404


def test_what_the_gate_refuses_is_shown_with_its_reasons_and_can_be_forced(tab: Tab, registry: Registry) -> None:
    tab.expects_refusals = True
    registry.ready("v1")
    registry.ready("v2", model="bad")
    registry.activate("v1", force=True)
    tab.go("#/models")
    tab.click(f"[aria-label='Activate {registry.name} v2']")
    tab.click("dialog footer >> text=Activate")

    assert "is not good enough" in tab.sees("dialog .form-error")
    assert "Score" in tab.sees("dialog table")
    tab.click("dialog [role=switch]")
    tab.click("dialog footer >> text=Activate")
    tab.sees(".toast")

    assert registry.served() == {"v1": 0.9, "v2": 0.1}


def test_a_view_of_nothing_says_what_would_be_there(tab: Tab) -> None:
    tab.evaluate(NOTHING)
    for view, words in EMPTY.items():
        tab.go(f"#/{view}")
        assert words in tab.sees(f".view-{view} .state:not(.error)")


def test_a_view_that_cannot_be_loaded_says_so_and_tries_again(tab: Tab) -> None:
    tab.expects_refusals = True
    for view in VIEWS:
        tab.go(f"#/{view}")
        tab.sees(f".view-{view} h1")
        tab.until("!document.querySelector('main [aria-busy=true]')")
    tab.offline(True)
    for view in VIEWS:
        tab.go(f"#/{view}")
        assert "You seem to be offline" in tab.sees(f".view-{view} .state.error")
    tab.offline(False)

    tab.click("text=Try again")

    tab.until("!document.querySelector('.state.error') && !document.querySelector('main [aria-busy=true]')")


def test_an_export_is_started_read_downloaded_and_learned_from(tab: Tab, corpus: Corpus, trainer: Together) -> None:
    corpus.put_many(60)
    tab.go("#/exports")
    tab.click("text=New export >> nth=0")
    tab.fill("dialog >> label:text-is('Of one model') + input", corpus.model)
    tab.click("dialog >> text=Preference pairs >> nth=0")
    tab.click("dialog footer >> text=Start")

    assert "ready" in tab.sees(".export-state .badge:text-is('ready')")
    assert "60 rows" in tab.sees(".export-state")
    assert "alpaca.train.json" in tab.sees("table >> text=alpaca.train")
    assert "No model has learned" in tab.sees("text=No model has learned")
    tab.click("text=Read the manifest")
    assert "Lineage" in tab.sees("dialog .facts")
    assert tab.count("dialog .hashes li") >= 4
    tab.press("Escape")
    assert tab.evaluate(DOWNLOADED % "alpaca") == 200

    tab.click("text=Start a fine-tune job")
    tab.fill("dialog [name=baseModel]", "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference")
    tab.click("dialog footer >> text=Start")
    assert "training" in tab.sees("[aria-label='Fine-tune jobs'] .badge")
    assert "POST /v1/fine-tunes" in trainer.asked


def test_an_export_that_runs_is_followed_to_its_end(tab: Tab, stack: Stack) -> None:
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        export_id = put_export(database, status="collecting", to_collect=100)
        tab.go(f"#/exports/{export_id}")
        assert "0 of 100 conversations read" in tab.sees(".progress")

        database.execute("update public.training_exports set status = 'ready' where id = %s", [export_id])

        tab.sees(".export-state .badge:text-is('ready')")
        tab.until("!document.querySelector('.progress')")
        database.execute("delete from public.training_exports where id = %s", [export_id])


def test_older_exports_are_shown_when_they_are_asked_for(tab: Tab, stack: Stack) -> None:
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        ids = [put_export(database) for _ in range(101)]
        tab.go("#/exports")
        tab.sees(f".view-exports a[href='#/exports/{ids[-1]}']")
        assert tab.count(".view-exports tbody tr") == 100

        tab.click("main >> text=Older")

        tab.sees(f".view-exports a[href='#/exports/{ids[0]}']")
        database.execute("delete from public.training_exports where id = any(%s)", [ids])


def test_a_transfer_is_followed_and_drawn_anew_only_where_it_has_changed(
    tab: Tab, stack: Stack, registry: Registry
) -> None:
    columns = json.dumps({"status": "transferring", "source": "s3://training/any/"})
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        database.execute("select public.register_model(%s, version => 'v1', columns => %s)", [registry.name, columns])
        tab.go(f"#/models/{registry.name}/v1")
        tab.sees(".facts .badge:text-is('transferring')")
        asked = "performance.getEntriesByType('resource').filter(({ name }) => name.endsWith('/v1')).length"
        tab.evaluate("document.querySelector('.facts').dataset.first = true")

        tab.until(f"{asked} >= 3")
        assert tab.count(".facts[data-first]") == 1

        database.execute("update public.model_metadata set status = 'ready' where model_name = %s", [registry.name])
        tab.sees(".facts .badge:text-is('ready')")


def test_all_usage_is_drawn_for_each_span(tab: Tab, stack: Stack) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(CALLS)
    tab.click("nav >> text=All usage")
    assert "Requests" in tab.sees(".tiles")
    assert tab.count(".charts canvas") == 7
    for span, bars in (("24 hours", 24), ("30 days", 30), ("7 days", 7)):
        tab.click(f".segments >> text={span}")
        tab.sees(f".segments [aria-pressed=true]:text-is('{span}')")
        tab.until(f"document.querySelector('.charts details tbody')?.rows.length === {bars}")
    assert "groq:llama-3.3-70b" in tab.sees("[aria-label='Usage by model']")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", SIZES)
def test_every_view_is_for_everybody(
    chromium: Browser, site: str, stack: Stack, owner: User, registry: Registry, corpus: Corpus, size: str
) -> None:
    with_canary(registry, stack)
    corpus.put_many(40)
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(CALLS)
    with chromium.tab(site, size) as tab:
        sign_in(tab, owner)
        tab.go("#/knowledge")
        tab.sees(".documents tbody")
        tab.look("owner-knowledge", size)
        tab.evaluate("[...document.querySelectorAll('.button')].find((e) => e.textContent === 'Add documents').click()")
        tab.sees("dialog .dropzone")
        tab.look("owner-add", size)
        tab.press("Escape")
        tab.go("#/knowledge/why")
        tab.fill("[name=question]", "What is the TON token, $TON?")
        tab.press("Enter")
        tab.sees(".found")
        tab.look("owner-why", size)
        tab.go("#/models")
        tab.sees(".canary")
        tab.look("owner-models", size)
        tab.click(f"a[href='#/models/{registry.name}/v2']")
        tab.sees(".history")
        tab.look("owner-version", size)
        tab.go("#/exports")
        tab.sees(".view-exports table, .view-exports .state")
        tab.click("text=New export >> nth=0")
        tab.fill("dialog >> label:text-is('Of one model') + input", corpus.model)
        tab.look("owner-new-export", size)
        tab.click("dialog footer >> text=Start")
        tab.sees("text=Read the manifest")
        tab.look("owner-export", size)
        tab.go("#/figures/30d")
        tab.sees(".charts canvas")
        tab.look("owner-figures", size)
        tab.evaluate("document.querySelector('.charts').scrollIntoView()")
        tab.browser.do("screenshot", page=tab.name, path=str(SCREENSHOTS / f"owner-charts-{size}-dark.png"))


# The functions' answers as on the first day, whatever other tests have left.
NOTHING = """
    (() => {
      const [real, of] = [window.fetch, /functions.v1.(deploy-model|export-training-data|ai-with-rag)/]
      const nothing = { documents: [], models: [], decisions: [], exports: [], buckets: [], total: { requests: 0 } }
      window.fetch = async (url, options) => (of.test(url) ? Response.json(nothing) : real(url, options))
    })()
"""
DROP = """
    (() => {
      const dropped = new DataTransfer()
      dropped.items.add(new File([%s], 'knowledge.json'))
      const event = new DragEvent('drop', { dataTransfer: dropped, bubbles: true, cancelable: true })
      document.querySelector('main').dispatchEvent(event)
    })()
"""
DOWNLOADED = """
    new Promise((resolve) => {
      HTMLAnchorElement.prototype.click = function () { fetch(this.href).then(({ status }) => resolve(status)) }
      document.querySelector('[title^="Download %s"]').click()
    })
"""


def with_canary(registry: Registry, stack: Stack) -> None:
    """v2 is a canary beside v1, which users like far better."""
    registry.ready("v1", "v2")
    registry.activate("v1", force=True, reason="the first one")
    registry.activate("v2", weight=0.5, reason="better on swaps")
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        simulate(registry, database, "v1", 100, 95, 2)
        simulate(registry, database, "v2", 100, 10, 3)
