"""The command line of exports: python -m shared.exports. With the secret key, as the project's owner."""

import argparse
import asyncio
import json
import math
from typing import get_args

from pydantic import ValidationError

from shared import erasure, exports, fine_tuning, terminal
from shared.errors import InvalidRequest
from shared.exports import Busy, Export, Exported
from shared.fine_tuning import FineTune
from shared.models import Deadline
from shared.terminal import Arguments, Owner, command, complain
from shared.training_formats import Name

ACTOR = "command line"
UPLOAD_SECONDS = 3600.0
LOOK_SECONDS = 2.0  # between two looks at the progress


def main() -> int:
    """Run the command that the arguments name; 1 if something failed."""
    return terminal.main(_parser())


async def _run(owner: Owner, arguments: Arguments) -> int:
    names = ("since", "until", "min_feedback", "min_quality", "model_version", "formats", "validation_share")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    try:
        export = Export(**given, incremental=arguments.incremental, dry_run=arguments.dry_run)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidRequest(f"--{str(problem['loc'][0]).replace('_', '-')}: {problem['msg']}.") from None
    begun = await exports.begin(owner.clients, export, ACTOR, Deadline.after(0), in_background=False)
    done = await _finish(owner, begun)
    _print(owner, done)
    return 0 if done.status == "ready" else 1


async def _finish(owner: Owner, export: Exported) -> Exported:
    """Work on it here, beside whatever workers there are."""
    with owner.progress() as progress:
        task = progress.add_task(f"Export {export.export_id}", total=export.to_collect or None)
        while export.status in ("collecting", "writing"):
            working = asyncio.create_task(_work(owner, export.export_id))
            while not working.done():
                await asyncio.wait([working], timeout=LOOK_SECONDS)
                export = await exports.read(owner.clients, export.export_id)
                told = f"Export {export.export_id}, {export.status}"
                progress.update(task, completed=export.collected, description=told)
            await working
    return export


async def _work(owner: Owner, export_id: int) -> None:
    try:
        await exports.run(owner.clients, export_id, math.inf)
    except Busy as busy:
        await asyncio.sleep(min(LOOK_SECONDS, busy.seconds))


def _print(owner: Owner, export: Exported) -> None:
    if export.failure:
        complain(f"Export {export.export_id} has failed: {export.failure}")
        return
    owner.console.print(f"Export {export.export_id}: {export.rows} rows, {export.status}.")
    for file in export.files:
        megabytes = file.size_bytes / 1_000_000
        owner.console.print(f"  {file.path}: {file.rows} rows, {megabytes:.1f} MB, about {file.tokens} tokens")
    if export.skipped:
        owner.console.print("Left out: " + ", ".join(f"{count} {reason}" for reason, count in export.skipped.items()))


async def _list(owner: Owner, arguments: Arguments) -> int:
    """One line an export, its cells between tabs, for other programs to read too."""
    after = None
    while True:
        page = await exports.page(owner.clients, after)
        for export in page.exports:
            created = f"{export.created_at:%Y-%m-%d %H:%M}"
            print(export.export_id, export.status, f"{export.rows} rows", created, export.actor or "-", sep="\t")
        if not (after := page.next):
            return 0


async def _show(owner: Owner, arguments: Arguments) -> int:
    _print(owner, await exports.read(owner.clients, arguments.id))
    return 0


async def _urls(owner: Owner, arguments: Arguments) -> int:
    for file in (await exports.sign(owner.clients, arguments.id)).files:
        print(file.path, file.url, sep="\t")
    return 0


async def _erase(owner: Owner, arguments: Arguments) -> int:
    erased = await erasure.erase(owner.clients, arguments.user_id, ACTOR, Deadline.after(0))
    rows = f"{erased.conversations} conversations, {erased.training_data} training rows"
    owner.console.print(f"User {erased.user_id}: {rows} removed.")
    for each in erased.exports:
        await _finish(owner, await exports.read(owner.clients, each.replaced_by))
        owner.console.print(f"Export {each.export_id} is replaced by {each.replaced_by}.")
    for said in erased.cannot_be_undone:
        owner.console.print(said)
    return 0


async def _fine_tune(owner: Owner, arguments: Arguments) -> int:
    told = await exports.described(owner.clients, arguments.id)
    try:
        wanted = FineTune(
            provider=arguments.provider,
            base_model=arguments.base_model,
            method=arguments.method,
            params=json.loads(arguments.params),
            model_name=arguments.model_name,
        )
    except ValueError as error:
        raise InvalidRequest(f"This can't be asked for: {error}") from None
    job = await fine_tuning.start(owner.clients, told, wanted, ACTOR, Deadline.after(UPLOAD_SECONDS))
    owner.console.print(f"Job {job.id} at {job.provider}: {job.status}, for {job.model} {job.version}.")
    return 0 if job.failure is None else 1


async def _jobs(owner: Owner, arguments: Arguments) -> int:
    """One line a job, after a look at those that aren't over."""
    await fine_tuning.check_all(owner.clients)
    before = None
    while True:
        page = await fine_tuning.page(owner.db, None, before)
        for job in page.jobs:
            print(job.id, job.status, job.provider, f"{job.model} {job.version}", job.failure or "-", sep="\t")
        if not (before := page.next):
            return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shared.exports", description="Training files of the project that the settings name."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = command(commands, "run", _run, "export, and wait until the files are there; the same again goes on")
    run.add_argument("--since", metavar="TIME", help="conversations from then on, as 2026-11-01T00:00Z")
    run.add_argument("--until", metavar="TIME", help="and before then")
    run.add_argument("--min-feedback", type=int, help="1: liked (as it is by default); 0: rated, and not disliked")
    run.add_argument("--min-quality", type=float, metavar="SCORE", help="from 0 to 1 (0)")
    run.add_argument("--model-version", metavar="MODEL", help="answers of this model alone")
    run.add_argument("--formats", nargs="+", choices=get_args(Name), help="of the files (alpaca together)")
    run.add_argument("--validation-share", type=float, metavar="SHARE", help="of the users, up to 0.5 (0.1)")
    run.add_argument("--incremental", action="store_true", help="only what is new or changed since the last export")
    run.add_argument("--dry-run", action="store_true", help="count, and write no files")

    command(commands, "list", _list, "print the exports: id, status, rows, time, who")
    for name, does, run_one in (
        ("show", "print what an export holds and what it left out", _show),
        ("urls", "print addresses of an export's files, for five minutes", _urls),
    ):
        command(commands, name, run_one, does).add_argument("id", type=int, metavar="ID", help="as list prints it")
    tune = command(
        commands, "fine-tune", _fine_tune, "have a provider train a model on an export; the same again goes on"
    )
    tune.add_argument("id", type=int, metavar="ID", help="as list prints it")
    tune.add_argument("--provider", required=True, choices=("together", "openai", "huggingface"))
    tune.add_argument("--base-model", required=True, metavar="MODEL", help="by the provider's name for it")
    tune.add_argument("--model-name", metavar="NAME", help="what deploy-model calls it (as the base model)")
    tune.add_argument("--method", choices=("supervised", "dpo"), default="supervised")
    tune.add_argument(
        "--params", default="{}", metavar="JSON", help="hyperparameters, by the provider's names for them"
    )
    command(commands, "jobs", _jobs, "print the fine-tune jobs: id, status, provider, model, failure")
    erase = command(commands, "erase", _erase, "remove a user's rows, also from the files of every export")
    erase.add_argument("user_id", type=int, metavar="USER_ID", help="the users.user_id")
    return parser
