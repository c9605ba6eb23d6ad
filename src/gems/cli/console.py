"""What all commands share: consoles, exit codes, one-line errors, Ctrl-C and progress bars."""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from gems.json_text import strict_json
from gems.printable import printable

if TYPE_CHECKING:
    from langgraph.runtime import RunControl

    from gems.bulk.results import BatchRow, Tally
    from gems.graph.state import Prices, Usage

SOLVED, BEST_EFFORT, BAD_INPUT, BACKEND_FAILURE, LIMIT_REACHED, INTERRUPTED = 0, 1, 2, 3, 4, 130


class _SafeConsole(Console):
    """A console on which text of strangers (servers, models, records, file names) stays text.

    Control characters are removed from everything that is shown, and names such as ``:x:`` do not become emoji. Square
    brackets are markup unless they are escaped.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See ``Console.render``."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


out, err = _SafeConsole(), _SafeConsole(stderr=True)

P = ParamSpec("P")
R = TypeVar("R")

_MAX_MESSAGE: Final = 4000
"""Characters of an error that are shown: it may quote a text of any length, such as a name in somebody's record."""
_SHOW_CURSOR: Final = b"\x1b[?25h"

_SPEED_PERIOD: Final = 3600
"""Seconds over which a bar estimates its speed: a prompt of a large model can take minutes."""


def prepare_streams() -> None:
    """Let nothing that cannot be shown end the work, whose exit code is told in any case.

    A terminal that cannot show a character, such as a check mark, shows a question mark instead. What is written once
    the reader is gone, as behind ``| head``, goes nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
            if stream is getattr(sys, f"__{name}__"):  # else it is somebody's own, such as a test's
                setattr(sys, name, _outliving(stream))


def _outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream, which outlives its reader."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Outlet(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Outlet(io.FileIO):
    """A file descriptor that is turned to nowhere once its reader is gone."""

    def write(self, data: Any, /) -> int:
        """See ``io.FileIO.write``."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def print_json(value: Any) -> None:
    """Print one line of JSON to standard output, for scripts."""
    sys.stdout.write(strict_json(value) + "\n")


def yes_or_no(is_right: bool) -> str:
    """A check mark or a cross, with its word."""
    return "[green]✓ yes[/]" if is_right else "[red]✗ no[/]"


