"""The embedded stack, once for all tests."""

import gc
import os
import ssl
from collections.abc import Generator, Iterator
from functools import cache

import pytest

from infra.local import postgres
from infra.local.stack import Stack, direct

os.environ.update(direct(os.environ))  # the tests' own clients go by no proxy either
# It takes 20 ms, and each of the tests' many short-lived clients wants one.
ssl.create_default_context = cache(ssl.create_default_context)  # type: ignore[assignment]
LIMITS = {  # tests ask often and look at no answer's words
    "TURNS_PER_MINUTE": "1000",
    "ANONYMOUS_TURNS_PER_MINUTE": "1000",
    "SEARCHES_PER_MINUTE": "1000",
    "ANONYMOUS_SEARCHES_PER_MINUTE": "1000",
    "ANSWER_TOKENS": "24",
    "BREAKER_FAILURES": "1000",
    "CACHE_SECONDS": "0",
    "MODELS": '{"*": {"input_usd": 1, "output_usd": 3}}',
}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests are collected and stay: looking among them for garbage takes seconds in each process."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Every part, on free ports, with data of its own; the developer's environment doesn't reach it."""
    folder = tmp_path_factory.mktemp("stack")
    try:
        with Stack(folder, environment=LIMITS, preferred_ports={}, forks=True) as running:
            yield running
    finally:
        postgres.remove(folder)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The functions run on asyncio, as in Lambda."""
    return "asyncio"
