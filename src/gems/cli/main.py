"""The command line. Everything heavy is imported inside the commands, so that ``gems --help`` is instant."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gems import __version__
from gems.cli.arguments import (
    MODELS,
    OUTPUT,
    AsJson,
    BudgetChatCalls,
    BudgetCost,
    BudgetImages,
    BudgetSeconds,
    BudgetTokens,
    Candidates,
    ChatOption,
    Decomposer,
    Embedder,
    Generator,
    GeneratorOption,
    Images,
    MaxRounds,
    Memory,
    Mllm,
    NoBuiltinSkills,
    NoPlan,
    NoSkills,
    Patience,
    Planner,
    Price,
    Quiet,
    Refiner,
    SkillsDir,
    User,
    Verifier,
    images_given,
    make_context,
    memory_given,
    skills_path,
)
from gems.cli.batch_commands import app as batch_app
from gems.cli.batch_commands import export
from gems.cli.console import BACKEND_FAILURE, BEST_EFFORT, INTERRUPTED, SOLVED, err, guarded, out, print_json, stoppable
from gems.cli.eval_commands import app as eval_app
from gems.cli.memory_commands import app as memory_app
from gems.cli.serve_commands import new_key, serve
from gems.cli.skills_commands import app as skills_app

if TYPE_CHECKING:
    from gems.runs.folder import RunFolder
    from gems.runs.record import RunRecord
    from gems.runs.threads import Thread

__all__ = ["app"]

app = typer.Typer(
    name="gems",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""An agent graph around a text-to-image model: it plans, draws, checks and refines until the image is right.

[bold]gems generate "three blue cars to the left of a striped elephant"[/bold]

Exit codes: 0 solved, 1 best effort, 2 bad input, 3 a model or server failed.""",
)
app.add_typer(batch_app, name="batch")
app.command()(export)
app.add_typer(eval_app, name="eval")
app.add_typer(memory_app, name="memory")
app.add_typer(skills_app, name="skills")
app.command()(serve)
app.command("new-key")(new_key)

# --- commands -------------------------------------------------------------------------------------------------------


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(f"gems {__version__}", highlight=False)
        raise typer.Exit


_WITH_RESUME = frozenset({"resume", "folder", "memory", "as_json", "quiet"})
"""Options of ``gems generate`` that say nothing about the run itself."""
_MODEL_OPTIONS = frozenset({"mllm", "generator", "planner", "decomposer", "verifier", "refiner"})