# --- errors and signals ---------------------------------------------------------------------------------------------


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors into one line on stderr and the right exit code; GEMS_DEBUG=1 shows the traceback instead.

    SIGTERM ends a command as Ctrl-C does, unless the command knows better.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from gems.errors import BackendError, InputError
        from gems.secrets import conceal, one_line

        _quiet_libraries()
        try:
            with _terminated_as_interrupted():
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            notify("stopped")
            raise typer.Exit(INTERRUPTED) from None
        except (InputError, BackendError, OSError, sqlite3.Error) as error:
            if os.environ.get("GEMS_DEBUG"):
                raise
            message = conceal(_message_of(error))
            message = message if len(message) <= _MAX_MESSAGE else f"{message[: _MAX_MESSAGE - 4]} ..."
            err.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
            raise typer.Exit(BAD_INPUT if isinstance(error, InputError) else BACKEND_FAILURE) from None
        except Exception as error:  # of a model that is the user's own code, or a bug: Python's own code is 1
            if os.environ.get("GEMS_DEBUG") or isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                raise
            reason = one_line(conceal(f"{type(error).__name__}: {error}"), _MAX_MESSAGE)
            err.print(f"[red]error:[/] {escape(reason)}; GEMS_DEBUG=1 shows where", highlight=False, soft_wrap=True)
            raise typer.Exit(BACKEND_FAILURE) from None

    return run


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do in the block what Ctrl-C does: files are closed, drafts are removed, and the exit code is 130."""

    def on_terminate(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # A process that was started to ignore the signal still does; and only the main thread may handle it.
    is_ours = threading.current_thread() is threading.main_thread()
    if is_ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with handling(on_terminate, signal.SIGTERM):
            yield
    else:
        yield


def _message_of(error: Exception) -> str:
    """What happened and, where this program does not say it itself, what to do about a disk or a folder."""
    if isinstance(error, sqlite3.Error) and any(text in str(error) for text in _DISK_FAULTS):
        return f"{error}{_ADVICE[errno.ENOSPC]}"
    if not isinstance(error, OSError) or error.errno is None or not error.strerror:
        return str(error)
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}{_ADVICE.get(error.errno, '')}"


_DISK_FAULTS: Final = ("disk is full", "disk I/O error")
"""What SQLite says if a file cannot grow."""
_ADVICE: Final = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        "; free some space, and run the same command again: nothing that was finished is lost",
    ),
    errno.EFBIG: "; the file system, or a limit such as that of ulimit -f, allows no larger file",
    errno.EROFS: "; choose a folder that can be written to",
    errno.EACCES: "; check who may read and write there, or choose another folder",
}
"""What to do about an error of the operating system."""


def _quiet_libraries() -> None:
    """Silence loading bars, warnings about answers, and what libraries report to their makers.

    The user may have set the variables, or asked Python for warnings.
    """
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Diffusers imports ONNX Runtime if it is installed, which reports the machine to Microsoft at once.
        "ORT_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        # State types are declared: a checkpoint file can give nothing else.
        "LANGGRAPH_STRICT_MSGPACK": "true",
    }.items():
        os.environ.setdefault(name, value)
    for package in ("langchain_ollama", "langchain_google_genai", "langchain_anthropic", "google_genai"):
        logging.getLogger(package).setLevel(logging.ERROR)  # what they warn of in an answer, we read and tell
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"google\.genai|langchain_|pydantic\.|PIL\.")


def notify(text: str) -> None:
    """Write a line to stderr from a signal handler, past the buffers.

    The signal may have interrupted a write, and Python's buffered streams refuse a second one within it.
    """
    with suppress(OSError, ValueError):  # stderr is closed, or is no file
        os.write(sys.stderr.fileno(), f"{text}\n".encode())


def exit_at_once() -> NoReturn:
    """End the process without waiting for its worker threads; every finished step is on disk already."""
    with suppress(OSError, ValueError):
        if os.isatty(sys.stderr.fileno()):
            os.write(sys.stderr.fileno(), _SHOW_CURSOR)
    os._exit(INTERRUPTED)


@contextmanager
def stoppable(grace: float = 30.0) -> Iterator[RunControl]:
    """Let the first Ctrl-C stop the run after its current step, and the second one at once.

    SIGTERM is like the first one, and ends the process after some seconds at the latest: nobody may be there to send
    another signal.

    Args:
        grace: So many seconds.
    """
    from langgraph.runtime import RunControl

    control = RunControl()
    timer = threading.Timer(grace, exit_at_once)
    timer.daemon = True

    def on_signal(number: int, _: object) -> None:
        if control.drain_requested:
            exit_at_once()
        control.request_drain("interrupted")
        if number == signal.SIGTERM:
            timer.start()
        notify("stopping after this step; Ctrl-C again to stop at once")

    with handling(on_signal, signal.SIGINT, signal.SIGTERM):
        try:
            yield control
        finally:
            timer.cancel()


@contextmanager
def handling(handler: Callable[..., None], *signals: signal.Signals) -> Iterator[None]:
    """Install a signal handler for the duration of the block, then restore the previous ones."""
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)


# --- progress over prompts ------------------------------------------------------------------------------------------


@contextmanager
def batch_bar(
    total: int, *, what: str = "", quiet: bool, prices: Prices | None = None
) -> Iterator[tuple[Callable[[Tally], None], Callable[[BatchRow], None]]]:
    """Show a progress bar over prompts. Gives two functions to call: with the tally so far, and with each new result.

    Args:
        total: Number of prompts.
        what: What the prompts are run for, shown in front of the bar.
        quiet: Whether to show no bar.
        prices: For showing what was spent, in money. None: spending is not shown.
    """
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[spending]}"),
    )
    with Progress(
        *([TextColumn("{task.fields[what]}", markup=False)] if what else []),
        *columns,
        console=err,
        disable=quiet or not err.is_terminal,
        speed_estimate_period=_SPEED_PERIOD,
    ) as progress:
        task = progress.add_task("", total=total, rate="", spending="", what=what)
        bar = _BatchBar(progress, task, total, f"{what}: " if what else "", prices, quiet=quiet)
        yield bar.start, bar.add


class _BatchBar:
    """A bar's numbers; where the console is no terminal, a line of text for every twentieth of the prompts."""

    def __init__(
        self, progress: Progress, task: TaskID, total: int, prefix: str, prices: Prices | None, *, quiet: bool
    ) -> None:
        from gems.bulk.results import Tally

        self._progress, self._task, self._total = progress, task, total
        self._prefix, self._prices, self._quiet = prefix, prices, quiet
        self._tally, self._count, self._started = Tally(), 0, time.monotonic()
        self._prompts_per_line = max(10, total // 20)

    def start(self, before: Tally) -> None:
        """Take over what earlier starts have done."""
        from gems.bulk.results import Tally

        self._tally = Tally(Counter(before.outcomes), before.usage, dict(before.open_runs))
        self._progress.update(self._task, completed=before.done, spending=self._spending())
        if before.done and not self._quiet:
            err.print(f"{escape(self._prefix)}{before.done} of {self._total} prompts were done before", highlight=False)

    def add(self, row: BatchRow) -> None:
        """Count a new result."""
        self._count += 1
        self._tally.add(row)
        solved, count = self._tally.outcomes["solved"], self._tally.done
        rate = f"{60 * self._count / (time.monotonic() - self._started):.1f} per minute"
        description, spending_ = f"{solved} of {count} solved", self._spending()
        self._progress.update(self._task, advance=1, description=description, rate=rate, spending=spending_)
        if not self._quiet and not err.is_terminal and count % self._prompts_per_line == 0:
            details = f", {rate}, {spending_}" if self._prices is not None else ""
            err.print(f"{escape(self._prefix)}{count} prompts, {solved} solved{details}", highlight=False)

    def _spending(self) -> str:
        return spending(self._tally.usage, self._prices) if self._prices is not None else ""


def spending(usage: Usage, prices: Prices) -> str:
    """What was spent, to the unit: images, calls and tokens if there were any, money if there are prices."""
    parts = [f"{usage.images:,} images"]
    parts += [f"{usage.chat_calls:,} chat calls"] * (usage.chat_calls > 0)
    parts += [f"{usage.tokens:,} tokens"] * (usage.tokens > 0)
    if cost := round(prices.cost(usage), 4):
        parts.append(f"cost {cost:,}")
    return ", ".join(filter(None, [*parts, usage.lost_in_words]))
