"""The embedded stack as one context: its parts started in order, watched, and stopped with nothing left behind."""

import ctypes
import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

from infra.local import parts, ports, postgres
from infra.local.forked import Forked
from infra.local.keys import Keys
from infra.local.parts import ROOT, Part, StackError
from infra.local.ports import PREFERRED

START_SECONDS = 60.0
STOP_SECONDS = 5.0
LOG_LINES = 15
LOCK = "lock"
PRCTL = ctypes.CDLL(None).prctl
PR_SET_PDEATHSIG = 1
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a developer's shell may hold for other projects and other tools; the stack says these itself.
FOREIGN = (
    "AWS_",
    "DEPLOYMENT_QUEUE_URL",
    "EXPORT_QUEUE_URL",
    "LITE_",
    "PG",
    "QUEUE_URL",
    "S3_PROTOCOL_",
    "STORAGE_S3_",
    "SUPABASE_",
    "TRAINING_BUCKET",
    "UVICORN_",
)


@dataclass(slots=True)
class Running:
    """A part's process, and where it prints."""

    part: Part
    process: subprocess.Popen[bytes] | Forked
    log: Path
    started: float
    is_ready: bool = False


class Stack:
    """The parts named by `only`, all of them if nothing is said, with their data in `folder`.

    `environment` is the user's; its settings of models and limits win over the stack's own. A part that
    `preferred_ports` doesn't name gets any free port. `report` gets a line for each part that is ready.
    With `forks`, the functions and the workers that are started are forked from a process with their imports.
    Enter and leave it in the main thread: Linux ends the parts when the thread that started them ends.

    While it runs, `url` is the public origin, `environment` what the functions get, `ports` where each part
    listens, and `logs` the folder of what each prints. Raises `StackError`, also for a folder in use.
    """

    keys: Keys
    ports: dict[str, int]
    url: str
    database_url: str
    environment: dict[str, str]

    def __init__(
        self,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        only: Collection[str] = parts.NAMES,
        preferred_ports: Mapping[str, int] = PREFERRED,
        reload: bool = False,
        forks: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder = folder.absolute()
        self.logs = self.folder / "logs"
        self._base = _base_environment(environment or {})
        self._only = frozenset(only)
        self._preferred_ports = preferred_ports
        self._reload = reload
        self._forks = forks
        self._report = report
        self._running: list[Running] = []
        self._held = ExitStack()
        self._numbers = itertools.count(2)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def pids(self) -> dict[str, int]:
        """The process of each part."""
        return {running.part.name: running.process.pid for running in self._running}

    @contextmanager
    def functions(self, **overrides: str) -> Iterator[str]:
        """The functions once more, with other settings, on a port of their own; gives their origin."""
        with ports.reserve(None) as held:
            port = ports.number(held)
            part = parts.functions(port, self.environment | overrides, name=f"functions-{next(self._numbers)}")
            with self._with(part):
                yield ports.url(port)

    @contextmanager
    def worker(self, function: str = "ai-finance", **overrides: str) -> Iterator[int]:
        """A queue's worker once more, with other settings; gives its pid."""
        part = parts.worker(function, self.environment | overrides, name=f"worker-{next(self._numbers)}")
        with self._with(part) as running:
            yield running.process.pid

    @contextmanager
    def _with(self, part: Part) -> Iterator[Running]:
        self._begin(part)
        running = self._running[-1]
        try:
            self._settle()
            yield running
        finally:
            _stop(running)
            self._running.remove(running)

    def watch(self) -> NoReturn:
        """Block until a part ends, which raises `StackError`."""
        while True:
            self._check()
            time.sleep(0.2)

    def _start(self) -> None:
        lock = self._held.enter_context(locked(self.folder))
        self.logs.mkdir(mode=0o700, exist_ok=True)  # lite prints its keys
        self.keys = Keys.load(self.folder)
        self.ports = {name: self._reserve(name) for name in PREFERRED}
        self.url = ports.url(self.ports["gateway"])
        self.database_url = postgres.url(self.ports["postgres"])
        self.environment = self._function_environment()
        for part in self._chosen(self._independent()):
            self._begin(part)  # they start while a new database is made
        if "postgres" in self._only:
            self._begin(parts.database(self.ports["postgres"], self._cluster(), lock))
        self._settle(self._chosen(self._dependent()))

    def _cluster(self) -> postgres.Cluster:
        try:
            return postgres.initialise(self.folder)
        except (RuntimeError, OSError) as error:
            raise StackError(f"postgres can't start: {error}") from error

    def _reserve(self, name: str) -> int:
        return ports.number(self._held.enter_context(ports.reserve(self._preferred_ports.get(name))))

    def _function_environment(self) -> dict[str, str]:
        return {
            **self._base,
            **parts.model_environment(self._base, self.ports["chat"], self.ports["embeddings"]),
            **parts.aws_environment(self.ports["aws"]),
            **parts.keys_environment(self.keys),
            **parts.storage_environment(self.url, self.keys),
            "SUPABASE_URL": self.url,
            "POWERTOOLS_SERVICE_NAME": "supabase-ai-gateway",
        }

    def _independent(self) -> Iterator[Part]:
        if "MODEL_BASE_URL" not in self._base:
            yield parts.chat_model(self.ports["chat"], *parts.chat_weights(self._base))
        if parts.embeds_here(self._base):
            yield parts.embedding_model(self.ports["embeddings"])
        yield parts.aws(self.ports["aws"], self.environment)

    def _dependent(self) -> Iterator[Part]:
        at, database_url, keys = self.ports, self.database_url, self.keys
        yield parts.lite(at["lite"], database_url, self.url, keys)
        yield parts.functions(at["functions"], self.environment, reload=self._reload)
        yield parts.gateway(at["gateway"], at["lite"], at["functions"], at["aws"], database_url, keys)
        yield parts.worker("ai-finance", self.environment, reload=self._reload)
        yield parts.worker("deploy-model", self.environment, reload=self._reload, name="deployments")
        yield parts.worker("export-training-data", self.environment, reload=self._reload, name="exports")

    def _chosen(self, among: Iterator[Part]) -> list[Part]:
        return [part for part in among if part.name in self._only]

    def _begin(self, part: Part) -> None:
        log = self.logs / f"{part.name}.log"
        environment = {**self._base, **part.environment}
        with log.open("wb") as output, _undisturbed():
            if self._forks and part.is_forked:
                self._running.append(Running(part, Forked(part.command, environment, log, ROOT), log, time.monotonic()))
                return
            try:
                process = subprocess.Popen(
                    part.command,
                    **{"cwd": ROOT, **part.options},
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # the terminal's Ctrl-C is the supervisor's alone
                    preexec_fn=follow(os.getpid(), part.stop_signal),
                )
            except OSError as error:
                raise StackError(f"{part.name} can't start: {error}") from error
            self._running.append(Running(part, process, log, time.monotonic()))

    def _settle(self, waiting: Sequence[Part] = ()) -> None:
        """Start what waits as soon as its needs are met, until every part is ready."""
        waiting = list(waiting)
        while waiting or not all(running.is_ready for running in self._running):
            ready = {running.part.name for running in self._running if running.is_ready}
            for part in [part for part in waiting if part.needs & self._only <= ready]:
                waiting.remove(part)
                self._begin(part)
            self._check()
            for running in self._running:
                if not running.is_ready:
                    self._ask(running)
            time.sleep(0.02)

    def _ask(self, running: Running) -> None:
        part, seconds = running.part, time.monotonic() - running.started
        if part.ready(running.log):
            part.follow_up()
            running.is_ready = True
            seconds = time.monotonic() - running.started
            preferred = self._preferred_ports.get(part.name, part.port)
            moved = "" if part.port == preferred else f"  ({preferred} is taken)"
            self._report(f"{part.name:<12} {part.port or '':<6} {seconds:5.1f} s{moved}")
        elif seconds > START_SECONDS:
            raise StackError(f"{part.name} was not ready within {START_SECONDS:.0f} s.\n{_end_of(running)}")

    def _check(self) -> None:
        for running in self._running:
            status = running.process.poll()
            if status is not None:
                when = "" if running.is_ready else " during the start"
                raise StackError(f"{running.part.name} ended{when} (status {status}).\n{_end_of(running)}")

    def _stop(self) -> None:
        while self._running:
            _stop(self._running[-1])
            self._running.pop()
        self._held.close()


def stop_on_signals() -> None:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into SystemExit; those that follow leave the stopping alone."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        for each in STOPPING:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in STOPPING:
        if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN:  # nohup's wish
            signal.signal(each, stop)


def direct(user: Mapping[str, str]) -> dict[str, str]:
    """The settings of a proxy's exceptions, with loopback among them: nothing of the stack goes through a proxy."""
    exceptions = ",".join(filter(None, [user.get("no_proxy") or user.get("NO_PROXY"), "127.0.0.1", "localhost"]))
    return {"NO_PROXY": exceptions, "no_proxy": exceptions}


def reset(folder: Path) -> None:
    """Empty a data folder. Raises `StackError` while a stack uses it."""
    with locked(folder):
        postgres.remove(folder)
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a data folder; gives the lock's descriptor. Raises `StackError` naming the process that holds it.

    A database whose supervisor was killed still holds the lock for the moment it takes to close.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + STOP_SECONDS
    with (folder / LOCK).open("a+") as file:
        while not _try_lock(file.fileno()):
            file.seek(0)
            owner = file.read()
            if Path("/proc", owner).exists() or time.monotonic() > deadline:
                raise StackError(f"{folder} is in use by the stack with pid {owner}: stop that one first")
            time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put signals off to the end: what one raises while Python forks is swallowed, and no part must be forgotten."""
    put_off: list[int] = []
    handlers = {each: signal.signal(each, lambda number, _frame: put_off.append(number)) for each in STOPPING}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in put_off[:1]:
            signal.raise_signal(number)


def follow(supervisor: int, how: signal.Signals) -> Callable[[], None]:
    """What a process does before it becomes itself: have Linux signal it when its supervisor is gone, anyhow."""

    def follow() -> None:
        signal.signal(how, signal.SIG_DFL)  # our own handler would not outlive the next step, nor what it was told
        PRCTL(PR_SET_PDEATHSIG, how)
        if os.getppid() != supervisor:
            os._exit(1)

    return follow


def _base_environment(user: Mapping[str, str]) -> dict[str, str]:
    """What every part sees: where programs are, and the user's settings."""
    programs = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    theirs = {name: value for name, value in user.items() if value and not name.startswith(FOREIGN)}
    return {**programs, **theirs, **direct(user)}


def _stop(running: Running) -> None:
    process = running.process
    process.send_signal(running.part.stop_signal)
    with suppress(subprocess.TimeoutExpired):  # then the next line ends it
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):  # its group is empty, as it should be
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_of(running: Running) -> str:
    lines = running.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join([f"The end of {running.log}:", *(f"  {line}" for line in lines)])
