"""Answers kept for whoever asks the same of the same passages, so that a model is asked once."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from shared import database
from shared.clients import Clients
from shared.errors import GatewayError
from shared.models import Route
from shared.providers.chat import Message
from shared.retrieval import Filters, Passage
from shared.telemetry import Trace

READ_SECONDS = 1  # a cache that is slow is none
SIGNS, DIGIT = re.compile(r"[\s?!.…？！。]+$"), re.compile(r"\d")
Use = Literal["both", "write", "none"]


def key(
    route: Route, messages: Sequence[Message], question: str, filters: Filters, passages: Sequence[Passage]
) -> str | None:
    """What an answer depends on, as SHA-256 in hex; None for one that is not for everybody.

    That is: the models, how much they may say, the instructions, the passages with all that the prompt says of them,
    which stand for the version of the knowledge, the filters, and the question without its spelling's accidents.
    """
    if any(passage.is_private for passage in passages):
        return None
    system = [message["content"] for message in messages if message["role"] == "system"]
    known = [[str(passage), passage.token_symbol, passage.token_address, passage.source] for passage in passages]
    models = [model.asked for model in route.chain]
    parts = [models, route.answer_tokens, system, known, asdict(filters), normalised(question)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def normalised(question: str) -> str:
    """A question without what doesn't change it: case, spaces, two codes for one letter, signs at its end.

    Words with digits keep their case, by which one address or hash is told from another.
    """
    words = unicodedata.normalize("NFC", question).split()
    return SIGNS.sub("", " ".join(word if DIGIT.search(word) else word.casefold() for word in words))


def use(cache_control: str | None) -> Use:
    """How a request wants the cache used: `no-store` not at all, `no-cache` for a new answer only (RFC 9111)."""
    directives = {part.strip().lower() for part in (cache_control or "").split(",")}
    return "none" if "no-store" in directives else "write" if "no-cache" in directives else "both"


async def read(clients: Clients, known_key: str, trace: Trace) -> dict[str, Any] | None:
    """The kept answer as {"text", "model"}; a cache that is away has none."""
    db = database.as_gateway(clients.http, clients.settings)
    try:
        with trace.step("cache"):
            answer: dict[str, Any] | None = await database.call(db, "read_answer", {"key": known_key}, READ_SECONDS)
    except GatewayError as error:
        trace.facts["cacheError"] = error.code
        return None
    trace.headers["x-gateway-cache"] = "hit" if answer else "miss"
    return answer


async def keep(clients: Clients, known_key: str, text: str, model: str, trace: Trace) -> None:
    """Keep an answer for a while; one that can't be kept is asked for again."""
    db = database.as_gateway(clients.http, clients.settings)
    answer = {"text": text, "model": model}
    arguments = {"key": known_key, "answer": answer, "keep_seconds": clients.settings.cache_seconds}
    try:
        await database.call(db, "keep_answer", arguments, READ_SECONDS)
    except GatewayError as error:
        trace.facts["cacheError"] = error.code
