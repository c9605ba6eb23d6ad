"""``gems batch``: draw thousands of prompts, within limits, and watch them."""

from __future__ import annotations

import math
import signal
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from gems.cli.arguments import (
    LIMIT_SETTINGS,
    LIMITS,
    MEMORY_SETTINGS,
    MODEL_SETTINGS,
    MODELS,
    OUTPUT,
    SETTINGS,
    SKILL_SETTINGS,
    AsJson,
    Quiet,
    Setting,
    memory_location,
    with_options,
    with_settings,
)
from gems.cli.console import (
    BACKEND_FAILURE,
    BAD_INPUT,
    INTERRUPTED,
    LIMIT_REACHED,
    batch_bar,
    err,
    exit_at_once,
    guarded,
    handling,
    notify,
    out,
    print_json,
    spending,
)

if TYPE_CHECKING:
    from gems.bulk.batch import Batch, Stop
    from gems.bulk.jobs import Job
    from gems.bulk.limits import Limits
    from gems.bulk.results import Tally
    from gems.bulk.watching import Progress
    from gems.graph.context import GemsContext
    from gems.graph.state import Prices

__all__ = ["app"]

TOTALS: Final = "Limits of the whole batch"
_MOST_ERRORS_SHOWN: Final = 20
GROUPS: Final = ("finished", "failed", "to_retry", "cut_short", "begun", "not_begun")
"""What can have become of a prompt, as ``gems batch status`` tells."""


class _FileOrCommand(TyperGroup):
    """``gems batch FILE`` is ``gems batch run FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the command's name where a file comes first."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_FileOrCommand,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Draw many prompts; run the command again to resume after a stop or a crash.

[bold]gems batch prompts.jsonl --out results[/bold]   is short for gems batch run

[bold]gems batch run --help[/bold] explains limits, dry runs and Ray.""",
)


# --- run ------------------------------------------------------------------------------------------------------------

MEMORY: Final = Setting(
    Annotated[
        str | None,
        typer.Option(
            metavar="LOCATION",
            help="Recall and remember: in a folder, in postgresql://USER@HOST/DATABASE, which then holds the "
            'checkpoints too, or in the memory of single runs ("home"). Off by default, because results then depend '
            "on the order in which prompts finish.",
            show_default="off",
            rich_help_panel=MODELS,
        ),
    ],
    fields=lambda location: {
        "memory": location is not None,
        "memory_url": memory_location(None if location == "home" else location) if location else None,
    },
)
NO_MEMORY: Final = Setting(
    Annotated[
        bool,
        typer.Option("--no-memory", help="Neither recall nor remember: the default.", rich_help_panel=MODELS),
    ],
    default=False,
    fields=SETTINGS["no_memory"].fields,
)
SEED: Final = Setting(
    Annotated[int, typer.Option(help="Each prompt's seed is derived from this one, the prompt and its id.")], 0
)
IMAGES: Final = Setting(
    Annotated[
        str | None,
        typer.Option(
            metavar="LOCATION",
            help="Where images are kept: a folder, or any fsspec URL such as s3://BUCKET/FOLDER.",
            show_default="$GEMS_IMAGES, or OUT/images",
            rich_help_panel=OUTPUT,
        ),
    ],
    fields=SETTINGS["images"].fields,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Totals:
    """Options that limit the whole batch."""

    total_images: Annotated[int | None, typer.Option(min=1, help="Maximum images.", rich_help_panel=TOTALS)] = None
    total_chat_calls: Annotated[
        int | None, typer.Option(min=1, help="Maximum chat model calls.", rich_help_panel=TOTALS)
    ] = None
    total_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens, in and out.", rich_help_panel=TOTALS)
    ] = None
    total_cost: Annotated[float | None, typer.Option(help="Maximum cost, by --price.", rich_help_panel=TOTALS)] = None
    total_hours: Annotated[
        float | None, typer.Option(help="Maximum hours, counted from this start.", rich_help_panel=TOTALS)
    ] = None

    def limits(self, prices: Prices) -> Limits:
        """The limits that they make.

        Raises:
            InputError: There is a limit on the cost, but no price; or no money, or no time.
        """
        from gems.bulk.limits import Limits
        from gems.errors import InputError
        from gems.graph.state import Budget

        for option, limit in (("--total-cost", self.total_cost), ("--total-hours", self.total_hours)):
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise InputError(f"{option} {limit:g}: give a number above 0")
        if self.total_cost is not None and not any(prices.model_dump().values()):
            raise InputError("--total-cost needs prices: --price image=0.04 --price prompt=1.25 --price completion=10")
        budget = Budget(
            images=self.total_images,
            chat_calls=self.total_chat_calls,
            tokens=self.total_tokens,
            cost=self.total_cost,
            prices=prices,
        )
        return Limits(budget, self.total_hours)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cluster:
    """Options for a Ray cluster."""

    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Work on a Ray cluster: "local" starts one on this machine, "auto" joins the one that this machine '
            "belongs to, or HOST:PORT. Needs the extra ray.",
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="On Ray: maximum processes besides the generators.", show_default="by CPUs"),
    ] = None


