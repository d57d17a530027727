"""What the model is told: pure functions from a question and its context to messages."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import TypeVar

from shared import grounding
from shared.errors import InvalidRequest
from shared.providers.chat import Message
from shared.retrieval import Passage

PROMPTS = Path(__file__).parent / "prompts"
NOTHING_FOUND = (
    "I found nothing about that in the knowledge base. I can answer questions about TON, tokens, swaps and your own "
    "swap history."
)
NOTHING_KNOWN = (
    "I found nothing about that in the token knowledge. Ask with a token's name, symbol or address, or with fewer "
    "filters."
)
Item = TypeVar("Item")
BYTES_PER_TOKEN = 3.5  # a cautious mean over English prose and code; other scripts have more bytes and more tokens

# Fences; <|im_start|> and [|user|] and their like, whole or in halves; Llama 2's, Gemma's, DeepSeek's and Mistral's;
# a model's thoughts.
MARKS = re.compile(
    r"<<<+|>>>+|[<\[][|｜]|[|｜][>\]]|</?s>|<(?:start|end)_of_turn>|<[be]os>|<</?SYS>>|</?think>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",
    re.IGNORECASE,
)
# Words for oneself and for trading: English, Russian, German, French, Spanish, Portuguese.
OWN = re.compile(
    r"\b(?:i|i've|i'd|me|my|mine|our|we|я|мне|меня|мо[йяеёию]\w*|мы|наш\w*|ich|mir|mich|mein\w*|wir|unser\w*"
    r"|je|j'ai|mon|mes|moi|yo|mi|mis|eu|meu|meus|minha\w*)\b",
    re.IGNORECASE,
)
TRADES = re.compile(
    r"\b(?:swap\w*|trad(?:e|es|ed|ing)|exchang\w*|convert\w*|transact\w*|bought|buy|sold|sell|histor\w*"
    r"|свап\w*|своп\w*|обмен\w*|сделк\w*|транзакц\w*|купил\w*|прода\w*|истори\w*|tausch\w*|getauscht|gehandelt|gekauft"
    r"|verkauf\w*|transakt\w*|échang\w*|achet\w*|vend\w*|intercambi\w*|cambi\w*|compr\w*|troqu\w*|troc\w*)\b",
    re.IGNORECASE,
)
HISTORY = re.compile(
    r"\b(?:swap|trade|transaction)s?\s+history\b|\b(?:last|latest|recent)\s+(?:swap|trade|transaction)s?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Swap:
    """One of the user's own swaps: `amount` in units of `from_token`, `created_at` in ISO 8601."""

    from_token: str
    to_token: str
    amount: float | str
    created_at: str

    def __str__(self) -> str:
        swapped = f"{_plainly(self.amount)} {self.from_token} to {self.to_token}"
        return " ".join(f"On {self.created_at[:10]} the user swapped {swapped}.".split())  # tokens' names are anybody's


