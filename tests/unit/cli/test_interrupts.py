"""Ctrl-C works whatever the program is doing, also while it writes to the terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from forked import Process, environment

from gems.cli import batch_commands, console

SCRIPT = """
import io, os, signal, sys
from pathlib import Path
from gems.cli import batch_commands, console


class Terminal(io.RawIOBase):
    # Each write of the program is interrupted by Ctrl-C, as it can be at a terminal.

    def writable(self): return True
    def fileno(self): return 2
    def isatty(self): return True

    def write(self, data):
        os.write(2, data)
        signal.raise_signal(signal.SIGINT)
        return len(data)


with console.stoppable() if sys.argv[1] == "run" else batch_commands._stoppable(Path(sys.argv[2]), 60):
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(Terminal()), line_buffering=True)
    for line in ("first", "second", "third"):
        print(line, file=sys.stderr)
        console.err.print(line)
sys.exit("not interrupted")
"""


@pytest.mark.parametrize(("command", "interrupts"), [("run", 2), ("batch", 3)])
def test_an_interrupt_during_a_write_is_no_error(command: str, interrupts: int, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", SCRIPT, command, str(tmp_path)]
    process = Process(arguments, stderr=subprocess.PIPE, text=True, env=environment())
    _, output = process.communicate(timeout=120)
    assert process.returncode == console.INTERRUPTED, output
    assert "reentrant" not in output
    assert "Traceback" not in output
    assert output.count("Ctrl-C again") == interrupts - 1


WAITING = """
import contextlib, sys, time, typer
from gems.cli import console


@console.guarded
def command():
    with console.stoppable(0.2) if sys.argv[1] == "run" else contextlib.nullcontext():
        print("at work", flush=True)
        time.sleep(60)


app = typer.Typer()
app.command()(command)
app(sys.argv[2:])
"""


@pytest.mark.parametrize(("kind", "says"), [("run", "stopping after this step"), ("other", "stopped\n")])
def test_a_termination_is_an_interrupt(kind: str, says: str) -> None:
    arguments = [sys.executable, "-c", WAITING, kind]
    with Process(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert says in errors
    assert process.returncode == console.INTERRUPTED


BLOCKS: list[Callable[[Path], AbstractContextManager[Any]]] = [
    lambda _: console.stoppable(),
    lambda folder: batch_commands._stoppable(folder, 60),
]


@pytest.mark.parametrize("block", BLOCKS, ids=["run", "batch"])
def test_the_previous_handler_is_restored(block: Callable[[Path], AbstractContextManager[Any]], tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with block(tmp_path):
            assert signal.getsignal(number) is not before
        assert signal.getsignal(number) is before
