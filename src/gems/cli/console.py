"""What all commands share: consoles, exit codes, one-line errors, Ctrl-C and progress bars."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from langgraph.runtime import RunControl

    from gems.bulk.results import BatchRow, Tally
    from gems.graph.state import Prices, Usage

SOLVED, BEST_EFFORT, BAD_INPUT, BACKEND_FAILURE, LIMIT_REACHED, INTERRUPTED = 0, 1, 2, 3, 4, 130

for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="replace")  # a terminal that knows no check marks shows question marks

out, err = Console(), Console(stderr=True)

P = ParamSpec("P")
R = TypeVar("R")
"""One line of a batch's results.jsonl."""


def print_json(value: Any) -> None:
    """One line of JSON on standard output, for scripts."""
    sys.stdout.write(json.dumps(value) + "\n")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors into one line on stderr and the right exit code; GEMS_DEBUG=1 shows the traceback instead."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from gems.errors import BackendError, InputError
        from gems.secrets import conceal

        _quiet_libraries()
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output has gone: the command line library ends quietly
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except (InputError, BackendError, OSError, sqlite3.Error) as error:
            if os.environ.get("GEMS_DEBUG"):
                raise
            err.print(f"[red]error:[/] {escape(conceal(str(error)))}", highlight=False, soft_wrap=True)
            raise typer.Exit(BAD_INPUT if isinstance(error, InputError) else BACKEND_FAILURE) from None

    return run


def _quiet_libraries() -> None:
    """Loading bars and hub look-ups of the model libraries are noise here; the user's own settings win."""
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        # State types are declared: nothing else may come out of a checkpoint file.
        "LANGGRAPH_STRICT_MSGPACK": "true",
    }.items():
        os.environ.setdefault(name, value)


@contextmanager
def stoppable() -> Iterator[RunControl]:
    """Ctrl-C once asks the run to stop at the next step; twice stops at once."""
    from langgraph.runtime import RunControl

    control = RunControl()

    def on_interrupt(*_: object) -> None:
        if control.drain_requested:
            err.show_cursor()
            os._exit(INTERRUPTED)  # every step is on disk; worker threads would hold up any other way out
        control.request_drain("interrupted")
        err.print("stopping after this step; Ctrl-C again to stop at once")

    with handling(on_interrupt, signal.SIGINT):
        yield control


@contextmanager
def handling(handler: Callable[..., None], *signs: signal.Signals) -> Iterator[None]:
    """Have signals handled meanwhile; afterwards by what handled them before."""
    before = {sign: signal.signal(sign, handler) for sign in signs}
    try:
        yield
    finally:
        for sign, theirs in before.items():
            signal.signal(sign, theirs)


@contextmanager
def batch_bar(
    total: int, *, what: str = "", quiet: bool, prices: Prices | None = None
) -> Iterator[tuple[Callable[[Tally], None], Callable[[BatchRow], None]]]:
    """A progress bar over prompts. Gives what it is to be called with: how far it had come before, and each new result.

    Args:
        total: How many prompts there are.
        what: What they are run for.
        quiet: No bar.
        prices: For what has been spent, in money; None: spending is not shown.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from gems.bulk.results import Tally

    tally, start, run = Tally(), time.monotonic(), 0
    prefix, step = f"{what}: " if what else "", max(10, total // 20)
    with Progress(
        *([TextColumn(what)] if what else []),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[spent]}"),
        console=err,
        disable=quiet or not err.is_terminal,
        speed_estimate_period=3600,  # seconds; a prompt of a large model can take minutes
    ) as progress:
        task = progress.add_task("", total=total, rate="", spent="")

        def spent() -> str:
            return spending(tally.usage, prices) if prices is not None else ""

        def on_start(before: Tally) -> None:
            nonlocal tally
            tally = Tally(Counter(before.outcomes), before.usage)
            progress.update(task, completed=before.done, spent=spent())
            if before.done and not quiet:
                err.print(f"{prefix}{before.done} of {total} prompts were done before", highlight=False)

        def on_done(row: BatchRow) -> None:
            nonlocal run
            run += 1
            tally.add(row)
            rate = f"{60 * run / (time.monotonic() - start):.1f} a minute"
            solved = f"{tally.outcomes['solved']} of {tally.done} solved"
            progress.update(task, advance=1, description=solved, rate=rate, spent=spent())
            if not quiet and not err.is_terminal and tally.done % step == 0:
                more = f", {rate}, {spent()}" if prices is not None else ""
                err.print(f"{prefix}{tally.done} prompts, {tally.outcomes['solved']} solved{more}", highlight=False)

        yield on_start, on_done


def spending(spent: Usage, prices: Prices) -> str:
    """What was spent, in words: images, tokens if there were any, money if there are prices."""
    parts = [f"{spent.images:,} images"]
    if spent.tokens:
        parts.append(f"{_short(spent.tokens)} tokens")
    if cost := prices.cost(spent):
        parts.append(f"cost {cost:,.2f}")
    return ", ".join(parts)


def _short(n: float) -> str:
    """A large number to three digits: 1234567 is 1.23M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"
