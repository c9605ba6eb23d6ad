"""``gems memory``: look after the memory of past runs."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from gems.cli.arguments import AsJson, with_settings
from gems.cli.console import err, guarded, out, print_json

if TYPE_CHECKING:
    from gems.graph.context import GemsContext
    from gems.memory.care import RememberedRun

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="""Look after the memory of past runs: $GEMS_HOME/memory, or another folder with --folder.

[bold]gems memory search "three cats"[/bold] shows what a run with this prompt would recall.

A damaged index loses no records: it is rebuilt from them.""",
)

Folder = Annotated[Path | None, typer.Option("--folder", help="The memory's folder.", show_default="$GEMS_HOME/memory")]
Everyone = Annotated[str | None, typer.Option("--user", help="Only this user's memory.")]


@app.command()
@guarded
def stats(*, folder: Folder = None, as_json: AsJson = False) -> None:
    """Show how much is remembered, of whose runs, and how many of them were solved."""
    from gems.memory import care

    figures = care.stats(_folder(folder))
    if as_json:
        print_json(asdict(figures))
        return
    index = "none needed: so few vectors are compared one by one"
    if figures.indexed:
        index = f"on disk, {figures.indexed} vectors"
    _print_facts(
        {
            "folder": str(_folder(folder)),
            "records": str(figures.records),
            "vectors": str(figures.vectors),
            "index": index,
            "embedder": figures.embedder,
            "on disk": decimal(figures.size),
        }
    )
    if figures.users:
        table = Table("user", "runs", "solved", "experiences")
        for user, counts in figures.users.items():
            table.add_row(escape(user), *(str(counts[name]) for name in ("runs", "solved", "experiences")))
        out.print(table)


@app.command()
@guarded
@with_settings("user", "generator", "embedder")
def search(
    text: Annotated[str, typer.Argument(help="A prompt, as for gems generate.")],
    *,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Maximum results.")] = 5,
    context: GemsContext,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run with this prompt would recall, the most relevant first.

    near: how close the prompts are in meaning. relevance: that, the demands that both make, past usefulness, and
    diversity. use: how much better runs that recalled it were than others like them.
    """
    from gems.memory.embedder import init_embedder
    from gems.memory.experience import recall
    from gems.memory.records import existing_memory
    from gems.memory.store import FaissStore

    path, embedder = existing_memory(_folder(folder)), init_embedder(context.embedder)
    with closing(FaissStore(path, embedder=embedder, read_only=True)) as store:
        memories = recall(store, context.user, text, limit, generator=context.generator)
    if as_json:
        print_json([memory.model_dump(mode="json") for memory in memories])
        return
    if not memories:
        err.print("nothing similar is remembered", highlight=False)
        return
    table = Table(Column("best run", no_wrap=True), Column("why", no_wrap=True), "prompt, and what was drawn for it")
    for memory in memories:
        why = (
            f"relevance {memory.relevance:.2f}",
            f"near {memory.similarity:.2f}",
            f"use {memory.usefulness:+.2f}",
            f"solved {memory.solved_count} of {memory.count}",
        )
        table.add_row(
            escape(memory.run), "\n".join(why), f"{escape(memory.prompt)}\n[dim]{escape(memory.best_prompt)}[/]"
        )
    out.print(table)


