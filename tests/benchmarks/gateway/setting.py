"""What every gateway of the run finds: knowledge with vectors like the upstream's, users, and their calls."""

import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from infra.local.parts import ROOT
from infra.local.stack import Stack
from tests.benchmarks.gateway import processes
from tests.benchmarks.gateway.load import Call
from tests.benchmarks.gateway.upstream import VECTOR
from tests.users import User

PATH = "/functions/v1/ai-finance"
EMBEDDING_MODEL = "text-embedding-ada-002"  # the guide's
USER_COUNT = 40
QUESTIONS = (
    "What is TON, and who started it?",
    "Why did my swap fail after I paid the fee?",
    "How much slippage should I allow for a small token?",
    "Is USDT on TON the same as on Tron?",
    "What happens to my coins while a bridge is slow?",
    "How do I see that a token is a scam?",
    "Should I stake what I swapped last week?",
    "What does impermanent loss mean for my pool?",
)
SETTINGS = {
    "MODEL_NAME": "stand-in",
    "EMBEDDING_MODEL": EMBEDDING_MODEL,
    "PROMPT_TOKENS": "3000",
    "ANSWER_TOKENS": "500",
    "TURNS_PER_MINUTE": "1000",
    "MODELS": '{"*": {"input_usd": 1, "output_usd": 3}}',
}
NUMBERS = itertools.count(1)


@contextmanager
def upstream(folder: Path, chat_ms: int, embedding_ms: int) -> Iterator[str]:
    """The models' stand-in with these waits; gives its origin."""
    command = [sys.executable, "-m", "tests.benchmarks.gateway.upstream", "PORT", str(chat_ms), str(embedding_ms)]
    with processes.serving(command, folder / f"upstream-{chat_ms}.log", {}, "/health") as origin:
        yield origin


@contextmanager
def guide(stack: Stack, folder: Path) -> Iterator[str]:
    """The guide's function, served as ours is; gives its origin."""
    command = [sys.executable, "-m", "uvicorn", "tests.benchmarks.gateway.guide:app", "--port", "PORT"]
    command += ["--lifespan", "off", "--no-access-log", "--no-proxy-headers"]
    with processes.serving(command, folder / "guide.log", stack.environment, "/openapi.json") as origin:
        yield origin


def at(origin: str) -> dict[str, str]:
    """The settings for models at this origin."""
    return {"MODEL_BASE_URL": f"{origin}/v1", "EMBEDDING_BASE_URL": f"{origin}/v1"}


def fill(stack: Stack) -> list[User]:
    """The knowledge, and users with a dozen swaps each."""
    users = [User.sign_up(stack) for _ in range(USER_COUNT)]
    with psycopg.connect(stack.database_url, autocommit=True) as database, database.cursor() as cursor:
        columns = "title, content, category, token_symbol, content_hash, embedding, embedding_model"
        with cursor.copy(f"copy public.finance_knowledge ({columns}) from stdin") as copy:
            for row in _passages():
                copy.write_row(row)
        cursor.executemany(
            "insert into public.swap_history (user_id, from_token, to_token, amount, created_at)"
            " values (%s, 'TON', 'USDT', %s, now() - make_interval(days => %s))",
            [(user.user_id, amount, 20 - amount) for user in users for amount in range(1, 13)],
        )
        database.execute("analyze")
    return users


def questions(users: Sequence[User], count: int) -> list[Call]:
    """Calls to ai-finance, by each user in turn, none with a question that was asked before."""
    return [
        Call(
            PATH,
            {"authorization": f"Bearer {user.token}"},
            {"message": f"{QUESTIONS[number % len(QUESTIONS)]} ({number})", "userId": user.user_id},
        )
        for user, number in zip(itertools.cycle(users), itertools.islice(NUMBERS, count), strict=False)
    ]


def completions(count: int, key: str = "none") -> list[Call]:
    """The model's call alone, with a prompt about as long as ours."""
    messages = [{"role": "user", "content": f"{QUESTIONS[0]} " * 40}]
    body = {"model": "stand-in", "messages": messages, "max_tokens": 500, "temperature": 0}
    return [Call("/v1/chat/completions", {"authorization": f"Bearer {key}"}, body)] * count


def embeddings(count: int) -> list[Call]:
    """The embedding's call alone."""
    body = {"model": EMBEDDING_MODEL, "input": [QUESTIONS[0]], "encoding_format": "float"}
    return [Call("/v1/embeddings", {"authorization": "Bearer none"}, body)] * count


def _passages() -> Iterator[tuple[str, str, str, str | None, str, str, str]]:
    """Every seed passage, each with the upstream's vector and noise, the later the more."""
    chance = random.Random(7)  # noqa: S311
    lines = [
        line for file in sorted((ROOT / "sql/knowledge").glob("*.jsonl")) for line in file.read_text().splitlines()
    ]
    for place, passage in enumerate(map(json.loads, lines)):
        noise = 0.005 + 0.03 * place / len(lines)
        vector = [number + chance.gauss(0, noise) for number in VECTOR]
        yield (
            passage["title"],
            passage["content"],
            passage["category"],
            passage["token_symbol"],
            f"{place:064x}",
            str(vector),
            EMBEDDING_MODEL,
        )