@app.command()
@guarded
def generate(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the image should show.")] = None,
    *,
    mllm: Mllm = "pocket",
    generator: Generator = "pocket",
    generator_option: GeneratorOption = None,
    chat_option: ChatOption = None,
    planner: Planner = None,
    decomposer: Decomposer = None,
    verifier: Verifier = None,
    refiner: Refiner = None,
    embedder: Embedder = "minilm",
    skills_dir: SkillsDir = None,
    no_skills: NoSkills = False,
    no_builtin_skills: NoBuiltinSkills = False,
    no_plan: NoPlan = False,
    user: User = "default",
    memory: Memory = None,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Neither recall nor remember.", rich_help_panel=MODELS)
    ] = False,
    reuse: Annotated[
        bool,
        typer.Option("--reuse", help="Give the image of a run that solved just this before.", rich_help_panel=MODELS),
    ] = False,
    max_rounds: MaxRounds = 5,
    candidates: Candidates = 1,
    patience: Patience = 4,
    budget_chat_calls: BudgetChatCalls = None,
    budget_tokens: BudgetTokens = None,
    budget_images: BudgetImages = None,
    budget_seconds: BudgetSeconds = None,
    budget_cost: BudgetCost = None,
    price: Price = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image. Default: random.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Where runs leave their evidence. With --resume: the run's own, unless given.",
            show_default="gems-out",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    images: Images = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw one image, and show why it is right.

    [bold]gems generate "two red cars behind a dog" --seed 7[/bold]

    [bold]gems generate --resume two-red-cars-behind-a-dog-3f9a2c[/bold]

    Every run leaves OUT/RUN/ with all its images, run.json and report.html. To resume a run with
    python: models, repeat their options: a run's file must not run code.
    """
    from pydantic import SecretStr

    from gems.authority import NO_AUTHORITY
    from gems.database import is_database, without_password
    from gems.errors import InputError
    from gems.memory.opening import database_of
    from gems.runs.folder import make_folder, write_run
    from gems.runs.record import run_record
    from gems.runs.threads import begin_thread, load_thread

    known, moved = None, False
    if resume is not None:
        if prompt is not None:
            raise InputError("--resume goes on with a run's own prompt: leave the prompt away")
        code_again = _code_given_with_resume(ctx)
        place = memory_given(memory)
        known = load_thread(Path(resume).name, place if place and is_database(place) else None)
        if other_code := sorted(set(code_again) - set(known.context.models)):
            raise InputError(f"run {known.id} was not begun with {other_code[0]}: leave it away, or start a new run")
        known = replace(known, context=known.context.with_authority(NO_AUTHORITY.allowing(code_again)))
        if memory is not None:  # the password is not written down with the run
            begun_with = known.context.memory_url.get_secret_value() if known.context.memory_url else ""
            moved = without_password(str(place)) != without_password(begun_with)
            known = replace(known, context=known.context.model_copy(update={"memory_url": SecretStr(str(place))}))
        context, prompt, folder = known.context, known.prompt, make_folder(folder or known.out)
    else:
        if memory is not None and no_memory:
            raise InputError("--memory says where, --no-memory that there is to be none: leave one away")
        if prompt is None:
            raise InputError('say what the image should show: gems generate "three blue cars"')
        context = make_context(
            mllm=mllm,
            generator=generator,
            generator_option=generator_option,
            chat_option=chat_option,
            planner=planner,
            decomposer=decomposer,
            verifier=verifier,
            refiner=refiner,
            embedder=embedder,
            skills_dir=skills_path(skills_dir),
            skills=not no_skills,
            builtin_skills=not no_builtin_skills,
            plan=not no_plan,
            user=user,
            memory=not no_memory,
            memory_url=None if no_memory else memory_given(memory),
            images_url=images_given(images),
            reuse=reuse,
            max_rounds=max_rounds,
            candidates=candidates,
            patience=patience,
            seed=seed,
            budget_chat_calls=budget_chat_calls,
            budget_tokens=budget_tokens,
            budget_images=budget_images,
            budget_seconds=budget_seconds,
            budget_cost=budget_cost,
            price=price,
        )
        folder = folder or Path("gems-out")

    with err.status("loading the models") if err.is_terminal and not quiet else nullcontext():
        thread = begin_thread(prompt, context, folder) if known is None else known

        from gems.cli.live import LiveRun
        from gems.graph.builder import build_graph
        from gems.memory.image_store import ImageStore
        from gems.paths import home
        from gems.runs.checkpoints import open_checkpoints
        from gems.runs.threads import check_models, finished_at, has_begun, has_ended, run_thread

        kept = ImageStore(context.images_url)
    if not quiet:
        err.print(
            f"[dim]run {thread.id}; to resume it: {escape(_resume_command(thread))}[/]",
            highlight=False,
            soft_wrap=True,
        )

    with (
        stoppable() as control,
        open_checkpoints(home() / "checkpoints.sqlite", database_of(context)) as saver,
        LiveRun(err) if not quiet else nullcontext() as live,
    ):
        graph = build_graph(checkpointer=saver, images=kept)
        if known is not None:
            if moved and not has_begun(graph, thread.id):
                raise InputError(
                    f"nothing of run {thread.id} lies in this --memory: leave it away, or give what it was begun with"
                )
            if has_ended(graph, thread.id):
                err.print("this run has ended before; what follows is how it ended", highlight=False)
            else:
                check_models(thread)
        values = run_thread(graph, thread.id, thread.prompt, thread.context, listener=live, control=control)
        ended = finished_at(graph, thread.id)
    record = run_record(values, thread.context, thread.models, thread.id, thread.started, ended)
    files = write_run(folder / thread.id, record, kept)
    _print_run(record, files, as_json=as_json)
    if record.outcome == "cancelled":
        err.print(f"stopped; go on with: {escape(_resume_command(thread))}", highlight=False, soft_wrap=True)
    raise typer.Exit(
        {"solved": SOLVED, "accepted": SOLVED, "failed": BACKEND_FAILURE, "cancelled": INTERRUPTED}.get(
            record.outcome, BEST_EFFORT
        )
    )


def _resume_command(thread: Thread) -> str:
    """The command that resumes a run, with the ``python:`` models that this command line allowed."""
    models = {name: getattr(thread.context, name) for name in sorted(_MODEL_OPTIONS)}
    code = [f"--{name} {model}" for name, model in models.items() if model in thread.context.authority.code]
    return " ".join(["gems generate --resume", thread.id, *code])


def _code_given_with_resume(ctx: typer.Context) -> list[str]:
    """The ``python:`` models that the command line repeats; any other setting of the run is refused."""
    from gems.authority import is_code
    from gems.errors import InputError

    code = []
    for name, value in ctx.params.items():
        source = ctx.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name in _WITH_RESUME:
            continue
        if name not in _MODEL_OPTIONS or not is_code(value):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"--resume goes on with a run's own settings: leave {option} away, or start a new run")
        code.append(value)
    return code


@app.command()
@guarded
def replay(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its run.json.")],
    *,
    generator: Annotated[
        str | None,
        typer.Option(
            help="Repeat the run's python:MODULE:FACTORY: a record alone must not run code.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make every image of a run again and compare it, byte for byte. Exit code 0: all the same; 1: some differ."""
    from gems.authority import NO_AUTHORITY
    from gems.errors import InputError
    from gems.runs.record import load_record
    from gems.runs.replay import replay as make_again

    folder, record = load_record(run)
    made_by = record.models["generator"].name
    if generator not in (None, made_by):
        raise InputError(f"the run was made with {made_by}, not with {generator}: leave --generator away")
    results = list(make_again(folder, record, NO_AUTHORITY.allowing([generator] if generator else [])))
    if as_json:
        same = [{"file": r.file, "seed": r.seed, "record": r.same_as_record, "disk": r.same_as_file} for r in results]
        print_json(same)
    else:
        table = Table("image", "seed", "as recorded", "as on disk")
        for r in results:
            table.add_row(r.file, str(r.seed), _tick(r.same_as_record), _tick(r.same_as_file))
        out.print(table)
    raise typer.Exit(0 if all(r.same for r in results) else 1)


