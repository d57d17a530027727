"""What the functions' tests share: a model that does as the question says, knowledge, and two users."""

from collections.abc import Iterator

import psycopg
import pytest

from infra.local.stack import Stack
from tests.commands import load_knowledge
from tests.functions.corpus import Corpus
from tests.functions.deployments import Registry, clients
from tests.scripted_models import Models
from tests.sql import retire
from tests.stand_ins import Model, serving
from tests.users import User


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    stand_in = Model()
    with serving(stand_in.app()) as url:
        stand_in.url = url
        yield stand_in


@pytest.fixture(scope="module")
def server() -> Iterator[Models]:
    """A server of many models, each of which may have a script."""
    models = Models()
    with serving(models.app()) as models.url:
        yield models


@pytest.fixture
def models(server: Models) -> Models:
    """The server, as if nobody had asked it anything."""
    server.asked.clear()
    server.scripts.clear()
    server.held.clear()
    return server


@pytest.fixture(scope="session")
def functions(stack: Stack, model: Model, knowledge: None) -> Iterator[str]:
    """The functions' origin, with the stand-in for a model."""
    with stack.functions(MODEL_BASE_URL=f"{model.url}/v1", MODEL_NAME="stand-in", PROMPT_TOKENS="3000") as origin:
        yield origin


@pytest.fixture(scope="session")
def knowledge(stack: Stack) -> None:
    """A part of the seed knowledge."""
    load_knowledge(stack.environment)


@pytest.fixture(scope="session")
def alice(stack: Stack) -> User:
    """A user with twelve swaps, of 1 to 12 TON, the last the newest."""
    user = User.sign_up(stack)
    with psycopg.connect(stack.database_url) as connection:
        connection.cursor().executemany(
            "insert into public.swap_history (user_id, from_token, to_token, amount, created_at)"
            " values (%s, 'TON', 'USDT', %s, now() - make_interval(days => %s))",
            [(user.user_id, amount, 20 - amount) for amount in range(1, 13)],
        )
    return user


@pytest.fixture(scope="session")
def bob(stack: Stack) -> User:
    """A user with one swap, of DOGS."""
    user = User.sign_up(stack)
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "insert into public.swap_history (user_id, from_token, to_token, amount) values (%s, 'DOGS', 'TON', 777)",
            [user.user_id],
        )
    return user


@pytest.fixture(scope="module")
def tuned(stack: Stack, server: Models, knowledge: None) -> Iterator[str]:
    """The functions' origin, with `tuned` for a provider of fine-tuned models and a model behind them."""
    with stack.functions(MODEL_CHAIN="tuned:chained", **server.providers("tuned")) as origin:
        yield origin


@pytest.fixture
def registry(stack: Stack, tuned: str) -> Iterator[Registry]:
    """A model of the test's own, none of whose versions are served when it is over."""
    own = Registry(stack, tuned, *clients(stack))
    yield own
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        retire(connection, own.name)


@pytest.fixture
def corpus(stack: Stack) -> Iterator[Corpus]:
    own = Corpus(stack, stack.url)
    yield own
    own.clear()
