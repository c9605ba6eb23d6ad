"""``gems batch`` and ``gems export``: thousands of prompts, watched, limited, and made into data sets."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from gems.cli.arguments import (
    LIMITS,
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
    MaxRounds,
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
from gems.cli.console import (
    BACKEND_FAILURE,
    BAD_INPUT,
    INTERRUPTED,
    LIMIT_REACHED,
    batch_bar,
    err,
    guarded,
    handling,
    out,
    print_json,
    spending,
)

if TYPE_CHECKING:
    from gems.bulk.batch import Batch, Stop
    from gems.bulk.jobs import Job
    from gems.bulk.limits import Limits
    from gems.bulk.results import Tally
    from gems.graph.state import Prices

__all__ = ["app", "export"]

TOTALS: Final = "Limits of the whole run"
_SHOWN_ERRORS: Final = 20


class _FileOrCommand(TyperGroup):
    """``gems batch FILE`` is ``gems batch run FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name in, where there is none."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_FileOrCommand,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Draw many prompts; run it again to go on after a stop or a crash.

[bold]gems batch prompts.jsonl --out results[/bold]   is short for gems batch run

[bold]gems batch run --help[/bold] tells of limits, dry runs and Ray.""",
)


@app.command()
@guarded
def run(
    file: Annotated[Path, typer.Argument(help='A .txt (a prompt a line) or .jsonl (objects with "prompt").')],
    *,
    folder: Annotated[Path, typer.Option("--out", help="Where the results go.", rich_help_panel=OUTPUT)],
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Prompts in flight.", rich_help_panel=LIMITS)] = 8,
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
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Recall and remember: in a folder, in postgresql://USER@HOST/DATABASE, where checkpoints lie too, or "
            'where runs usually do ("home"). Off by default: results then depend on the order of finishing.',
            show_default="off",
            rich_help_panel=MODELS,
        ),
    ] = None,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Neither recall nor remember: the default.", rich_help_panel=MODELS)
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
    total_images: Annotated[int | None, typer.Option(min=1, help="Most images.", rich_help_panel=TOTALS)] = None,
    total_chat_calls: Annotated[
        int | None, typer.Option(min=1, help="Most chat model calls.", rich_help_panel=TOTALS)
    ] = None,
    total_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens, in and out.", rich_help_panel=TOTALS)
    ] = None,
    total_cost: Annotated[
        float | None, typer.Option(min=0, help="Most money, by --price.", rich_help_panel=TOTALS)
    ] = None,
    total_hours: Annotated[
        float | None, typer.Option(min=0, help="Most hours, from this start on.", rich_help_panel=TOTALS)
    ] = None,
    seed: Annotated[int, typer.Option(help="Each prompt's own seed follows from this one and its place.")] = 0,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Where images are kept: a folder, or any fsspec URL such as s3://BUCKET/FOLDER.",
            show_default="$GEMS_IMAGES, or OUT/images",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="postgresql://USER@HOST/DATABASE for half-finished prompts; machines of a cluster need one.",
            show_default="the memory's, or a file in OUT",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Also a folder with report.html per prompt.", rich_help_panel=OUTPUT)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run a random sample, and tell what all of it will cost. Kept as results.")
    ] = False,
    sample: Annotated[int, typer.Option(min=5, help="Prompts of a dry run; three times --concurrency at least.")] = 50,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Work on a Ray cluster: "local" starts one on this machine, "auto" joins the one that this machine '
            "belongs to, or HOST:PORT. Needs gems-graph\\[ray].",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="On Ray: most processes beside the generators.", show_default="by CPUs")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw many prompts; run it again to go on after a stop or a crash.

    [bold]gems batch prompts.jsonl --out results[/bold]

    Results are lines of OUT/results.jsonl, and at the end rows of OUT/index.parquet; images lie in OUT/images. Ctrl-C
    lets prompts in flight finish; twice, they stop at their next step and can go on from there. Budgets hold for each
    prompt, totals for all of them, with what earlier starts have spent; what a total leaves over is listed in
    OUT/not_started.jsonl.

    Exit code 0: every prompt was run; 2 or 3: some could not be (bad prompt, or a model failed), the others are done;
    4: a total was reached; 130: stopped.
    """
    from gems.bulk.export import write_index
    from gems.bulk.jobs import read_jobs, sample_of
    from gems.bulk.limits import Limits
    from gems.bulk.results import write_jobs
    from gems.errors import InputError
    from gems.graph.state import Budget

    if memory is not None and no_memory:
        raise InputError("--memory says where, --no-memory that there is to be none: leave one away")
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
        skills_dir=skills_path(skills_dir),
        skills=not no_skills,
        builtin_skills=not no_builtin_skills,
        plan=not no_plan,
        user=user,
        memory=memory is not None,
        memory_url=memory_given(None if memory == "home" else memory) if memory else None,
        images_url=images_given(images),
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
    prices = settings.budget.prices
    if total_cost is not None and not any(prices.model_dump().values()):
        raise InputError("--total-cost needs prices: --price image=0.04 --price prompt=1.25 --price completion=10")
    if total_cost is not None and total_cost <= 0:
        raise InputError("--total-cost: more than nothing")
    total = Budget(
        images=total_images, chat_calls=total_chat_calls, tokens=total_tokens, cost=total_cost, prices=prices
    )
    limits = Limits(total, total_hours)
    jobs = read_jobs(file, seed)
    # With fewer, most of the sample would fly with empty seats beside it, and tell little about hours.
    few = sample_of(jobs, max(sample, 3 * concurrency), seed) if dry_run else []
    with _stoppable() as stop, batch_bar(len(few or jobs), quiet=quiet, prices=prices) as (on_start, on_done):

        def begun(tally: Tally) -> None:
            _note_start(folder, limits, concurrency, ray)  # now that the folder is this process's
            on_start(tally)

        batch = _work(
            ray,
            jobs,
            folder,
            settings,
            concurrency=concurrency,
            evidence=evidence,
            stop=stop,
            limits=limits,
            sample=few,
            checkpoints=checkpoints,
            on_start=begun,
            on_done=on_done,
            **({"workers": workers} if ray else {}),
        )
    write_index(folder, batch.record)
    left = [job for job in few or jobs if not batch.record.has(job)]
    interrupted = bool(left) and not (batch.reached or batch.given_up)
    write_jobs(folder, batch.left if batch.reached else [], "not_started.jsonl")
    if dry_run and not left:
        _tell_forecast(batch, few, concurrency, prices, as_json=as_json)
        return
    summary = _summary(batch, prices)
    why = f"limit of {batch.reached} reached" if batch.reached else batch.given_up and "given up"
    _note_end(folder, why or ("stopped" if interrupted else None))
    if as_json:
        print_json({**summary, "results": str(folder / "results.jsonl"), "index": str(folder / "index.parquet")})
    else:
        _print_table(summary)
        out.print(f"results: {folder / 'results.jsonl'}", highlight=False, soft_wrap=True)
        out.print(f"  index: {folder / 'index.parquet'}", highlight=False, soft_wrap=True)
    raise typer.Exit(_tell_end(batch, folder, interrupted=interrupted))


