"""``gems memory``: look after what was remembered."""

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

from gems.cli.arguments import AsJson, Embedder, User
from gems.cli.console import err, guarded, out, print_json

if TYPE_CHECKING:
    from gems.memory.care import RememberedRun

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="""Look after what was remembered of past runs: $GEMS_HOME/memory, or another folder with --folder.

[bold]gems memory search "three cats"[/bold] shows what a run with this prompt would recall.

Records are never lost to a damaged index: it is made from them again.""",
)

Folder = Annotated[Path | None, typer.Option("--folder", help="The memory's folder.", show_default="$GEMS_HOME/memory")]
Everyone = Annotated[str | None, typer.Option("--user", help="Only this user's.")]


@app.command()
@guarded
def stats(*, folder: Folder = None, as_json: AsJson = False) -> None:
    """How much there is, whose it is, and how much of it was solved."""
    from gems.memory import care

    found = care.stats(_folder(folder))
    if as_json:
        print_json(asdict(found))
        return
    index = f"on disk, {found.indexed} vectors" if found.indexed else "none needed: so few are compared one by one"
    about = Table(show_header=False, box=None)
    for name, value in {
        "folder": str(_folder(folder)),
        "records": str(found.records),
        "vectors": str(found.vectors),
        "index": index,
        "embedder": found.embedder,
        "on disk": decimal(found.size),
    }.items():
        about.add_row(name, escape(value))
    out.print(about)
    if found.users:
        table = Table("user", "runs", "solved", "experiences")
        for user, counted in found.users.items():
            table.add_row(escape(user), *(str(counted[name]) for name in ("runs", "solved", "experiences")))
        out.print(table)


@app.command()
@guarded
def search(
    text: Annotated[str, typer.Argument(help="A prompt, as for gems generate.")],
    *,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 5,
    user: User = "default",
    folder: Folder = None,
    embedder: Embedder = "minilm",
    as_json: AsJson = False,
) -> None:
    """What past runs have to say about a prompt, as a run would recall it: the most relevant first.

    near: how close the prompts are in meaning. relevance: that, and what both demand, whether it has been of use, and
    diversity. use: what runs that recalled it were worth more than others like them.
    """
    from gems.errors import InputError
    from gems.memory.care import existing_memory
    from gems.memory.embedder import init_embedder
    from gems.memory.experience import recall
    from gems.memory.store import FaissStore

    if not user.strip():
        raise InputError("--user: give a name")
    with closing(FaissStore(existing_memory(_folder(folder)), embedder=init_embedder(embedder))) as store:
        found = recall(store, user, text, limit)
    if as_json:
        print_json([memory.model_dump(mode="json") for memory in found])
        return
    if not found:
        err.print("nothing near to it is remembered", highlight=False)
    table = Table(Column("best run", no_wrap=True), Column("why", no_wrap=True), "asked, and drawn with")
    for memory in found:
        why = (
            f"relevance {memory.relevance:.2f}",
            f"near {memory.similarity:.2f}",
            f"use {memory.usefulness:+.2f}",
            f"solved {memory.solved_count} of {memory.count}",
        )
        table.add_row(memory.run, "\n".join(why), f"{escape(memory.prompt)}\n[dim]{escape(memory.best_prompt)}[/]")
    if found:
        out.print(table)


