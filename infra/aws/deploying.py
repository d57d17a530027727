"""Stages of the functions on AWS, from a terminal: `make deploy STAGE=…`, `make rollback STAGE=…`.

A deployment looks whether everything is set, packages the functions, makes the template and lints it, deploys exactly
what was looked at, and asks the functions something. What a rollback goes back to is what osls keeps in the stack's own
bucket: the last five deployments' templates and zips. Of these, it goes to the last that answered as it should and that
nobody has gone back from.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import boto3
import botocore.session
import httpx
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader, create_loader

from infra.aws import stages
from infra.aws.packaging import FOLDER, FUNCTIONS, ROOT, STREAMING, PackagingError, interpreter
from infra.aws.stages import SERVICE, Stage, StageError
from infra.local.parts import node

OSLS = ROOT / "node_modules/.bin/osls"
TEMPLATE = "cloudformation-template-update-stack.json"
LINT_IGNORED = {"W3005": "osls writes a DependsOn beside each Ref that says the same"}
PYTHONS = ("3.13", "3.12")  # Lambda's that packages of today run on
TRIED = "tried-out"  # the marks' folder, not in a deployment's own: osls compares all that is in that with what is new
BATCH = 10  # names SSM takes at once
SMOKE_SECONDS = 30
# Paths that are for admins or users only: a function answers 401 once it has its settings, its secrets and its clients.
SMOKE = ("/ai-finance/usage", "/ai-with-rag/documents", "/deploy-model", "/export-training-data")
Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.aws.deploying", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    for name, summary in (("deploy", "package, lint, check, deploy and try a stage"), ("rollback", "go back by one")):
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        command.add_argument("stage", help="its settings stand in .env.<stage>")
    commands.choices["rollback"].add_argument("--to", help="a deployment's timestamp, tried out or not")
    asked = parser.parse_args(arguments)
    try:
        stage = stages.read(asked.stage)
        outputs = rollback(stage, asked.to, print) if asked.command == "rollback" else deploy(stage, print)
        print("Trying it")
        accept(stage, outputs["HttpApiUrl"], {name: outputs[_url_of(name)] for name in STREAMING})
        for name, value in shown(outputs).items():
            print(f"{name:<24} {value}")
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (BotoCoreError, ClientError) as error:  # what the credentials may not do, for one
        print(f"error: AWS says: {error}", file=sys.stderr)
        return 1
    return 0


def deploy(stage: Stage, say: Say) -> dict[str, str]:
    """Package, lint and deploy a stage; gives the stack's outputs. Raises `StageError`."""
    check_settings(stage)
    account = account_of(stage)
    check_parameters(stage)
    say(f"Packaging for {stage.deployment('ARCHITECTURE')}")
    packages = package(stage, newest_python())
    lint(make(stage, packages))
    say(f"Deploying {stage.name} to account {account} in {stage.deployment('AWS_REGION')}")
    return ship(stage, packages)


def rollback(stage: Stage, to: str | None, say: Say) -> dict[str, str]:
    """Go back to a deployment that is still kept, the last good one before this if none is named.

    Those after it are none to go back to any more. Raises `StageError`.
    """
    check_settings(stage)
    account_of(stage)
    now, wanted = chosen(stage, to)
    say(f"Back from {_moment(now)} to {_moment(wanted)}")
    stage.write(FOLDER, {"runtime": "python3.13", "architecture": "x86_64"})  # what was deployed has its own
    _osls(stage, FOLDER, "rollback", "--timestamp", wanted)
    unmark(stage, {each for each in tried(stage) if each > wanted})
    return outputs_of(stage)


def chosen(stage: Stage, to: str | None) -> tuple[str, str]:
    """The deployment in use, and the one to go back to. Raises `StageError` where there is none."""
    there, now = deployments(stage)
    good = tried(stage)
    earlier = [each for each in there if each < now and each in good]
    wanted = to or (earlier[-1] if earlier else None)
    if wanted is None or wanted not in there:
        known = ", ".join(f"{each} ({_moment(each)}{'' if each in good else ', not tried out'})" for each in there)
        raise StageError(
            f"There is no such deployment to go back to; kept are {known}, of which {now} is in use. "
            f"To name one: make rollback STAGE={stage.name} TO=…"
        )
    return now, wanted


def check_settings(stage: Stage) -> None:
    """Raises `StageError`, naming all that is wrong with them."""
    if problems := stage.problems():
        raise StageError("\n".join([f"{stage.place} can't be deployed:", *(f"- {problem}" for problem in problems)]))