@app.command()
@guarded
def show(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="A run's id, or its beginning.")],
    *,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Show everything that is remembered of one run."""
    from gems.memory import care

    past = care.find(_folder(folder), run_id)
    if as_json:
        print_json(_row(past))
        return
    run = past.trajectory
    _print_facts(
        {
            "run": past.id,
            "user": past.user,
            "when": f"{past.when:%Y-%m-%d %H:%M} UTC",
            "prompt": run.prompt,
            "outcome": f"{run.outcome}, score {run.score:.2f}, {run.rounds} rounds, {run.images} images",
            "models": f"{run.generator}, {run.mllm}",
            "skills": ", ".join(run.skills) or "none",
            "learned": run.experience or "nothing",
        }
    )
    table = Table("", "strategy", "score", "generation prompt", "did not pass", "image")
    for number, attempt in enumerate(run.attempts, start=1):
        score = f"{attempt.score:.2f}" if attempt.verdicts or attempt.score else "not checked"
        failed_checks = "\n".join(attempt.failed_questions)
        cells = (str(number), attempt.strategy, score, attempt.prompt, failed_checks, attempt.image.sha256[:12])
        table.add_row(*map(escape, cells))
    out.print(table)


@app.command("export")
@guarded
def export(
    file: Annotated[Path | None, typer.Argument(help="A file to write; default: stdout.")] = None,
    *,
    folder: Folder = None,
) -> None:
    """Write every record, with its times, as a line of JSON. Vectors are left out: an import computes them again."""
    from gems.files import atomic_replacement
    from gems.memory.transfer import export_lines

    lines = export_lines(_folder(folder))
    if file is None:
        for line in lines:
            sys.stdout.write(line + "\n")
        return
    with atomic_replacement(file) as draft, draft.open("w", encoding="utf-8") as target:
        count = sum(target.write(line + "\n") > 0 for line in lines)
    err.print(f"{count} records in {escape(str(file))}", highlight=False, soft_wrap=True)


@app.command("import")
@guarded
@with_settings("embedder")
def import_(
    file: Annotated[Path, typer.Argument(help="A file that gems memory export wrote.", exists=True, dir_okay=False)],
    *,
    own: Annotated[
        bool,
        typer.Option(
            "--own",
            help="The file is from your own runs: also take over which prompts are solved, so that --reuse returns "
            "their images.",
        ),
    ] = False,
    folder: Folder = None,
    context: GemsContext,
    as_json: AsJson = False,
) -> None:
    """Add exported records, replacing those with the same key; doing it twice changes nothing.

    Every line is checked. The first one that is no record stops the import, with its number; those before it stay.
    """
    from gems.memory.embedder import init_embedder
    from gems.memory.store import FaissStore
    from gems.memory.transfer import import_lines, read_lines

    with closing(FaissStore(_folder(folder), embedder=init_embedder(context.embedder))) as store, _bar() as bar:
        task = bar.add_task("Embedding", total=None)
        result = import_lines(store, read_lines(file), lambda count: bar.update(task, completed=count), own=own)
    if as_json:
        left_out = {"solved_prompts": result.solved_notes, "expired": result.expired}
        print_json({"imported": result.records, "left_out": left_out})
        return
    err.print(f"{_records(result.records)} imported", highlight=False)
    for count, kind, reason in (
        (
            result.solved_notes,
            " of solved prompts",
            ": --own takes over which prompts are solved, from a file of your own runs",
        ),
        (result.expired, "", ": the time to live is over"),
    ):
        if count:
            err.print(f"{_records(count)}{kind} left out{reason}", highlight=False, soft_wrap=True)


def _records(count: int) -> str:
    return f"{count} record{'' if count == 1 else 's'}"


@app.command()
@guarded
def forget(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of runs.")] = None,
    *,
    prompt: Annotated[str | None, typer.Option(help="Only runs with exactly this prompt.")] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, max=36500, help="Only runs that are at least this many days old.")
    ] = None,
    user: Everyone = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="Delete their images too, unless another run of this memory refers to them. Do not use it if another "
            "memory may.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Forget runs and what they taught. This cannot be undone.

    What a run left elsewhere stays: its folder under --out, its settings and checkpoints in $GEMS_HOME, and skills
    learned from it in $GEMS_HOME/skills.
    """
    from gems.errors import InputError
    from gems.memory import care
    from gems.memory.image_store import ImageStore

    if not (ids or prompt or user or older_than is not None):
        raise InputError("say which runs: ids, --prompt, --older-than or --user")
    age = None if older_than is None else timedelta(days=older_than)
    choice = care.Selection(tuple(ids or ()), user, prompt, age)
    runs = [past for past in care.remembered_runs(_folder(folder)) if choice.includes(past)]
    if unknown := set(ids or ()) - {past.id for past in runs}:
        raise InputError(f"no such run is remembered: {', '.join(sorted(unknown))}; nothing was forgotten")
    alone = care.count_orphans(_folder(folder), choice)
    what = f"{len(runs)} runs{f' and {alone} experiences' if alone else ''}{' and their images' if images else ''}"
    if (runs or alone) and not yes and not typer.confirm(f"Forget {what}?", err=True):
        raise typer.Exit(1)
    result = care.forget(_folder(folder), choice, ImageStore() if images else None)
    counts = {"experiences": result.experiences, "images": result.images}
    if as_json:
        print_json({"forgotten": [past.id for past in result.runs], **counts, "overwritten": result.overwritten})
        return
    summary = ", ".join(f"{name} {count}" for name, count in {"runs": len(result.runs), **counts}.items())
    out.print(f"forgotten: {summary}", highlight=False)
    if not result.overwritten:
        err.print(
            "another process has the memory open: traces stay in its file until that process closes it", highlight=False
        )