def _work(ray: str | None, *args: Any, **kwargs: Any) -> Batch:
    if ray is None:
        from gems.bulk.batch import run_batch

        return run_batch(*args, **kwargs)
    from gems.bulk.ray_driver import run_on_ray

    return run_on_ray(*args, address=ray, **kwargs)


def _tell_end(batch: Batch, folder: Path, *, interrupted: bool) -> int:
    """Say what went wrong or is left, and give the exit code."""
    kinds: Counter[str] = Counter()
    for row in batch.record.rows(batch.jobs):
        if row.get("error"):
            kinds[row["error_kind"]] += 1
            if kinds.total() <= _SHOWN_ERRORS:
                err.print(f"[red]line {row['line']}[/]: {escape(row['error'])}", highlight=False, soft_wrap=True)
    if kinds.total() > _SHOWN_ERRORS:
        err.print(f'and {kinds.total() - _SHOWN_ERRORS:,} more, with an "error" in {folder / "results.jsonl"}')
    if batch.reached:
        left = f"{len(batch.left)} prompts were not started: {folder / 'not_started.jsonl'}"
        err.print(f"the limit of {batch.reached} is reached; {left}", highlight=False, soft_wrap=True)
        return LIMIT_REACHED
    if batch.given_up:
        err.print(f"[red]given up[/]: {escape(batch.given_up)}", highlight=False, soft_wrap=True)
        err.print("run the same command again to go on, once that is mended")
        return BACKEND_FAILURE
    if interrupted:
        err.print("stopped; run the same command again to go on")
        return INTERRUPTED
    return BACKEND_FAILURE if "backend" in kinds else BAD_INPUT if kinds else 0