@app.command()
@guarded
@with_options(_Totals, "totals")
@with_options(_Cluster, "cluster")
@with_settings(
    *MODEL_SETTINGS,
    *SKILL_SETTINGS,
    *MEMORY_SETTINGS,
    *LIMIT_SETTINGS,
    "seed",
    "images",
    memory=MEMORY,
    no_memory=NO_MEMORY,
    seed=SEED,
    images=IMAGES,
)
def run(
    file: Annotated[
        Path, typer.Argument(help='A .txt file (one prompt per line) or .jsonl file (objects with "prompt").')
    ],
    *,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the results.", rich_help_panel=OUTPUT)],
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Prompts in flight.", rich_help_panel=LIMITS)] = 8,
    context: GemsContext,
    totals: _Totals,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="postgresql://USER@HOST/DATABASE for half-finished prompts; a cluster of several machines needs it.",
            show_default="the memory's, or a file in OUT",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Write a folder with report.html per prompt too.", rich_help_panel=OUTPUT)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run a random sample, kept as results, and estimate the cost of all.")
    ] = False,
    sample: Annotated[int, typer.Option(min=5, help="Prompts of a dry run; at least three times --concurrency.")] = 50,
    cluster: _Cluster,
    add_prompts: Annotated[
        bool, typer.Option("--add-prompts", help="Use a folder whose results are all of other prompts; they stay.")
    ] = False,
    grace: Annotated[
        float,
        typer.Option(min=0, help="After SIGTERM, or a second Ctrl-C: maximum seconds until the process ends."),
    ] = 30.0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw many prompts; run the command again to resume after a stop or a crash.

    [bold]gems batch prompts.jsonl --out results[/bold]

    Results are lines of OUT/results.jsonl and, at the end, rows of OUT/index.parquet; images are in OUT/images. A
    result belongs to its prompt, id and seed: lines of FILE may be added, moved, edited and removed.

    Ctrl-C lets the prompts in flight finish, without waiting for servers that fail; a second one, or SIGTERM, stops
    them at their next step, from where they can be resumed, and ends the process after --grace seconds at the latest.

    Budgets limit each prompt, totals limit all of them and count what earlier starts have spent. No total is exceeded,
    apart from tokens by the last call of a prompt. The prompts that a total leaves undone are listed in
    OUT/not_started.jsonl.

    Exit code 0: every prompt was run; 2: some cannot be drawn, the others are done; 3: a model or server failed, and
    the same command tries again; 4: a total was reached; 130: stopped.
    """
    from gems.bulk.jobs import read_jobs, sample_of
    from gems.bulk.latest import noting_failure

    prices = context.budget.prices
    limits, jobs = totals.limits(prices), read_jobs(file, context.seed or 0)
    # A smaller sample would leave most seats empty towards its end, and say little about hours.
    sampled_jobs = sample_of(jobs, max(sample, 3 * concurrency), context.seed or 0) if dry_run else []
    with noting_failure(folder):
        batch = _work(
            jobs,
            folder,
            context,
            limits,
            ray=cluster.ray,
            quiet=quiet,
            concurrency=concurrency,
            evidence=evidence,
            sample=sampled_jobs,
            checkpoints=checkpoints,
            grace=grace,
            add_prompts=add_prompts,
            **({"workers": cluster.workers} if cluster.ray else {}),
        )
        exit_code = _conclude(batch, sampled_jobs, folder, concurrency, prices, as_json=as_json)
    raise typer.Exit(exit_code)


def _leave(batch: Batch, sampled_jobs: Sequence[Job], folder: Path, images: str) -> None:
    """Write the index, what is left, and that this start has ended, while the folder is still this process's own."""
    from gems.bulk.export import write_index
    from gems.bulk.latest import note_end
    from gems.bulk.results import write_jobs

    write_index(folder, batch.record, images)
    write_jobs(folder, batch.unfinished_jobs if batch.reached_limit else [], "not_started.jsonl")
    reason = "given up" if batch.failure_message else "stopped" if batch.lacks(sampled_jobs) else None
    note_end(folder, f"limit of {batch.reached_limit} reached" if batch.reached_limit else reason)


