"""The embedded stack from a terminal: `python -m infra.local up`, `demo` and `reset`."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from infra.local import parts, stack
from infra.local.migrations import MigrationError
from infra.local.parts import ROOT, StackError
from infra.local.stack import Stack

FOLDER = Path(".local")
SETTINGS_FILE = Path(".env.local")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="The embedded stack, on loopback.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (up, demo, reset):
        summary = (command.__doc__ or "").splitlines()[0]
        commands.add_parser(command.__name__, help=summary, description=command.__doc__).set_defaults(run=command)
    run: Callable[[], int] = parser.parse_args().run
    stack.stop_on_signals()
    os.environ.update(stack.direct(os.environ))
    try:
        return run()
    except (StackError, MigrationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def up() -> int:
    """Start every part, load the seed knowledge, and stay up until Ctrl-C; functions reload when edited."""
    console = Console(highlight=False)
    with ExitStack() as cleanup:
        with console.status("Starting"):
            made = Stack(FOLDER, environment=os.environ, reload=True, report=console.print)
            running = cleanup.enter_context(made)
        load_knowledge(running)
        _write_settings(running)
        for name, value in _overview(running).items():
            console.print(f"[bold]{name:<16}[/bold] {value}", soft_wrap=True)
        running.watch()


def demo() -> int:
    """Ask ai-finance real questions on a fresh stack, and show what it answers and from which sources."""
    from infra.local.demo import main as show  # its clients take a second that the other commands don't need

    return show(FOLDER, load_knowledge)


def reset() -> int:
    """Delete the stack's data: database, keys and logs."""
    stack.reset(FOLDER)
    print(f"{FOLDER} is empty")
    return 0


def load_knowledge(running: Stack) -> None:
    load = [sys.executable, "-m", "shared.knowledge", "load", str(ROOT / "sql/knowledge")]
    if subprocess.run(load, cwd=ROOT, env=running.environment, stdin=subprocess.DEVNULL, check=False).returncode:
        raise StackError("the seed knowledge could not be loaded")


def _write_settings(running: Stack) -> None:
    """What an app in front of the stack and the commands need; the secret ones have no NEXT_PUBLIC_ twin."""
    functions = ("MODEL_BASE_URL", "MODEL_NAME", "EMBEDDING_BASE_URL", "EMBEDDING_MODEL")
    settings = {
        "SUPABASE_URL": running.url,
        "SUPABASE_PUBLISHABLE_KEY": running.keys.publishable,
        "SUPABASE_SECRET_KEY": running.keys.secret,
        "SUPABASE_JWT_SECRET": running.keys.jwt_secret,
        "DATABASE_URL": running.database_url,
        **parts.storage_environment(running.url, running.keys),
        **{name: running.environment[name] for name in functions if name in running.environment},
        "NEXT_PUBLIC_SUPABASE_URL": running.url,
        "NEXT_PUBLIC_SUPABASE_PUBLISHABLE_KEY": running.keys.publishable,
    }
    SETTINGS_FILE.touch(mode=0o600)
    SETTINGS_FILE.chmod(0o600)
    lines = ["# Written by `make dev` at every start.", *(f"{name}={value}" for name, value in settings.items())]
    SETTINGS_FILE.write_text("\n".join(lines) + "\n")


def _overview(running: Stack) -> dict[str, str]:
    environment = running.environment
    return {
        "Playground": f"{running.url}/",
        "Gateway": running.url,
        "Functions": f"{running.url}/functions/v1/<name>",
        "Postgres": running.database_url,
        "Chat model": f"{environment['MODEL_BASE_URL']} ({environment['MODEL_NAME']})",
        "Embeddings": f"{environment.get('EMBEDDING_BASE_URL', 'its provider')} ({environment['EMBEDDING_MODEL']})",
        "Storage by S3": environment["STORAGE_S3_URL"],
        "AWS": environment["AWS_ENDPOINT_URL"],
        "Queue": environment["QUEUE_URL"],
        "Publishable key": running.keys.publishable,
        "Secret key": running.keys.secret,
        "JWT secret": running.keys.jwt_secret,
        "Settings": str(SETTINGS_FILE),
        "Logs": str(running.logs),
    }


if __name__ == "__main__":
    sys.exit(main())