def check_parameters(stage: Stage) -> None:
    """Raises `StageError` with the command for each secret that is needed and isn't in the store."""
    ssm, names = client(stage, "ssm"), stage.needed_parameters()
    kept: dict[str, str] = {}
    for at in range(0, len(names), BATCH):
        paths = [f"{stage.path}/{name}" for name in names[at : at + BATCH]]
        answer = ssm.get_parameters(Names=paths)
        kept |= {found["Name"].rpartition("/")[2]: found["Type"] for found in answer["Parameters"]}
    if missing := [name for name in names if name not in kept]:
        commands = [stages.put(stage, name) for name in missing]
        raise StageError("\n".join(["These secrets aren't in the parameter store. To put them there:", *commands]))
    if plain := [name for name, kind in kept.items() if kind != "SecureString"]:
        raise StageError(f"These are kept in the open, as String: {', '.join(sorted(plain))}. Make them SecureString.")


def newest_python() -> str:
    """The newest of Lambda's that runs here; python3.11's C library is too old for packages. Raises `StageError`."""
    for python in PYTHONS:
        with suppress(PackagingError):
            interpreter(python)
            return python
    raise StageError(f"Bytecode is written by the Python that reads it: put python{PYTHONS[0]} on PATH.")


def package(stage: Stage, python: str) -> Path:
    """The functions' zips; gives their folder. Raises `StageError`."""
    architecture = stage.deployment("ARCHITECTURE")
    _run([sys.executable, "-m", "infra.aws.packaging", "--architecture", architecture, "--python", python], os.environ)
    return FOLDER / architecture


def make(stage: Stage, packages: Path) -> Path:
    """Have osls write what is to be deployed beside the packages; gives the template. Raises `StageError`."""
    stage.write(packages, json.loads((packages / "package.json").read_text()))
    _osls(stage, packages, "package", "--package", str(packages / stage.name))
    return packages / stage.name / TEMPLATE


def ship(stage: Stage, packages: Path) -> dict[str, str]:
    """Deploy what was made; gives the stack's outputs. Raises `StageError`."""
    _osls(stage, packages, "deploy", "--package", str(packages / stage.name))
    return outputs_of(stage)


def lint(made: Path) -> None:
    """Raises `StageError` with what cfn-lint says, warnings too."""
    ignored = [argument for rule in LINT_IGNORED for argument in ("-i", rule)]
    _run([str(Path(sys.executable).with_name("cfn-lint")), "--template", str(made), *ignored], os.environ)


def account_of(stage: Stage) -> str:
    """The account whose credentials there are. Raises `StageError` without any."""
    try:
        return str(client(stage, "sts").get_caller_identity()["Account"])
    except (BotoCoreError, ClientError) as error:
        how = "run `aws configure`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise StageError(f"There are no credentials that AWS takes ({error}): {how}.") from error