def _conclude(
    batch: Batch, sampled_jobs: Sequence[Job], folder: Path, concurrency: int, prices: Prices, *, as_json: bool
) -> int:
    """Print the results. Returns the exit code."""
    unfinished = batch.lacks(sampled_jobs)
    if sampled_jobs and not unfinished:
        _print_forecast(batch, sampled_jobs, concurrency, prices, as_json=as_json)
        return 0
    _print_summary(batch, folder, prices, as_json=as_json)
    interrupted = unfinished and not (batch.reached_limit or batch.failure_message)
    return _report_end(batch, folder, interrupted=interrupted)


def _work(
    jobs: list[Job],
    folder: Path,
    context: GemsContext,
    limits: Limits,
    *,
    ray: str | None,
    quiet: bool,
    concurrency: int,
    sample: Sequence[Job],
    grace: float,
    **options: Any,
) -> Batch:
    """Run a batch, or a sample of it, on this machine or on a Ray cluster, with a progress bar."""
    from gems.bulk.batch import images_location
    from gems.bulk.latest import note_start

    prices = context.budget.prices
    with (
        _stoppable(folder, grace) as stop,
        batch_bar(len(sample or jobs), quiet=quiet, prices=prices) as (on_start, on_done),
    ):

        def begin(tally: Tally) -> None:
            note_start(folder, limits, concurrency, ray)  # not earlier: now the folder is this process's own
            on_start(tally)

        options |= {
            "concurrency": concurrency,
            "sample": sample,
            "limits": limits,
            "stop": stop,
            "on_start": begin,
            "on_done": on_done,
            "on_end": lambda batch: _leave(batch, sample, folder, images_location(context, folder)),
        }
        if ray is None:
            from gems.bulk.batch import run_batch

            return run_batch(jobs, folder, context, **options)
        from gems.bulk.ray_driver import run_on_ray

        return run_on_ray(jobs, folder, context, address=ray, **options)


def _report_end(batch: Batch, folder: Path, *, interrupted: bool) -> int:
    """Print what failed and what is left to do. Returns the exit code."""
    kinds = _print_errors(batch, folder)
    if strays := batch.record.stray_count(batch.jobs):
        text = f"{strays:,} results belong to no line of this file; they stay in {folder / 'results.jsonl'}"
        err.print(text, highlight=False, soft_wrap=True)
    if batch.reached_limit:
        rest = f"{len(batch.unfinished_jobs)} prompts were not started: {folder / 'not_started.jsonl'}"
        if cut_short := batch.count("cut_short"):
            rest += f"; {cut_short} were cut short, and go on at a start with more room"
        err.print(f"the limit of {batch.reached_limit} is reached; {rest}", highlight=False, soft_wrap=True)
        return LIMIT_REACHED
    if batch.failure_message:
        err.print(f"[red]stopped early[/]: {escape(batch.failure_message)}", highlight=False, soft_wrap=True)
        err.print("fix the cause and run the same command again to resume")
        return BACKEND_FAILURE
    if interrupted:
        err.print("stopped; run the same command again to resume")
        return INTERRUPTED
    return BACKEND_FAILURE if "backend" in kinds else BAD_INPUT if kinds else 0


def _print_errors(batch: Batch, folder: Path) -> set[str]:
    """Print the errors of the prompts that failed, the first ones of many. Returns their kinds."""
    kinds: Counter[str] = Counter()
    for row in batch.record.rows(batch.jobs):
        if row.get("error"):
            kinds[row["error_kind"]] += 1
            if kinds.total() <= _MOST_ERRORS_SHOWN:
                err.print(f"[red]line {row['line']}[/]: {escape(row['error'])}", highlight=False, soft_wrap=True)
    if kinds.total() > _MOST_ERRORS_SHOWN:
        count = kinds.total() - _MOST_ERRORS_SHOWN
        err.print(f'and {count:,} more, with an "error" in {folder / "results.jsonl"}', soft_wrap=True)
    return set(kinds)


