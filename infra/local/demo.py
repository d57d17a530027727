"""The demo: a stranger signs up, asks two questions over HTTP, and sees where the answers came from and went to."""

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from realtime import RealtimePostgresChangesListenEvent
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from supabase import AsyncClient, acreate_client

from infra.local.stack import Stack

QUESTIONS = ("What is TON token?", "How much TON did I swap for USDT?")
SWAPS = (("TON", "USDT", 12.5, "2026-11-20"), ("USDT", "NOT", 40, "2026-11-17"), ("TON", "STON", 3, "2026-11-09"))
ANSWER_SECONDS = 90
REALTIME_SECONDS = 15


@dataclass(frozen=True, slots=True)
class DemoUser:
    """The signed-in user, his client, and what his Realtime subscription has heard."""

    client: AsyncClient
    token: str
    user_id: int
    heard: "asyncio.Queue[dict[str, Any]]"


def main(folder: Path, load_knowledge: Callable[[Stack], None]) -> int:
    """Run the stack on `folder`, ask, show, and stop it again; 1 if an answer didn't come."""
    console = Console(highlight=False)
    started = time.monotonic()
    with Stack(folder, environment=os.environ, report=console.print) as stack:
        load_knowledge(stack)
        console.print(f"[dim]Up at {stack.url} after {time.monotonic() - started:.1f} s[/dim]\n")
        try:
            return asyncio.run(_show(stack, console))
        except (TimeoutError, httpx.TransportError) as error:
            console.print(
                f"[red]No answer in time ({type(error).__name__}): {escape(str(stack.logs))} may say why.[/red]"
            )
            return 1


async def _show(stack: Stack, console: Console) -> int:
    user = await _sign_up(stack)
    console.print(f"Signed up as user [bold]{user.user_id}[/bold], with {len(SWAPS)} swaps, listening over Realtime.\n")
    headers = {"Authorization": f"Bearer {user.token}"}
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS, headers=headers) as http:
        for question in QUESTIONS:
            console.print(f"[bold cyan]? {question}[/bold cyan]")
            asked = await http.post(
                f"{stack.url}/functions/v1/ai-finance",
                json={"message": question, "matchCount": 2},
            )
            if asked.is_error:
                console.print(f"[red]{asked.status_code} {escape(asked.text)}[/red]")
                return 1
            await _print_answer(asked.json(), user, console)
        spent = (await http.get(f"{stack.url}/functions/v1/ai-finance/usage")).json()["day"]
    console.print(f"Spent today: {spent['requests']} answers, {spent['tokens']} tokens, ${spent['costUsd']:.5f}.")
    await user.client.realtime.close()
    return 0


async def _print_answer(answer: dict[str, Any], user: DemoUser, console: Console) -> None:
    console.print(f"[bold green]> {escape(answer['response'])}[/bold green]")
    sources = Table("similarity", "token", "passage", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for source in answer["sources"]:
        content = source["content"] if len(source["content"]) < 90 else f"{source['content'][:89]}…"
        sources.add_row(f"{source['similarity']:.3f}", source["tokenSymbol"] or "-", escape(content))
    console.print(sources)
    usage, timings = answer["usage"], answer["timings"]
    console.print(
        f"[dim]{answer['model']}, {usage['inputTokens']} + {usage['outputTokens']} tokens, ${usage['costUsd']:.5f}"
        f"{' (estimated)' if usage['estimated'] else ''};[/dim] "
        + ", ".join(f"{step} [bold]{milliseconds:.0f}[/bold] ms" for step, milliseconds in timings.items())
    )
    heard = await asyncio.wait_for(user.heard.get(), REALTIME_SECONDS)
    rows = await user.client.table("conversations").select("id,status").eq("id", answer["conversationId"]).execute()
    [row] = rows.data
    assert isinstance(row, dict)
    console.print(f"[dim]Stored as conversation {row['id']} ({row['status']});[/dim] {_delivery(heard, answer)}\n")


def _delivery(heard: dict[str, Any], answer: dict[str, Any]) -> str:
    record = heard["data"]["record"]
    same = record["id"] == answer["conversationId"] and record["response"] == answer["response"]
    return f"Realtime: {heard['data']['type'].value} received" + (", with the answer." if same else ", of another row!")


async def _sign_up(stack: Stack) -> DemoUser:
    """A new user with swaps: his own inserts are refused, so the owner's key writes them."""
    client = await acreate_client(stack.url, stack.keys.publishable)
    email = f"demo-{secrets.token_hex(4)}@example.com"
    signed_up = await client.auth.sign_up({"email": email, "password": secrets.token_urlsafe()})
    assert signed_up.session
    token = signed_up.session.access_token
    users = await client.table("users").select("user_id").execute()
    [row] = users.data
    assert isinstance(row, dict)
    user_id = int(str(row["user_id"]))

    owner = await acreate_client(stack.url, stack.keys.secret)
    columns = ("from_token", "to_token", "amount", "created_at")
    swaps = [dict(zip(columns, swap, strict=True)) | {"user_id": user_id} for swap in SWAPS]
    await owner.table("swap_history").insert(swaps).execute()

    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    await _listen(client, token, user_id, heard)
    return DemoUser(client, token, user_id, heard)


async def _listen(client: AsyncClient, token: str, user_id: int, heard: "asyncio.Queue[dict[str, Any]]") -> None:
    ready = asyncio.Event()
    await client.realtime.set_auth(token)
    channel = client.channel("ai-responses")
    channel.on_postgres_changes(
        RealtimePostgresChangesListenEvent.Insert,
        schema="public",
        table="conversations",
        filter=f"user_id=eq.{user_id}",
        callback=lambda change: heard.put_nowait(dict(change)),
    )
    channel.on_system(lambda _: ready.set())
    await channel.subscribe()
    await asyncio.wait_for(ready.wait(), REALTIME_SECONDS)