@app.command()
@guarded
@with_settings("embedder")
def compact(*, folder: Folder = None, context: GemsContext) -> None:
    """Rebuild the index, and free the space of removed records."""
    from gems.memory.care import size_of
    from gems.memory.embedder import init_embedder
    from gems.memory.records import existing_memory
    from gems.memory.store import FaissStore

    path = existing_memory(_folder(folder))
    size_before = size_of(path)
    with closing(FaissStore(path, embedder=init_embedder(context.embedder))) as store:
        store.compact()
    out.print(f"{decimal(size_before)} before, {decimal(size_of(path))} now", highlight=False)


@app.command("reindex")
@guarded
@with_settings("embedder")
def reindex_(*, context: GemsContext, folder: Folder = None) -> None:
    """Embed every record again with another embedder. If it is stopped half-way, the same command resumes."""
    from gems.memory.embedder import init_embedder
    from gems.memory.records import existing_memory
    from gems.memory.store import reindex

    path, embedder = existing_memory(_folder(folder)), init_embedder(context.embedder)
    with _bar() as bar:
        task = bar.add_task("Embedding", total=None)
        count = reindex(path, embedder, lambda completed, total: bar.update(task, completed=completed, total=total))
    out.print(f"{count} records embedded with {escape(context.embedder)}", highlight=False)


@app.command()
@guarded
def verify(
    *,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOCATION",
            help="Where images are kept; may be repeated, for the folders of batches. Other places that records name "
            "are not opened.",
            show_default="$GEMS_IMAGES, or $GEMS_HOME/images",
        ),
    ] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Check that records, vectors, index and images are intact, and say how to repair them. Exit code 1 if not."""
    from gems.memory import care
    from gems.memory.image_store import ImageStore

    checks = []
    stores = [ImageStore(location, create=False) for location in images or ()] or [ImageStore(create=False)]
    for name, is_right, detail in care.verify(_folder(folder), stores):
        checks.append({"name": name, "ok": is_right, "detail": detail})
        if not as_json:
            mark = "[green]✓[/]" if is_right else "[red]✗[/]"
            out.print(f"{mark} {escape(name)}: {escape(detail)}")
    if as_json:
        print_json(checks)
    raise typer.Exit(0 if all(check["ok"] for check in checks) else 1)


def _folder(option: Path | None) -> Path:
    """The memory's folder: as given, or as in ``GEMS_MEMORY``, or the one in the home folder.

    Raises:
        InputError: ``GEMS_MEMORY`` or the option names a database.
    """
    from gems.database import is_database
    from gems.errors import InputError
    from gems.paths import home_folder

    location = str(option or os.environ.get("GEMS_MEMORY") or home_folder() / "memory")
    if is_database(location) or ":/" in location:
        raise InputError("gems memory looks after folders, not databases: give a folder with --folder")
    return Path(location).expanduser()


def _row(past: RememberedRun) -> dict[str, Any]:
    run = {"id": past.id, "user": past.user, "when": past.when.isoformat()}
    return run | past.trajectory.model_dump(mode="json")


def _print_facts(facts: dict[str, str]) -> None:
    """A table of names and values."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, escape(value))
    out.print(table)


def _bar() -> Progress:
    return Progress(console=err, transient=True, disable=not err.is_terminal)