def _summary(batch: Batch, prices: Prices) -> dict[str, Any]:
    spent, tally = batch.record.usage, batch.record.tally(batch.jobs, retried=True)
    images, calls, rounds, seconds = list[int](), list[int](), list[int](), list[float]()
    for row in batch.record.rows(batch.jobs):
        if "rounds" in row:
            images.append(row["usage"]["images"])
            calls.append(row["usage"]["chat_calls"])
            rounds.append(row["rounds"])
            seconds.append(row["seconds"])
    summary: dict[str, Any] = {
        "prompts": len(batch.jobs),
        "finished": tally.done,
        "solved": tally.outcomes["solved"],
        "failed": tally.outcomes["failed"],
        "images": spent.images,
        "tokens": spent.tokens,
    }
    if cost := prices.cost(spent):
        summary["cost"] = round(cost, 4)
    if batch.reached:
        summary |= {"limit_reached": batch.reached, "not_started": len(batch.left)}
    if rounds:
        summary |= {
            "rounds_per_prompt": round(statistics.fmean(rounds), 2),
            "images_per_prompt": round(statistics.fmean(images), 2),
            "chat_calls_per_prompt": round(statistics.fmean(calls), 2),
            "seconds_per_prompt_median": round(statistics.median(seconds), 2),
        }
    return summary


def _print_table(summary: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None)
    for name, value in summary.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    out.print(table)


# --- the dry run -----------------------------------------------------------------------------------------------------


def _tell_forecast(batch: Batch, few: Sequence[Job], concurrency: int, prices: Prices, *, as_json: bool) -> None:
    from gems.bulk.limits import forecast

    rows = list(batch.record.rows(few))
    told = {name: e for name, e in forecast(rows, len(batch.jobs), concurrency, prices).items() if e.expected}
    solved = sum(row.get("outcome") == "solved" for row in rows)
    if as_json:
        estimates = {n: {"expected": e.expected, "low": e.low, "high": e.high} for n, e in told.items()}
        print_json({"sample": len(rows), "solved": solved, "prompts": len(batch.jobs), "estimate": estimates})
        return
    table = Table("for all prompts", "expected", "95% interval")
    for name, e in told.items():
        digits = 0 if e.high >= 100 else 2
        table.add_row(
            name.replace("_", " "), f"{e.expected:,.{digits}f}", f"{e.low:,.{digits}f} to {e.high:,.{digits}f}"
        )
    out.print(table)
    out.print(f"from {len(rows)} of {len(batch.jobs):,} prompts, {solved} of them solved; they are kept as results")
    out.print("hours are for a machine as busy as now; the same command without --dry-run goes on", highlight=False)


# --- status ----------------------------------------------------------------------------------------------------------


@app.command()
@guarded
def status(
    folder: Annotated[Path, typer.Argument(help="The folder that is --out of gems batch.")], *, as_json: AsJson = False
) -> None:
    """Tell how far a batch has come, from any shell; it does not disturb it."""
    from gems.bulk.results import ResultsFile, is_locked, saved_jobs
    from gems.graph.state import Prices

    jobs = saved_jobs(folder)
    record = ResultsFile(folder / "results.jsonl")
    tally, latest, works = record.tally(jobs, retried=True), _latest(folder), is_locked(folder)
    prices = Prices.model_validate(latest.get("prices") or {})
    a_minute = _rate(record, latest) if works else None
    left = len(jobs) - tally.done
    told: dict[str, Any] = {
        "state": "running" if works else "finished" if not left else latest.get("ended") or "not running",
        "prompts": len(jobs),
        "done": tally.done,
        "outcomes": dict(tally.outcomes),
        "solved_rate": round(tally.outcomes["solved"] / tally.done, 4) if tally.done else None,
        "spent": {**record.usage.model_dump(mode="json"), "cost": round(prices.cost(record.usage), 4)},
        "limits": latest.get("limits") or {},
        "prompts_a_minute": a_minute and round(a_minute, 1),
        "seconds_left": round(60 * left / a_minute) if a_minute else None,
        "started": latest.get("started"),
        "host": latest.get("host"),
        "pid": latest.get("pid") if works else None,
    }
    if as_json:
        print_json(told)
        return
    rate = "" if told["solved_rate"] is None else f", {100 * told['solved_rate']:.1f}% solved"
    out.print(f"{told['state']}: {tally.done:,} of {len(jobs):,} prompts done{rate}", highlight=False)
    out.print(
        "outcomes: " + (", ".join(f"{n:,} {name}" for name, n in tally.outcomes.most_common() if n) or "none yet")
    )
    out.print(f"spent: {spending(record.usage, prices)}", highlight=False)
    if told["limits"]:
        out.print("limits: " + ", ".join(f"{n:,} {name}" for name, n in told["limits"].items()), highlight=False)
    if a_minute:
        eta = timedelta(seconds=told["seconds_left"])
        out.print(f"{a_minute:,.1f} prompts a minute; about {eta} left (pid {told['pid']})", highlight=False)


