"""The chain of models when there is no time for them."""

from collections.abc import AsyncGenerator

import httpx
import pytest

from shared import models
from shared.breakers import Breakers
from shared.errors import DeadlineExceeded
from shared.models import Deadline, Model, Route
from shared.providers.chat import Ask, Chat, Message, Said, Usage
from shared.settings import ModelFacts, Settings
from shared.telemetry import Trace

SETTINGS = {
    "SUPABASE_URL": "http://127.0.0.1:9",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_x",
    "SUPABASE_SECRET_KEY": "sb_secret_x",
    "MODEL_CHAIN": "p:a, p:b",
    "EMBEDDING_MODEL": "any",
    "EMBEDDING_BASE_URL": "http://127.0.0.1:9",
}


@pytest.mark.anyio
async def test_no_model_is_asked_once_the_time_is_up() -> None:
    asked: list[Ask] = []

    async def generate(ask: Ask) -> Said:
        asked.append(ask)
        return Said("TON.", False, Usage(1, 1))

    async def stream(ask: Ask) -> AsyncGenerator[str | Usage, None]:
        asked.append(ask)
        yield "TON."

    settings = Settings.model_validate(SETTINGS)
    chain = [Model(name, f"p:{name}", "p", name, Chat(generate, stream), ModelFacts()) for name in "ab"]
    messages, trace = [Message(role="user", content="What is TON?")], Trace("t")

    async with httpx.AsyncClient() as http:
        breakers = Breakers(settings, http)
        route = Route(chain, {}, breakers, 24, 1000, 20)
        with pytest.raises(DeadlineExceeded):
            await models.generate(route, messages, Deadline.after(0), trace)
        with pytest.raises(DeadlineExceeded):
            await anext(models.stream(route, messages, Deadline.after(0), trace))

    assert (asked, breakers.suspects, trace.unreported) == ([], set(), None)
