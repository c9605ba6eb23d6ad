"""``gems generate`` and ``gems replay``: one run, and its images made again."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from gems.cli.arguments import (
    LIMIT_SETTINGS,
    MEMORY_SETTINGS,
    MODEL_SETTINGS,
    OUTPUT,
    SKILL_SETTINGS,
    AsJson,
    Quiet,
    given_options,
    with_settings,
)
from gems.cli.console import (
    BACKEND_FAILURE,
    BEST_EFFORT,
    INTERRUPTED,
    SOLVED,
    err,
    guarded,
    out,
    print_json,
    stoppable,
    yes_or_no,
)

if TYPE_CHECKING:
    from gems.graph.context import GemsContext
    from gems.runs.record import Evidence
    from gems.runs.sessions import Session

__all__ = ["generate", "replay"]

_WITH_RESUME: Final = frozenset({"resume", "folder", "memory", "as_json", "quiet"})
"""Options of ``gems generate`` that do not change the run itself."""

_EXIT_CODES: Final = {"solved": SOLVED, "accepted": SOLVED, "failed": BACKEND_FAILURE, "cancelled": INTERRUPTED}

_ENDINGS: Final = {
    "solved": "solved",
    "accepted": "accepted",
    "rounds": "not solved: rounds used up",
    "budget": "not solved: budget used up",
    "stalled": "not solved: no progress",
    "cancelled": "stopped",
    "failed": "failed",
}


@guarded
@with_settings(*MODEL_SETTINGS, *SKILL_SETTINGS, *MEMORY_SETTINGS, "reuse", *LIMIT_SETTINGS, "seed", "images")
def generate(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the image should show.")] = None,
    *,
    context: GemsContext,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Resume a run that was stopped.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the evidence of runs. With --resume, the run's own by default.",
            show_default="gems-out",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw one image, and show why it is right.

    [bold]gems generate "two red cars behind a dog" --seed 7[/bold]

    [bold]gems generate --resume two-red-cars-behind-a-dog-3f9a2c[/bold]

    Every run leaves OUT/RUN/ with all its images, run.json and report.html.
    """
    from gems.errors import InputError

    if resume is not None:
        _check_resume(prompt, given_options(ctx))
    elif prompt is None:
        raise InputError('say what the image should show: gems generate "three blue cars"')
    with err.status("loading the models") if err.is_terminal and not quiet else nullcontext():
        from gems.runs.record import write_evidence
        from gems.runs.sessions import begin_run, resume_run

        if resume is not None:
            new_memory = context.memory_url if "memory" in given_options(ctx) else None
            session = resume_run(
                resume, out=folder, memory_url=new_memory.get_secret_value() if new_memory is not None else None
            )
        else:
            session = begin_run(prompt or "", context, folder or Path("gems-out"))
    record = _run(session, quiet=quiet)
    evidence = write_evidence(session.thread.out / session.thread.id, record, session.images)
    _print_run(record, evidence, as_json=as_json)
    if record["outcome"] == "cancelled":
        err.print(f"stopped; resume it: gems generate --resume {session.thread.id}", highlight=False, soft_wrap=True)
    raise typer.Exit(_EXIT_CODES.get(record["outcome"], BEST_EFFORT))


def _check_resume(prompt: str | None, options: set[str]) -> None:
    """Refuse what a resumed run does not take: it keeps its own prompt and settings."""
    from gems.errors import InputError

    if prompt is not None:
        raise InputError("--resume keeps a run's own prompt: leave the prompt out, or start a new run")
    for name in sorted(options - _WITH_RESUME):
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"--resume keeps a run's own settings: leave out {option}, or start a new run")


def _run(session: Session, *, quiet: bool) -> dict[str, Any]:
    """Run a session, and show its progress. Returns the run's record."""
    from gems.cli.live import LiveRun
    from gems.runs.sessions import run_to_end

    run_id = session.thread.id
    if not quiet:
        hint = f"[dim]run {run_id}; to resume it: gems generate --resume {run_id}[/]"
        err.print(hint, highlight=False, soft_wrap=True)
    with stoppable() as control, LiveRun(err) if not quiet else nullcontext() as live:
        ending = run_to_end(session, listener=live, control=control)
    if ending.had_ended:
        err.print("this run had ended already; this is how it ended", highlight=False)
    return ending.record


def _print_run(record: dict[str, Any], evidence: Evidence, *, as_json: bool) -> None:
    if as_json:
        paths = {
            "folder": str(evidence.folder),
            "image": str(evidence.image) if evidence.image else None,
            "record": str(evidence.record),
            "report": str(evidence.report),
        }
        print_json({**record, "paths": paths})
        return
    if record["best"] is not None:
        _print_requirements(record, record["attempts"][record["best"]])
    _print_outcome(record)
    for error in record["errors"]:
        err.print(f"[yellow]note:[/] {escape(error)}", highlight=False, soft_wrap=True)
    for name, path in (("image", evidence.image), ("record", evidence.record), ("report", evidence.report)):
        if path is not None:
            out.print(f"{name:>7}: {path}", highlight=False, soft_wrap=True)


def _print_requirements(record: dict[str, Any], best: dict[str, Any]) -> None:
    """A table of what the best image was checked against, with the verifier's answers."""
    from gems.cli.live import MARKS

    verdicts = {verdict["requirement_id"]: verdict for verdict in (*best["verdicts"], *best.get("checks", []))}
    title = escape(record["prompt"])
    table = Table("", "requirement", "kind", "confidence", "seen", title=title, title_style="bold")
    for requirement in (*record["requirements"], *record.get("checks", [])):
        skill = f" [dim]({escape(requirement['skill'])})[/]" if requirement.get("skill") else ""
        question, kind = escape(requirement["question"]) + skill, requirement["kind"]
        verdict = verdicts.get(requirement["id"])
        if verdict is None:
            table.add_row("", question, kind, "", "not checked")
        else:
            confidence, reason = f"{verdict['confidence']:.2f}", escape(verdict["reason"])
            table.add_row(MARKS[verdict["answer"]], question, kind, confidence, reason)
    out.print(table)


def _print_outcome(record: dict[str, Any]) -> None:
    """How the run ended and what it cost, in one line."""
    usage = record["usage"]
    style = "green" if record["outcome"] in ("solved", "accepted") else "yellow"
    rounds = record["attempts"][-1]["round"] if record["best"] is not None else 0
    out.print(
        f"[{style}]{_ENDINGS[record['outcome']]}[/] after {rounds} round{_plural(rounds)}, "
        f"score {record['score']:.2f}; {usage['images']} image{_plural(usage['images'])}, "
        f"{usage['chat_calls']} chat call{_plural(usage['chat_calls'])}, {usage['seconds']:.1f} s of work",
        highlight=False,
    )


def _plural(count: int) -> str:
    return "" if count == 1 else "s"


@guarded
def replay(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its run.json.")], *, as_json: AsJson = False
) -> None:
    """Make every image of a run again and compare it, byte for byte. Exit code 0: all are the same; 1: some differ."""
    from gems.runs.record import load_record
    from gems.runs.replay import replay as make_again

    folder, record = load_record(run)
    results = list(make_again(folder, record))
    if as_json:
        print_json(
            [{"file": r.file, "seed": r.seed, "record": r.same_as_record, "disk": r.same_as_file} for r in results]
        )
    else:
        table = Table("image", "seed", "as recorded", "as on disk")
        for r in results:
            table.add_row(r.file, str(r.seed), yes_or_no(r.same_as_record), yes_or_no(r.same_as_file))
        out.print(table)
    raise typer.Exit(0 if all(r.same for r in results) else 1)
