"""What the commands of a terminal share: the owner who runs them, his progress, and how they end."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from postgrest import AsyncPostgrestClient
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared import database, settings
from shared.clients import Clients
from shared.errors import GatewayError
from shared.telemetry import logger

Arguments = argparse.Namespace


@dataclass(frozen=True, slots=True)
class Owner:
    """Whoever holds the secret key, at a terminal."""

    clients: Clients
    db: AsyncPostgrestClient
    console: Console

    def progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)


Command = Callable[[Owner, Arguments], Awaitable[int]]


def main(parser: argparse.ArgumentParser) -> int:
    """Run the command that the arguments name; 1 if something failed."""
    arguments = parser.parse_args()
    logger.setLevel("ERROR")  # what is told of on the way is the functions'
    try:
        return asyncio.run(_run(arguments.command, arguments))
    except GatewayError as error:
        complain(error.message)
        return 1
    except KeyboardInterrupt:
        complain("Broken off; the same command goes on from there.")
        return 130


def command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Command, does: str
) -> argparse.ArgumentParser:
    """One command of several, with its help."""
    parser = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    parser.set_defaults(command=run)
    return parser


def complain(message: str) -> None:
    """Say what went wrong."""
    print(message, file=sys.stderr)


async def _run(command: Command, arguments: Arguments) -> int:
    clients = Clients.open(settings.load())
    db = database.as_gateway(clients.http, clients.settings)
    async with clients.http:
        return await command(Owner(clients, db, Console(highlight=False, soft_wrap=True)), arguments)
