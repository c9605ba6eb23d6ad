"""Runs Python commands in separate processes without the cost of importing the libraries (``servers/zygote.py``).

``run`` and ``Process`` replace ``subprocess.run`` and ``subprocess.Popen`` for ``[sys.executable, ...]``. ``gems`` and
``gems_process`` run the command line. ``gems_here`` runs it in this process; use it for input that GEMS refuses.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Literal

_ADDRESS = "GEMS_TEST_ZYGOTE"
_ZYGOTE = Path(__file__).parent / "servers" / "zygote.py"
_READ_AT_IMPORT = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "LANGGRAPH_STRICT_MSGPACK": "true",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Variables that the libraries read when they are imported. The command line sets the same ones."""


def start_server() -> str:
    """Start the fork server unless a parent process already has; return the path of its socket."""
    if address := os.environ.get(_ADDRESS):
        return address
    folder = tempfile.TemporaryDirectory(prefix="gems-zygote-", ignore_cleanup_errors=True)
    address = str(Path(folder.name) / "socket")
    server = subprocess.Popen(
        [sys.executable, str(_ZYGOTE), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **_READ_AT_IMPORT},
    )
    os.environ[_ADDRESS] = address

    def stop() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        folder.cleanup()
        os.environ.pop(_ADDRESS, None)

    atexit.register(stop)
    return address


def _connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 220  # seconds; a busy machine is slow to import the libraries
    while True:
        try:
            connection.connect(address)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # the server is still importing
        else:
            return connection


class Process(subprocess.Popen[Any]):
    """A ``Popen`` whose child is forked by the fork server; pipes, pid, signals and exit codes work as usual.

    It overrides the three private methods of CPython 3.11 to 3.13 that start a child and wait for it.
    """

    _connection: socket.socket

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *popen_arguments: Any) -> None:
        # The positions follow CPython's private signature. Options that are not read here are not supported.
        cwd, env = popen_arguments[2:4]
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = popen_arguments[7:13]
        interpreter, *arguments = map(os.fspath, args)
        assert interpreter == sys.executable
        request = {
            "arguments": arguments,
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        self._connection = _connect(start_server())
        streams = [
            descriptor if descriptor != -1 else standard_stream
            for descriptor, standard_stream in zip((p2cread, c2pwrite, errwrite), range(3), strict=True)
        ]
        socket.send_fds(self._connection, [f"{json.dumps(request)}\n".encode()], streams)
        self.pid = int(self._read_line())
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:  # a failed test does not wait for the process to end
            self.kill()
        super().__exit__(kind, error, traceback)

    def _read_line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            part = self._connection.recv(1)  # one byte at a time: the wait status may follow
            if not part:
                raise ChildProcessError("the fork server has ended")
            line += part
        return line

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._connection], [], [], 0)[0]:
            return 0, 0
        status = int(self._read_line())
        self._connection.close()
        return self.pid, status

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            with self._waitpid_lock:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid == self.pid:
                        self._handle_exitstatus(status)
        return self.returncode


def run(
    command: Sequence[object],
    *,
    timeout: float = 180,
    check: bool = False,
    text: bool = True,
    capture_output: Literal[True] = True,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[Any]:
    """``subprocess.run`` with both outputs captured."""
    arguments = [str(part) for part in command]
    with Process(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=text, cwd=cwd, env=env) as process:
        stdout, stderr = process.communicate(timeout=timeout)
    result = subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)
    if check:
        result.check_returncode()
    return result


def interpreter() -> str:
    """A command that takes the arguments of ``python`` and runs them in a process that the fork server forks."""
    return shlex.join([sys.executable, __file__])


SUBPROCESS = SimpleNamespace(**{**vars(subprocess), "Popen": Process, "run": run})
"""Replaces the ``subprocess`` module inside a module that starts commands."""


def command_line(*arguments: object) -> list[str]:
    """The command ``gems ARGUMENTS`` as a list of words."""
    return [sys.executable, "-m", "gems", *map(str, arguments)]


def environment(home: Path | None = None, **variables: str) -> dict[str, str]:
    """This process's environment with a wide terminal, a GEMS home folder and the given variables."""
    home_variable = {} if home is None else {"GEMS_HOME": str(home)}
    return {**os.environ, "COLUMNS": "200", **home_variable, **variables}


def gems(
    *arguments: object, home: Path | None = None, cwd: Path | None = None, timeout: float = 180, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``gems ARGUMENTS`` and capture its output. Keyword arguments in capitals are environment variables."""
    return run(command_line(*arguments), timeout=timeout, cwd=cwd, env=environment(home, **variables))


def gems_process(*arguments: object, home: Path | None = None, cwd: Path | None = None, **variables: str) -> Process:
    """Start ``gems ARGUMENTS`` in the background with its outputs as text pipes."""
    return Process(
        command_line(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(home, **variables),
    )


@contextmanager
def _own_logs() -> Iterator[None]:
    """Forget how a command logs: its streams are closed after it."""
    import structlog

    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = root.handlers, root.level
    root.handlers = []  # a command closes those that it finds
    try:
        yield
    finally:
        root.handlers, root.level, threading.excepthook = handlers, level, hook
        structlog.reset_defaults()


def gems_here(*arguments: object, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``gems ARGUMENTS`` in this process; capture its output and exit code. Raises exceptions that are no exit."""
    from typer.testing import CliRunner

    from gems.cli.main import app

    words = list(map(str, arguments))
    with _own_logs():
        result = CliRunner().invoke(app, words, prog_name="gems", env=environment(home, **variables))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(["gems", *words], result.exit_code, result.stdout, result.stderr)


if __name__ == "__main__":
    with Process([sys.executable, *sys.argv[1:]]) as forked_interpreter:
        sys.exit(forked_interpreter.wait())