@app.command()
@guarded
def show(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="A run's id, or its beginning.")],
    *,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Everything that is remembered of one run."""
    from gems.memory import care

    past = care.find(_folder(folder), run_id)
    if as_json:
        print_json(_row(past))
        return
    told = past.trajectory
    about = Table(show_header=False, box=None)
    for name, value in {
        "run": past.id,
        "user": past.user,
        "when": f"{past.when:%Y-%m-%d %H:%M} UTC",
        "prompt": told.prompt,
        "outcome": f"{told.outcome}, score {told.score:.2f}, {told.rounds} rounds, {told.images} images",
        "models": f"{told.generator}, {told.mllm}",
        "skills": ", ".join(told.skills) or "none",
        "learned": told.experience or "nothing",
    }.items():
        about.add_row(name, escape(value))
    out.print(about)
    table = Table("", "strategy", "score", "generation prompt", "did not pass", "image")
    for number, attempt in enumerate(told.attempts, start=1):
        failed = "\n".join(attempt.failed_questions)
        cells = (
            str(number),
            attempt.strategy,
            f"{attempt.score:.2f}",
            attempt.prompt,
            failed,
            attempt.image.sha256[:12],
        )
        table.add_row(*map(escape, cells))
    out.print(table)


@app.command("export")
@guarded
def export(
    file: Annotated[Path | None, typer.Argument(help="A file to write; default: stdout.")] = None,
    *,
    folder: Folder = None,
) -> None:
    """Every record as a line of JSON. Vectors are left out: whoever imports it embeds anew."""
    from gems.memory import care

    lines = care.export_lines(_folder(folder))
    if file is None:
        for line in lines:
            sys.stdout.write(line + "\n")
        return
    aside = file.with_name(file.name + ".part")
    with aside.open("w", encoding="utf-8") as target:
        count = sum(target.write(line + "\n") > 0 for line in lines)
    aside.replace(file)
    err.print(f"{count} records in {file}", highlight=False, soft_wrap=True)


@app.command("import")
@guarded
def import_(
    file: Annotated[Path, typer.Argument(help="What gems memory export wrote.", exists=True, dir_okay=False)],
    *,
    folder: Folder = None,
    embedder: Embedder = "minilm",
) -> None:
    """Take exported records in, in place of those with the same key; doing it twice changes nothing."""
    from gems.errors import InputError
    from gems.memory.care import import_lines
    from gems.memory.embedder import init_embedder
    from gems.memory.store import FaissStore

    with (
        closing(FaissStore(_folder(folder), embedder=init_embedder(embedder))) as store,
        file.open(encoding="utf-8") as lines,
        _bar() as bar,
    ):
        task = bar.add_task("Embedding", total=None)
        try:
            count = import_lines(store, lines, lambda done: bar.update(task, completed=done))
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is no UTF-8 text: {error}") from None
    err.print(f"{count} records taken in", highlight=False)


@app.command()
@guarded
def forget(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of runs.")] = None,
    *,
    prompt: Annotated[str | None, typer.Option(help="Only runs with exactly this prompt.")] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, max=36500, help="Only runs from so many days ago or before.")
    ] = None,
    user: Everyone = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="Their images too, where no other run of this memory refers to them. Not if another memory may.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Forget runs and what they taught. There is no way back.

    What a run left elsewhere stays: its folder under --out, its settings and checkpoints in $GEMS_HOME, and in
    $GEMS_HOME/skills what was learned from it.
    """
    from gems.errors import InputError
    from gems.memory import care
    from gems.memory.image_store import ImageStore

    if not (ids or prompt or user or older_than is not None):
        raise InputError("say which runs: ids, --prompt, --older-than or --user")
    age = None if older_than is None else timedelta(days=older_than)
    selection = care.Selection(tuple(ids or ()), user, prompt, age)
    meant = [past for past in care.remembered_runs(_folder(folder)) if selection.includes(past)]
    if unknown := set(ids or ()) - {past.id for past in meant}:
        raise InputError(f"no such run is remembered: {', '.join(sorted(unknown))}; nothing was forgotten")
    alone = care.count_orphans(_folder(folder), selection)
    what = f"{len(meant)} runs{f' and {alone} experiences' if alone else ''}{' and their images' if images else ''}"
    if (meant or alone) and not yes and not typer.confirm(f"Forget {what}?", err=True):
        raise typer.Exit(1)
    done = care.forget(_folder(folder), selection, ImageStore() if images else None)
    counts = {"experiences": done.experiences, "images": done.images}
    if as_json:
        print_json({"forgotten": [past.id for past in done.runs], **counts, "overwritten": done.overwritten})
        return
    told = ", ".join(f"{name} {count}" for name, count in {"runs": len(done.runs), **counts}.items())
    out.print(f"forgotten: {told}", highlight=False)
    if not done.overwritten:
        err.print("another process reads the memory: traces stay in its file until that is closed", highlight=False)


@app.command()
@guarded
def compact(*, folder: Folder = None, embedder: Embedder = "minilm") -> None:
    """Make the index anew and give back the room of what was removed."""
    from gems.memory.care import existing_memory, size_of
    from gems.memory.embedder import init_embedder
    from gems.memory.store import FaissStore

    where = existing_memory(_folder(folder))
    before = size_of(where)
    with closing(FaissStore(where, embedder=init_embedder(embedder))) as store:
        store.compact()
    out.print(f"{decimal(before)} before, {decimal(size_of(where))} now", highlight=False)


@app.command("reindex")
@guarded
def reindex_(*, embedder: Embedder = "minilm", folder: Folder = None) -> None:
    """Embed every record anew with another embedder. Stopped half-way, the same command goes on."""
    from gems.memory.care import existing_memory
    from gems.memory.embedder import init_embedder
    from gems.memory.store import reindex

    where = existing_memory(_folder(folder))
    with _bar() as bar:
        task = bar.add_task("Embedding", total=None)
        count = reindex(where, init_embedder(embedder), lambda done, of: bar.update(task, completed=done, total=of))
    out.print(f"{count} records embedded with {embedder}", highlight=False)


@app.command()
@guarded
def verify(*, folder: Folder = None, as_json: AsJson = False) -> None:
    """Whether everything is whole: records, vectors, index and images. Exit code 1 if not."""
    from gems.memory import care

    checks = []
    for name, right, detail in care.verify(_folder(folder)):
        checks.append({"name": name, "ok": right, "detail": detail})
        if not as_json:
            out.print(f"[green]✓[/] {name}: {escape(detail)}" if right else f"[red]✗[/] {name}: {escape(detail)}")
    if as_json:
        print_json(checks)
    raise typer.Exit(0 if all(check["ok"] for check in checks) else 1)


def _folder(given: Path | None) -> Path:
    """The folder that is meant: given, or of ``GEMS_MEMORY``, or the home's.

    Raises:
        InputError: ``GEMS_MEMORY`` names a database.
    """
    from gems.database import is_database
    from gems.errors import InputError
    from gems.paths import home

    named = str(given or os.environ.get("GEMS_MEMORY") or home() / "memory")
    if is_database(named) or ":/" in named:
        raise InputError("gems memory looks after folders, not databases: give one with --folder")
    return Path(named).expanduser()


def _row(past: RememberedRun) -> dict[str, Any]:
    run = {"id": past.id, "user": past.user, "when": past.when.isoformat()}
    return run | past.trajectory.model_dump(mode="json")


def _bar() -> Progress:
    return Progress(console=err, transient=True, disable=not err.is_terminal)
