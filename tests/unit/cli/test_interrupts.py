"""Ctrl-C works whatever the program is doing, also while it writes to the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from forked import Process, environment

from gems.cli import batch_commands, console

SCRIPT = """
import io, os, pathlib, signal, sys, tempfile
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


with console.stoppable() if sys.argv[1] == "run" else batch_commands._stoppable(pathlib.Path(tempfile.mkdtemp()), 60):
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(Terminal()), line_buffering=True)
    for line in ("first", "second", "third"):
        print(line, file=sys.stderr)
        console.err.print(line)
sys.exit("not interrupted")
"""


@pytest.mark.parametrize(("command", "interrupts"), [("run", 2), ("batch", 3)])
def test_an_interrupt_during_a_write_is_no_error(command: str, interrupts: int) -> None:
    import subprocess

    process = Process([sys.executable, "-c", SCRIPT, command], stderr=subprocess.PIPE, text=True, env=environment())
    _, output = process.communicate(timeout=120)
    assert process.returncode == console.INTERRUPTED, output
    assert "reentrant" not in output
    assert "Traceback" not in output
    assert output.count("Ctrl-C again") == interrupts - 1


@pytest.mark.parametrize("block", [console.stoppable, lambda: batch_commands._stoppable(Path("nowhere"), 60)])
def test_the_previous_handler_is_restored(block: Callable[[], AbstractContextManager[Any]]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with block():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