def _print_summary(batch: Batch, folder: Path, prices: Prices, *, as_json: bool) -> None:
    from gems.bulk.faults import in_words

    summary, results, index = _summary(batch, prices), folder / "results.jsonl", folder / "index.parquet"
    if as_json:
        print_json({**summary, "results": str(results), "index": str(index)})
        return
    table = Table(show_header=False, box=None)
    faults = summary.pop("errors", [])
    summary |= {f"{fault['step']} failed": in_words(fault) for fault in faults}
    for name, value in summary.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else escape(str(value)))
    out.print(table)
    out.print(f"results: {escape(str(results))}", highlight=False, soft_wrap=True)
    out.print(f"  index: {escape(str(index))}", highlight=False, soft_wrap=True)


def _summary(batch: Batch, prices: Prices) -> dict[str, Any]:
    """The figures of a whole batch."""
    from gems.bulk.faults import faults_of

    usage, tally = batch.usage, batch.record.tally(batch.jobs, retried=True)
    summary: dict[str, Any] = {
        "prompts": len(batch.jobs),
        "finished": batch.count("finished"),
        "solved": tally.outcomes["solved"],
        "failed": tally.outcomes["failed"],
    }
    if to_retry := batch.count("to_retry"):
        summary["to_retry"] = to_retry
    rows = list(batch.record.rows_with_errors(batch.jobs))
    if with_errors := sum(bool(row.get("errors")) for row in rows):
        summary["with_errors"] = with_errors  # they have a result all the same: a step failed, and the run went on
    if faults := faults_of(rows):
        summary["errors"] = faults
    summary |= {"images": usage.images, "tokens": usage.tokens}
    if batch.lost_images:
        summary["images_in_flight_at_a_kill_at_most"] = batch.lost_images
    if cost := prices.cost(usage):
        summary["cost"] = round(cost, 4)
    if usage.lost_tokens:
        summary["tokens_of_lost_answers_about"] = usage.lost_tokens
        summary |= {"cost_of_lost_answers_about": round(usage.lost_cost, 4)} if usage.lost_cost else {}
    if batch.reached_limit:
        summary |= {"limit_reached": batch.reached_limit, "not_started": len(batch.unfinished_jobs)}
        summary["cut_short"] = batch.count("cut_short")
    return summary | _per_prompt(batch)


def _per_prompt(batch: Batch) -> dict[str, float]:
    """Means and a median over the prompts that have a result; empty if none has."""
    images, calls, rounds, seconds = list[int](), list[int](), list[int](), list[float]()
    for row in batch.record.rows(batch.jobs):
        if "rounds" in row:
            images.append(row["usage"]["images"])
            calls.append(row["usage"]["chat_calls"])
            rounds.append(row["rounds"])
            seconds.append(row["seconds"])
    if not rounds:
        return {}
    return {
        "rounds_per_prompt": round(statistics.fmean(rounds), 2),
        "images_per_prompt": round(statistics.fmean(images), 2),
        "chat_calls_per_prompt": round(statistics.fmean(calls), 2),
        "seconds_per_prompt_median": round(statistics.median(seconds), 2),
    }


# --- the dry run -----------------------------------------------------------------------------------------------------


def _print_forecast(
    batch: Batch, sampled_jobs: Sequence[Job], concurrency: int, prices: Prices, *, as_json: bool
) -> None:
    """What all prompts will probably cost, estimated from a sample."""
    from gems.bulk.limits import forecast

    rows = list(batch.record.rows(sampled_jobs))
    forecasts = forecast(rows, len(batch.jobs), concurrency, prices)
    estimates = {name: estimate for name, estimate in forecasts.items() if estimate.expected}
    solved = sum(row.get("outcome") == "solved" for row in rows)
    if as_json:
        figures = {
            name: {"expected": estimate.expected, "low": estimate.low, "high": estimate.high}
            for name, estimate in estimates.items()
        }
        print_json({"sample": len(rows), "solved": solved, "prompts": len(batch.jobs), "estimate": figures})
        return
    table = Table("for all prompts", "expected", "95% interval")
    for name, estimate in estimates.items():
        digits = 0 if estimate.high >= 100 else 2
        interval = f"{estimate.low:,.{digits}f} to {estimate.high:,.{digits}f}"
        table.add_row(name.replace("_", " "), f"{estimate.expected:,.{digits}f}", interval)
    out.print(table)
    out.print(f"from {len(rows)} of {len(batch.jobs):,} prompts, {solved} of them solved; they are kept as results")
    out.print("hours are for a machine as busy as now; run the same command without --dry-run for all", highlight=False)