@app.command()
@guarded
def doctor(
    *,
    mllm: Mllm = "pocket",
    generator: Generator = "pocket",
    generator_option: GeneratorOption = None,
    chat_option: ChatOption = None,
    planner: Planner = None,
    decomposer: Decomposer = None,
    verifier: Verifier = None,
    refiner: Refiner = None,
    embedder: Embedder = "minilm",
    as_json: AsJson = False,
) -> None:
    """Tell whether a set-up will work: versions, folders, weights, and one trial of every model."""
    from gems.cli.doctor import diagnose

    with err.status("trying the models") if err.is_terminal else nullcontext():
        settings = make_context(
            mllm=mllm,
            generator=generator,
            generator_option=generator_option,
            chat_option=chat_option,
            planner=planner,
            decomposer=decomposer,
            verifier=verifier,
            refiner=refiner,
            embedder=embedder,
        )
        checks = diagnose(settings)
    if as_json:
        print_json([{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks])
    else:
        table = Table(show_header=False, box=None)
        for check in checks:
            table.add_row(_tick(check.ok), check.name, escape(check.detail))
        out.print(table)
    raise typer.Exit(0 if all(c.ok for c in checks) else BACKEND_FAILURE)


@app.command()
@guarded
def graph(
    *, mermaid: Annotated[bool, typer.Option("--mermaid", help="As Mermaid text; the default and only form.")] = True
) -> None:
    """Print the graph as a Mermaid drawing."""
    del mermaid
    from gems.graph.builder import build_graph

    drawing = build_graph().get_graph()
    for name in [n for n in drawing.nodes if n.startswith("__error_handler__")]:  # not ours: LangGraph's bookkeeping
        drawing.remove_node(drawing.nodes[name])
    sys.stdout.write(drawing.draw_mermaid())


# --- showing --------------------------------------------------------------------------------------------------------


ENDINGS = {
    "solved": "solved",
    "accepted": "accepted",
    "rounds": "not solved: rounds used up",
    "budget": "not solved: budget used up",
    "stalled": "not solved: no progress",
    "cancelled": "stopped",
    "failed": "failed",
}


def _tick(ok: bool) -> str:
    return "[green]✓ yes[/]" if ok else "[red]✗ no[/]"


def _print_run(record: RunRecord, files: RunFolder, *, as_json: bool) -> None:
    if as_json:
        paths = {
            "folder": str(files.folder),
            "image": str(files.image) if files.image else None,
            "record": str(files.record),
            "report": str(files.report),
        }
        print_json({**record.model_dump(mode="json"), "paths": paths})
        return
    from gems.cli.live import MARKS

    if best := record.best_attempt:
        verdicts = {verdict.requirement_id: verdict for verdict in best.answers}
        table = Table("", "requirement", "kind", "confidence", "seen", title=escape(record.prompt), title_style="bold")
        for requirement in record.all_requirements:
            verdict = verdicts.get(requirement.id)
            cells = (
                (MARKS[verdict.answer], f"{verdict.confidence:.2f}", escape(verdict.reason))
                if verdict
                else ("", "", "not checked")
            )
            asked_by = f" [dim]({escape(requirement.skill)})[/]" if requirement.skill else ""
            question = escape(requirement.question) + asked_by
            table.add_row(cells[0], question, requirement.kind, cells[1], cells[2])
        out.print(table)
    usage = record.usage
    style = "green" if record.outcome in ("solved", "accepted") else "yellow"
    rounds = record.attempts[-1].round if best else 0
    out.print(
        f"[{style}]{ENDINGS[record.outcome]}[/] after {rounds} round{'' if rounds == 1 else 's'}, "
        f"score {record.score:.2f}; {usage.images} image{'' if usage.images == 1 else 's'}, "
        f"{usage.chat_calls} chat call{'' if usage.chat_calls == 1 else 's'}, {usage.seconds:.1f} s of work",
        highlight=False,
    )
    for error in record.errors:
        err.print(f"[yellow]note:[/] {escape(error)}", highlight=False, soft_wrap=True)
    for name, path in (("image", files.image), ("record", files.record), ("report", files.report)):
        if path is not None:
            out.print(f"{name:>7}: {path}", highlight=False, soft_wrap=True)
