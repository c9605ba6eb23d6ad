"""The end of a run on the console: what its best image was checked against, how it ended, and where its files are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.table import Table

from gems.cli.console import BACKEND_FAILURE, BEST_EFFORT, INTERRUPTED, SOLVED, err, out

if TYPE_CHECKING:
    from gems.graph.state import Answer, Outcome

__all__ = ["MARKS", "CheckedRequirement", "RunSummary", "exit_code", "print_summary"]

MARKS: Final[dict[Answer, str]] = {"yes": "[green]✓[/]", "no": "[red]✗[/]", "unsure": "[yellow]?[/]"}

_EXIT_CODES: Final = {"solved": SOLVED, "accepted": SOLVED, "failed": BACKEND_FAILURE, "cancelled": INTERRUPTED}

_ENDINGS: Final = {
    "solved": "solved",
    "accepted": "accepted",
    "rounds": "not solved: rounds used up",
    "budget": "not solved: budget used up",
    "stalled": "not solved: no better image in sight",
    "cancelled": "stopped",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class CheckedRequirement:
    """A requirement, and the verifier's answer for the best image; None if there is none."""

    question: str
    kind: str
    skill: str
    answer: Answer | None
    confidence: float
    reason: str


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What is printed of a run that has ended."""

    prompt: str
    outcome: Outcome
    score: float
    rounds: int
    images: int
    chat_calls: int
    seconds: float
    requirements: Sequence[CheckedRequirement]
    """Empty without an image."""
    errors: Sequence[str]
    notes: Sequence[str]
    """What models have the user know."""
    shown_notes: Collection[str] = ()
    """Those of the notes that the terminal has told already."""
    killed: str = ""
    """What was in flight at a kill, in words; empty if there was nothing, or if nobody says."""


def exit_code(outcome: Outcome) -> int:
    """The exit code of a command whose run ended so."""
    return _EXIT_CODES.get(outcome, BEST_EFFORT)


def print_summary(summary: RunSummary, paths: Mapping[str, Path | None]) -> None:
    """Print a run's end: a table, a line, its notes and errors, and its files."""
    if summary.requirements:
        _print_requirements(summary)
    _print_outcome(summary)
    for line in (*(note for note in summary.notes if note not in summary.shown_notes), *summary.errors):
        err.print(f"[yellow]note:[/] {escape(line)}", highlight=False, soft_wrap=True)
    for name, path in paths.items():
        if path is not None:
            out.print(f"{name:>7}: {escape(str(path))}", highlight=False, soft_wrap=True)


def _print_requirements(summary: RunSummary) -> None:
    table = Table("", "requirement", "kind", "confidence", "seen", title=escape(summary.prompt), title_style="bold")
    for row in summary.requirements:
        question = escape(row.question) + (f" [dim]({escape(row.skill)})[/]" if row.skill else "")
        if row.answer is None:
            table.add_row("", question, escape(row.kind), "", "not checked")
        else:
            table.add_row(MARKS[row.answer], question, escape(row.kind), f"{row.confidence:.2f}", escape(row.reason))
    out.print(table)


def _print_outcome(summary: RunSummary) -> None:
    style = "green" if summary.outcome in ("solved", "accepted") else "yellow"
    rounds, images, calls = summary.rounds, summary.images, summary.chat_calls
    is_checked = not summary.requirements or any(row.answer for row in summary.requirements)
    score = f"score {summary.score:.2f}" if is_checked else "not checked"
    ending = f"[{style}]{_ENDINGS[summary.outcome]}[/]{escape(_without(summary))}"
    out.print(
        f"{ending} after {rounds} round{_plural(rounds)}, {score}; "
        f"{images} image{_plural(images)}, {calls} chat call{_plural(calls)}, {summary.seconds:.1f} s of work"
        + (f"; {summary.killed}" if summary.killed else ""),
        highlight=False,
    )


def _without(summary: RunSummary) -> str:
    """What an image lacks although it counts as right: words of the prompt that the models left out."""
    if summary.outcome not in ("solved", "accepted"):
        return ""
    words = [note.removeprefix(_LEFT_OUT) for note in summary.notes if note.startswith(_LEFT_OUT)]
    return f", without: {', '.join(words)}," if words else ""


_LEFT_OUT: Final = "left out: "
"""How the embedded models' notes on such words begin."""


def _plural(count: int) -> str:
    return "" if count == 1 else "s"