# --- status ----------------------------------------------------------------------------------------------------------


@app.command()
@guarded
def status(
    folder: Annotated[Path, typer.Argument(help="The batch's folder: --out of gems batch.")],
    *,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The batch's postgresql://USER@HOST/DATABASE, if its half-finished prompts are there.",
            show_default="a file in the folder",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a batch has come, from any shell, without disturbing it.

    finished: has a result. failed: cannot be drawn, and is not tried again. to retry: a model or server failed, and the
    next start goes on with it. cut short: a total ended it, and a start with more room goes on with it. begun: in
    flight, or stopped half-way. Exit code 0: the folder could be read.
    """
    from gems.bulk.watching import read_progress

    progress = read_progress(folder, checkpoints)
    if as_json:
        print_json(progress.figures())
    else:
        _print_status(progress)


def _print_status(progress: Progress) -> None:
    from gems.bulk.faults import in_words

    figures = progress.figures()
    solved = "" if figures["solved_rate"] is None else f", {100 * figures['solved_rate']:.1f}% solved"
    count = f"{figures['done']:,} of {figures['prompts']:,} prompts done"
    out.print(f"{figures['state']}: {count}{solved}", highlight=False, soft_wrap=True)
    groups = ", ".join(f"{figures[name]:,} {name.replace('_', ' ')}" for name in GROUPS if figures[name])
    out.print(f"prompts: {groups}", highlight=False)
    outcomes = ", ".join(f"{count:,} {name}" for name, count in progress.tally.outcomes.most_common() if count)
    out.print(f"outcomes: {escape(outcomes) or 'none yet'}")
    for fault in figures["errors"]:
        out.print(f"{fault['step']} failed: {escape(in_words(fault))}", highlight=False, soft_wrap=True)
    out.print(f"spent: {spending(progress.usage, progress.prices)}", highlight=False, soft_wrap=True)
    if figures["in_flight_at_a_kill_at_most"]:
        count = figures["in_flight_at_a_kill_at_most"]
        out.print(f"and up to {count:,} more images that were in flight at a kill", highlight=False)
    if not figures["checkpoints_read"]:
        out.print("without what half-finished prompts have spent: name their database with --checkpoints")
    if figures["other_results"]:
        out.print(f"{figures['other_results']:,} more results belong to no line of the file", highlight=False)
    if figures["limits"]:
        limits = ", ".join(f"{limit:,} {escape(name)}" for name, limit in figures["limits"].items())
        out.print(f"limits: {limits}", highlight=False)
    if figures["seconds_left"] is not None:
        time_left = timedelta(seconds=figures["seconds_left"])
        rate = f"{figures['prompts_a_minute']:,.1f} prompts per minute"
        out.print(f"{rate}; about {time_left} left (pid {figures['pid']})", highlight=False)


# --- stopping --------------------------------------------------------------------------------------------------------


@contextmanager
def _stoppable(folder: Path, grace: float) -> Iterator[Stop]:
    """Ctrl-C once: begin no other prompt. Twice, or SIGTERM: stop prompts at their next step. A third time: at once."""
    from gems.bulk.batch import Stop
    from gems.bulk.latest import note_end
    from gems.errors import GemsError

    stop = Stop()

    def end() -> None:
        with suppress(OSError, GemsError):  # a full disk, or a folder that is gone, must not keep the process
            note_end(folder, "stopped")
        exit_at_once()

    timer = threading.Timer(grace, end)
    timer.daemon = True

    def on_signal(number: int, _: object) -> None:
        if stop.control.drain_requested:
            end()
        elif stop.is_requested or number == signal.SIGTERM:
            stop.control.request_drain("interrupted")
            timer.start()
            notify("stopping prompts after their current step; Ctrl-C again to stop at once")
        else:
            stop.finish()
            notify("finishing the prompts in flight; Ctrl-C again to stop them where they are")

    with handling(on_signal, signal.SIGINT, signal.SIGTERM):
        yield stop
    timer.cancel()