def outputs_of(stage: Stage) -> dict[str, str]:
    """The outputs of the stage's stack."""
    [stack] = client(stage, "cloudformation").describe_stacks(StackName=_stack(stage))["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def deployments(stage: Stage) -> tuple[list[str], str]:
    """The timestamps of those that are kept, the oldest first, and of the one in use. Raises `StageError`."""
    prefix = _prefix(stage)
    listed = client(stage, "s3").list_objects_v2(Bucket=bucket_of(stage), Prefix=prefix, Delimiter="/")
    folders = [each["Prefix"].removeprefix(prefix) for each in listed.get("CommonPrefixes", [])]
    body = client(stage, "cloudformation").get_template(StackName=_stack(stage))["TemplateBody"]
    code = (body if isinstance(body, str) else json.dumps(body)).partition(prefix)[2]
    return sorted(folder.partition("-")[0] for folder in folders if folder[0].isdigit()), code.partition("-")[0]


def tried(stage: Stage) -> set[str]:
    """The timestamps of the deployments that are marked. Raises `StageError`."""
    prefix = f"{_prefix(stage)}{TRIED}/"
    listed = client(stage, "s3").list_objects_v2(Bucket=bucket_of(stage), Prefix=prefix)
    return {each["Key"].removeprefix(prefix) for each in listed.get("Contents", [])}


def mark(stage: Stage) -> None:
    """Mark the deployment in use as one that can be gone back to; marks of those that are kept no more go."""
    there, now = deployments(stage)
    client(stage, "s3").put_object(Bucket=bucket_of(stage), Key=f"{_prefix(stage)}{TRIED}/{now}")
    unmark(stage, tried(stage) - {*there})


def unmark(stage: Stage, timestamps: Iterable[str]) -> None:
    """These deployments are none to go back to."""
    for timestamp in timestamps:
        client(stage, "s3").delete_object(Bucket=bucket_of(stage), Key=f"{_prefix(stage)}{TRIED}/{timestamp}")


def bucket_of(stage: Stage) -> str:
    """The bucket that osls keeps the stage's deployments in. Raises `StageError`."""
    try:
        resources = client(stage, "cloudformation").describe_stack_resources(StackName=_stack(stage))["StackResources"]
    except ClientError as error:
        raise StageError(f"{stage.name} isn't deployed ({error.response['Error']['Message']}).") from error
    [bucket] = [each for each in resources if each["LogicalResourceId"] == "ServerlessDeploymentBucket"]
    return str(bucket["PhysicalResourceId"])


def accept(stage: Stage, url: str, streaming: Mapping[str, str] = MappingProxyType({})) -> None:
    """Try out what is live, and mark it. Raises `StageError`, which says how to go back."""
    try:
        try_out(stage, url, streaming)
    except StageError as error:
        raise StageError(
            f"{error}\n{stage.name} is live as it was deployed. To go back: make rollback STAGE={stage.name}"
        ) from error
    mark(stage)


def try_out(stage: Stage, url: str, streaming: Mapping[str, str] = MappingProxyType({})) -> None:
    """Ask each function as nobody, at its Function URL too, and one a question as a visitor.

    Raises `StageError` for any other answer.
    """
    key = stage.values.get("SUPABASE_PUBLISHABLE_KEY") or stage.values.get("SUPABASE_ANON_KEY", "")
    question = {"message": "What is a token?"}
    try:
        with httpx.Client(timeout=SMOKE_SECONDS) as http:
            for path in SMOKE:
                _expect(http.get(f"{url}/functions/v1{path}"), 401)
                if own := streaming.get(path.split("/")[1]):
                    _expect(http.get(f"{own.rstrip('/')}{path}"), 401)
            _expect(http.post(f"{url}/ai-with-rag/search", json=question, headers={"apikey": key}), 200)
    except httpx.HTTPError as error:
        raise StageError(f"{url} doesn't answer: {error}") from error


def shown(outputs: Mapping[str, str]) -> dict[str, str]:
    """What of the outputs somebody needs."""
    functions = {name: f"{outputs['HttpApiUrl']}/functions/v1/{name}" for name in FUNCTIONS}
    streams = {f"{name} (streams)": outputs[_url_of(name)] for name in sorted(STREAMING)}
    rest = {name: outputs[name] for name in ("TrainingBucket", "DashboardUrl")}
    return {**functions, **streams, **rest}


def _url_of(name: str) -> str:
    return f"{normalised(name)}LambdaFunctionUrl"


def _expect(answer: httpx.Response, status: int) -> None:
    if answer.status_code != status:
        said = answer.text[:500]
        raise StageError(f"{answer.request.method} {answer.url} answers {answer.status_code}, not {status}: {said}")


def _osls(stage: Stage, packages: Path, *arguments: str) -> None:
    if not OSLS.exists():
        raise StageError("There is no osls in node_modules: run `make install`.")
    environment = {**os.environ, "STAGE_FILE": str(stage.file(packages)), "SLS_TELEMETRY_DISABLED": "1"}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "osls.lock").open("w") as lock:  # each run empties the one folder that it works in, .serverless
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run([node(), str(OSLS.resolve()), *arguments, "--stage", stage.name], environment)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StageError(f"{' '.join(command[:4])} … failed:\n{done.stdout.strip()}")


def client(stage: Stage, service: Any) -> Any:
    """AWS's client for a service, by the credentials there are now: boto3's own session keeps those it had first."""
    session = botocore.session.get_session()
    session.register_component("data_loader", _descriptions())
    return boto3.Session(botocore_session=session, region_name=stage.deployment("AWS_REGION")).client(service)


@cache
def _descriptions() -> Loader:
    """What botocore knows of AWS's services, which takes it the longest to read."""
    return create_loader()


def _stack(stage: Stage) -> str:
    return f"{SERVICE}-{stage.name}"


def _prefix(stage: Stage) -> str:
    """Of all that osls keeps of the stage's deployments."""
    return f"serverless/{SERVICE}/{stage.name}/"


def normalised(name: str) -> str:
    """A function's name as osls writes it in a template."""
    return name[0].upper() + name[1:].replace("-", "Dash")


def _moment(timestamp: str) -> str:
    return f"{datetime.fromtimestamp(int(timestamp) / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


if __name__ == "__main__":
    sys.exit(main())