@dataclass(frozen=True, slots=True)
class Exchange:
    """An earlier question of the thread and its answer; a caller's own account may lack one of them."""

    message: str
    response: str

    def __str__(self) -> str:
        said = {"User": self.message, "Assistant": self.response}
        return "\n".join(f"{who}: {text}" for who, text in said.items() if text)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages for the model, and the passages and earlier turns that found room in them.

    `grounded` is False when nothing in it could answer the question: then the gateway says so itself, for a
    small model would invent something.
    """

    messages: list[Message]
    passages: list[Passage]
    turns: list[Exchange]
    grounded: bool


def build(
    name: str,
    question: str,
    passages: Sequence[Passage],
    swaps: Sequence[Swap],
    turns: Sequence[Exchange],
    budget_tokens: int,
) -> Prompt:
    """The prompt `prompts/<name>.md` with its context, in at most `budget_tokens` where the question allows it.

    Swaps are the newest first, turns the oldest first. Room goes to what is likeliest to answer: the user's
    own swaps first when he asks about them, else the passages, best first; the newest turns get what is left. Each
    is as `build_cited` has it, a passage one line. Raises `InvalidRequest` for a question that is longer than the room
    it leaves, where no passage fits that.
    """
    system = _system(name)
    left = room = budget_tokens - count_tokens(system) - count_tokens(question) - 60  # for headings and fences
    personal = concerns_swaps(question)
    kept_swaps: list[Swap] = []
    if personal:
        kept_swaps, room = _fitting(swaps, room, _one_line)
    kept_passages, room = _fitting(passages, room, _one_line)
    if not personal:
        kept_swaps, room = _fitting(swaps, room, _one_line)
    newest_turns, room = _fitting(map(_defused, reversed(turns)), room)
    if passages and not kept_passages and not (personal and kept_swaps) and count_tokens(question) > left:
        raise InvalidRequest("message: too long, it leaves no room for what is known about it. Ask something shorter.")

    context = _section("Context from knowledge base", map(_one_line, kept_passages))
    own = _section("User's recent swaps, newest first", map(_one_line, kept_swaps))
    earlier = _section("Earlier in this conversation", reversed(newest_turns))
    parts = [earlier, own, context] if personal else [earlier, context, own]
    asked = f"User question: {_plain(question)}\n\nAnswer in one or two sentences:"
    user = "\n\n".join([*(part for part in parts if part), asked])
    return Prompt(
        messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
        passages=kept_passages,
        turns=newest_turns[::-1],
        grounded=bool(kept_passages or newest_turns or (personal and kept_swaps)),
    )


def build_cited(
    question: str, passages: Sequence[Passage], budget_tokens: int, turns: Sequence[Exchange] = ()
) -> Prompt:
    """The prompt `prompts/ai_with_rag.md`, its passages numbered from 1 as they stand in the result's `passages`.

    A passage is one line, whatever it holds, so that none can pass for another or for two; so is either side of a turn.
    Turns are the oldest first, and the newest get the room that the passages leave. Raises `InvalidRequest` for a
    question that is longer than the room it leaves, where no passage fits that.
    """
    system = _system("ai_with_rag")
    left = room = budget_tokens - count_tokens(system) - count_tokens(question) - 60  # for headings and fences
    kept, room = _fitting(passages, room, line)
    newest_turns, _ = _fitting(map(_defused, reversed(turns)), room)
    if passages and not kept and count_tokens(question) > left:
        raise InvalidRequest("query: too long, it leaves no room for what is known about it. Ask something shorter.")
    earlier = _section("Earlier in this conversation", reversed(newest_turns))
    context = _section("Passages", [f"[{number}] {line(passage)}" for number, passage in enumerate(kept, start=1)])
    asked = f"User question: {_plain(question)}\n\nAnswer in one to three sentences, with the passages' numbers:"
    user = "\n\n".join([*([earlier] if earlier else []), context, asked])
    return Prompt(
        messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
        passages=kept,
        turns=newest_turns[::-1],
        grounded=bool(kept),
    )


def line(passage: Passage) -> str:
    """A passage as one line of data, with what is known of it beside its text."""
    facts = {
        "token": passage.token_symbol,
        "address": passage.token_address,
        "source": passage.source,
    }
    known = ", ".join(f"{name}: {fact}" for name, fact in facts.items() if fact)
    return _one_line(f"{passage} ({known})" if known else passage)


def _defused(turn: Exchange) -> Exchange:
    """A turn each side of which is one line; its citations are of other passages than the prompt's, and go."""
    message, response = (_one_line(grounding.uncited(text)) for text in (turn.message, turn.response))
    return Exchange(message, response)


def _one_line(data: object) -> str:
    """What it says that a reader would see, on one line, without marks and without numbers in brackets."""
    return grounding.defused(_plain(grounding.visible(str(data))))


def told(question: str, passages: Sequence[Passage]) -> list[str]:
    """What an answer may repeat without a flag: the question, and its passages with all that is known of them."""
    metadata = [json.dumps(dict(passage.metadata), ensure_ascii=False) for passage in passages]
    return [question, *map(line, passages), *metadata]


def concerns_swaps(question: str) -> bool:
    """Whether the user asks about his own trades, by words; in other languages the passages decide alone."""
    return bool((OWN.search(question) and TRADES.search(question)) or HISTORY.search(question))


def count_tokens(text: str) -> int:
    """An estimate, on the high side: no tokenizer is right for every model."""
    return int(len(text.encode()) / BYTES_PER_TOKEN) + 1


def _fitting(items: Iterable[Item], room: int, told: Callable[[Item], str] = str) -> tuple[list[Item], int]:
    kept: list[Item] = []
    for item in items:
        cost = count_tokens(told(item)) + 1
        if cost <= room:
            kept.append(item)
            room -= cost
    return kept, room


def _section(title: str, entries: Iterable[object]) -> str:
    lines = [_plain(str(entry)) for entry in entries]
    return f"{title}:\n<<<\n" + "\n".join(lines) + "\n>>>" if lines else ""


def _plain(text: str) -> str:
    """Data can't open or close a fence, nor hold a chat template's control tokens, which some servers obey.

    A space takes a mark's place, or two halves could close up to a new one.
    """
    return MARKS.sub(" ", text)


def _plainly(amount: float | str) -> str:
    """A number without an exponent; an app's own table may hold something else."""
    try:
        return f"{Decimal(str(amount)).normalize():f}"
    except InvalidOperation:
        return str(amount)


@cache
def version(name: str) -> str:
    """What a prompt says, in twelve digits; another with each change."""
    return hashlib.sha256(_system(name).encode()).hexdigest()[:12]


@cache
def _system(name: str) -> str:
    return (PROMPTS / f"{name}.md").read_text().strip()