def _rate(record: Any, latest: dict[str, Any]) -> float | None:
    """Prompts a minute over the last few hundred results of the present start."""
    began = datetime.fromisoformat(latest["started"]) if latest.get("started") else None
    at = [moment for moment in record.latest_moments(300) if began is None or moment >= began]
    seconds = (datetime.now(UTC) - at[0]).total_seconds() if len(at) > 1 else 0.0
    return 60 * len(at) / seconds if seconds > 0 else None


def _note_start(folder: Path, limits: Limits, concurrency: int, ray: str | None) -> None:
    from gems.files import write_atomically

    given = {"hours": limits.hours, **limits.spending.model_dump(exclude={"prices"})}
    about = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "concurrency": concurrency,
        "on": f"ray {ray}" if ray else "this machine",
        "limits": {name: value for name, value in given.items() if value is not None},
        "prices": limits.spending.prices.model_dump(),
        "ended": None,
    }
    write_atomically(folder / "latest.json", json.dumps(about, indent=1).encode())


def _note_end(folder: Path, why: str | None) -> None:
    from gems.files import write_atomically

    write_atomically(folder / "latest.json", json.dumps({**_latest(folder), "ended": why}, indent=1).encode())


def _latest(folder: Path) -> dict[str, Any]:
    try:
        latest = json.loads((folder / "latest.json").read_bytes())
        return latest if isinstance(latest, dict) else {}
    except (OSError, ValueError):
        return {}


# --- stopping --------------------------------------------------------------------------------------------------------


@contextmanager
def _stoppable() -> Iterator[Stop]:
    """Ctrl-C once: nothing more is begun; twice: prompts in flight stop at their next step; a third time: at once."""
    from gems.bulk.batch import Stop

    stop = Stop()

    def on_interrupt(*_: object) -> None:
        if stop.control.drain_requested:
            err.show_cursor()
            os._exit(INTERRUPTED)  # every step is on disk; worker threads would hold up any other way out
        if stop.wanted:
            stop.control.request_drain("interrupted")
            err.print("stopping prompts after their present step; Ctrl-C again to stop at once")
        else:
            stop.finish()
            err.print("finishing the prompts in flight; Ctrl-C again to stop them where they are")

    with handling(on_interrupt, signal.SIGINT, signal.SIGTERM):
        yield stop


# --- export ----------------------------------------------------------------------------------------------------------


@guarded
def export(
    source: Annotated[Path, typer.Argument(help="The folder that is --out of gems batch.")],
    *,
    kind: Annotated[str, typer.Option("--to", help="webdataset, imagefolder or preferences.")],
    folder: Annotated[Path, typer.Option("--out", help="Where the data set goes.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also prompts that were not solved, with their best image.")
    ] = False,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="How much better scored a pair's chosen image has to be.")
    ] = 0.1,
    pairs: Annotated[int, typer.Option(min=1, help="Most pairs of a prompt.")] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a batch's results into a data set.

    [bold]gems export results --to preferences --out pairs[/bold]

    webdataset: shards of KEY.png, KEY.txt, KEY.json. imagefolder: train/ with metadata.jsonl, as Hugging Face datasets
    loads it. preferences: Parquet with jpg_0, jpg_1, label_0 and caption, as trainers of Diffusion-DPO read it: of one
    prompt, an image that met more requirements and one that met fewer, with all verdicts.
    """
    from rich.progress import Progress

    from gems.bulk.export import Choice
    from gems.bulk.export import export as write

    with Progress(console=err, disable=quiet or not err.is_terminal, transient=True) as progress:
        task = progress.add_task(kind, total=None)
        choice = Choice(solved=not everything, margin=margin, pairs=pairs)
        done = write(source, kind, folder, choice, on_row=lambda: progress.advance(task))
    if as_json:
        print_json({"folder": str(done.folder), "examples": done.examples, "skipped": done.skipped})
        return
    out.print(f"{done.examples:,} examples in {done.folder}; {done.skipped:,} prompts gave none", highlight=False)
