"""``gems generate`` and ``gems replay``: one run, and its images made again."""

from __future__ import annotations

import gc
import os
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from gems.cli.arguments import (
    LIMIT_SETTINGS,
    MEMORY_SETTINGS,
    MODEL_SETTINGS,
    MODELS,
    OUTPUT,
    SKILL_SETTINGS,
    AsJson,
    Quiet,
    given_options,
    with_settings,
)
from gems.cli.console import err, guarded, out, print_json, stoppable, yes_or_no
from gems.cli.service_runs import run_on_service, service_settings
from gems.cli.summaries import CheckedRequirement, RunSummary, exit_code, print_summary

if TYPE_CHECKING:
    from gems.authority import OperatorValue
    from gems.graph.context import GemsContext
    from gems.options import GeneratorOptions
    from gems.runs.folder import RunFolder
    from gems.runs.record import RunRecord
    from gems.runs.sessions import Ending, Session
    from gems.runs.threads import Thread

__all__ = ["generate", "replay"]

_WITH_RESUME: Final = frozenset({"resume", "folder", "memory", "user", "images", "skills_dir", "as_json", "quiet"})
"""Options of ``gems generate`` that do not change the run itself, or that no record keeps."""


@guarded
@with_settings(*MODEL_SETTINGS, *SKILL_SETTINGS, *MEMORY_SETTINGS, "reuse", *LIMIT_SETTINGS, "seed", "images")
def generate(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the image should show.")] = None,
    *,
    context: GemsContext,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Resume a run that was stopped; RUN is its name or its folder.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the evidence of runs. With --resume OUT/RUN, that folder by default.",
            show_default="gems-out",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Let a running gems serve draw, with its own models; its key is in GEMS_API_KEY.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw one image, and show why it is right.

    [bold]gems generate "two red cars behind a dog" --seed 7[/bold]

    [bold]gems generate --resume two-red-cars-behind-a-dog-3f9a2c[/bold]

    Every run leaves OUT/RUN/ with all its images, run.json and report.html. To resume a run, repeat the options that
    name addresses, keys, folders or code: no file may. The line that a run begins with has them.
    """
    from gems.errors import InputError
    from gems.wording import check_prompt

    if resume is not None:
        _check_resume(prompt, given_options(ctx), context)
    elif prompt is not None and service is not None:
        settings = service_settings(given_options(ctx), ctx.params)
        run_on_service(
            service, check_prompt(prompt), settings, folder or Path("gems-out"), as_json=as_json, quiet=quiet
        )
    elif prompt is None:
        raise InputError('say what the image should show: gems generate "three blue cars"')
    else:
        _check_prompt(check_prompt(prompt), context)
        _warn_of_strange_images(context)
    with _loading(quiet=quiet):
        from gems.runs.folder import write_run
        from gems.runs.sessions import begin_run, resume_run

        if resume is not None:
            session = resume_run(resume, context, out=folder)
        else:
            session = begin_run(prompt or "", context, folder or Path("gems-out"))
    ending, shown_notes = _run(session, quiet=quiet)
    record = ending.record
    files = write_run(session.thread.out / session.thread.id, record, session.images)
    _print_run(record, files, shown_notes, as_json=as_json)
    if record.outcome == "cancelled" or ending.can_be_reopened:
        what = "stopped; resume it" if record.outcome == "cancelled" else "once that is mended, go on from there"
        err.print(f"{what}: {escape(_resume_command(session.thread))}", highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code(record.outcome))


def _warn_of_strange_images(context: GemsContext) -> None:
    """The embedded verifier sees what the embedded generators draw, and would judge other images at random."""
    from gems.authority import without_login

    if context.chat_model("verifier") == "open" and context.generator not in ("open", "pocket", "pocket-large"):
        err.print(
            "[yellow]![/] the open chat model knows drawings of the open generator only: its verdicts on images of "
            f"{escape(without_login(context.generator))} mean little; name a chat model that sees with --mllm",
            highlight=False,
            soft_wrap=True,
        )


def _check_prompt(prompt: str, context: GemsContext) -> None:
    """Refuse a prompt that an embedded model cannot read before anything is loaded, which takes seconds."""
    readers = {context.chat_model("decomposer"), context.chat_model("planner") if context.plan else ""}
    if "pocket" in readers:
        from gems.models.pocket.grammar import parse_prompt

        parse_prompt(prompt)
    if "open" in readers:
        from gems.models.open.neighbours import nearest_thing
        from gems.models.open.wish_reading import read

        read(prompt, nearest_thing)


@contextmanager
def _loading(*, quiet: bool) -> Iterator[None]:
    """Say that models are loaded, and collect no garbage meanwhile.

    What is imported stays: looking through it for garbage, again and again or once when all is loaded, would take a
    fifth of the time.
    """
    if not quiet and not err.is_terminal:
        err.print("[dim]loading the models[/]")
    gc.disable()
    try:
        with err.status("loading the models") if err.is_terminal and not quiet else nullcontext():
            yield
    finally:
        gc.freeze()
        gc.enable()


def _check_resume(prompt: str | None, options: set[str], context: GemsContext) -> None:
    """Refuse what a resumed run does not take: it keeps its own prompt and settings, except what no record keeps."""
    from gems.authority import operator_values
    from gems.errors import InputError

    if prompt is not None:
        raise InputError("--resume keeps a run's own prompt: leave the prompt out, or start a new run")
    operators = {value.path for value in operator_values(context)}
    by_role = {f"{role}.": options for role, options in context.role_options if options}
    groups = {
        "generator_option": {"": ("generator_options.", context.generator_options)},
        "chat_option": {
            "": ("chat_options.", context.chat_options),
            **{role: (f"role_options.{role}", options) for role, options in by_role.items()},
        },
    }
    for name in sorted(options - _WITH_RESUME - operators):
        group = groups.get(name)
        paths = (
            [""]
            if group is None
            else [
                f"{label}{field}"
                for label, (prefix, settings) in group.items()
                for field in settings.model_fields_set
                if f"{prefix}{field}" not in operators
            ]
        )
        for field in sorted(paths):
            option = f"--{name.replace('_', '-')} {field}".rstrip()
            raise InputError(f"--resume keeps a run's own settings: leave out {option}, or start a new run")


def _resume_command(thread: Thread) -> str:
    """The command that resumes a run, with everything that no record keeps, apart from keys and passwords."""
    from gems.authority import operator_values

    values = [value for value in operator_values(thread.context) if not value.path.endswith(_SECRETS)]
    options = [option for value in values for option in _as_options(value, thread.context)]
    if thread.context.user != "default":
        options.append(f"--user {shlex.quote(thread.context.user)}")
    is_in_default_folder = thread.out.absolute() == Path("gems-out").absolute()
    run = thread.id if is_in_default_folder else shlex.quote(str(thread.out / thread.id))
    return " ".join(["gems generate --resume", run, *options])


_SECRETS: Final = (".api_key", ".headers")
"""Ends of the paths of settings that hold secrets."""


def _as_options(value: OperatorValue, context: GemsContext) -> list[str]:
    """A value of a run's settings as the command line gives it; nothing if the environment does so."""
    from gems.authority import without_login
    from gems.database import without_password

    if value.text in (os.environ.get("GEMS_MEMORY"), os.environ.get("GEMS_IMAGES")):
        return []
    name, equals, _ = value.option.partition("=")
    if equals:
        setting = attrgetter(value.path)(context)
        texts = setting if isinstance(setting, tuple) else ["true" if setting is True else value.text]
        return [f"{name}={shlex.quote(without_login(text))}" for text in texts]
    flag = name.split()[0]
    texts = value.text.split(os.pathsep) if value.path == "skills_dir" else [value.text]
    return [f"{flag} {shlex.quote(without_login(without_password(text)))}" for text in texts]


def _run(session: Session, *, quiet: bool) -> tuple[Ending, Collection[str]]:
    """Run a session, and show its progress. Returns the notes, too, that were shown."""
    from gems.cli.live import LiveRun
    from gems.runs.sessions import run_to_end

    if not quiet:
        hint = f"[dim]run {session.thread.id}; to resume it: {escape(_resume_command(session.thread))}[/]"
        err.print(hint, highlight=False, soft_wrap=True)
    with stoppable() as control, LiveRun(err) if not quiet else nullcontext() as live:
        ending = run_to_end(session, listener=live, control=control)
    if ending.had_ended:
        err.print("this run had ended already; this is how it ended", highlight=False)
    return ending, live.notes if live else ()


def _print_run(record: RunRecord, files: RunFolder, shown_notes: Collection[str], *, as_json: bool) -> None:
    paths = {"image": files.image, "record": files.record, "report": files.report}
    if as_json:
        texts = {name: str(path) if path else None for name, path in {"folder": files.folder, **paths}.items()}
        print_json({**record.model_dump(mode="json"), "paths": texts})
    else:
        print_summary(_summary(record, shown_notes), paths)


def _summary(record: RunRecord, shown_notes: Collection[str]) -> RunSummary:
    best, usage = record.best_attempt, record.usage
    verdicts = {verdict.requirement_id: verdict for verdict in best.answers} if best is not None else {}
    rows = [
        CheckedRequirement(
            requirement.question,
            requirement.kind,
            requirement.skill,
            verdict.answer if verdict else None,
            verdict.confidence if verdict else 0.0,
            verdict.reason if verdict else "",
        )
        for requirement in (record.all_requirements if best is not None else ())
        for verdict in [verdicts.get(requirement.id)]
    ]
    return RunSummary(
        record.prompt,
        record.outcome,
        record.score,
        record.attempts[-1].round if record.attempts else 0,
        usage.images,
        usage.chat_calls,
        usage.seconds,
        rows,
        record.errors,
        record.notes,
        shown_notes,
        usage.killed_in_words,
    )


@guarded
@with_settings("generator", "generator_option")
def replay(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run's folder, or its run.json.")],
    *,
    context: GemsContext,
    as_json: AsJson = False,
) -> None:
    """Make every image of a run again and compare it, byte for byte. Exit code 0: all are the same; 1: some differ.

    A record names no address, key, folder or code. Where the run's generator needs one, give the options that the run
    was made with: --generator and, for example, --generator-option base_url=...
    """
    from gems.authority import without_login
    from gems.errors import InputError
    from gems.models.public_names import is_remote
    from gems.runs.record import load_record
    from gems.runs.replay import replay as make_again

    folder, record = load_record(run)
    own_generator = record.models["generator"].name
    if "generator" in given_options(ctx) and without_login(context.generator) != own_generator:
        raise InputError(f"the run was made with {own_generator}, not with {context.generator}: leave --generator out")
    _refuse_other_options(context.generator_options, record.settings.generator_options)
    results = list(make_again(folder, record, context))
    if as_json:
        print_json(
            [{"file": r.file, "seed": r.seed, "record": r.same_as_record, "disk": r.same_as_file} for r in results]
        )
    else:
        table = Table("image", "seed", "as recorded", "as on disk")
        for r in results:
            table.add_row(r.file, str(r.seed), yes_or_no(r.same_as_record), yes_or_no(r.same_as_file))
        out.print(table)
    if is_remote(own_generator) and not all(r.same_as_record for r in results):
        err.print(
            "only the server knows its weights, and whether it honours the seed: it now draws other images",
            highlight=False,
            soft_wrap=True,
        )
    raise typer.Exit(0 if all(r.same for r in results) else 1)


def _refuse_other_options(options: GeneratorOptions, recorded: GeneratorOptions) -> None:
    """Refuse options that would make other images than the recorded ones."""
    from gems.authority import operator_values
    from gems.errors import InputError

    operators = {value.path for value in operator_values(options)}
    for name in sorted(options.model_fields_set - operators):
        if getattr(options, name) != getattr(recorded, name):
            raise InputError(
                f"--generator-option {name}: the run was made with {name}={getattr(recorded, name)}; leave it out"
            )
