"""``gems eval``: arms against each other on a benchmark, with a report."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from gems.cli.arguments import SETTINGS, AsJson, Quiet, Setting, with_options, with_settings
from gems.cli.console import (
    BACKEND_FAILURE,
    BAD_INPUT,
    INTERRUPTED,
    batch_bar,
    err,
    guarded,
    out,
    print_json,
    stoppable,
)

if TYPE_CHECKING:
    from gems.evals.prompts import EvalPrompt
    from gems.graph.context import GemsContext

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="""Measure arms (single, rewrite, best-of-n, loop, loop+memory, ...) against each other, on the same seeds.

[bold]gems eval grammar --n 200 --arms single,loop[/bold]

Stopped or killed, the same command resumes. OUT gets report.html, report.md, report.json, and for each arm
image_paths.json and score_lists.json, which GenEval 2's own scripts read. A prompt that fails counts as wrong; the
next start tries it again if a backend failed.

Exit code 0: every prompt was run in every arm; 2: some cannot be drawn or scored, the others are in the report; 3: a
model or server failed, and the same command tries again; 130: stopped.""",
)

SEED: Final = Setting(Annotated[int, typer.Option(help="Seed of the prompts (grammar) and of the images.")], 0)

_MODELS: Final = ("generator", "mllm")
_POCKET: Final = {name: replace(SETTINGS[name], default="pocket") for name in _MODELS}
_OPEN: Final = {name: replace(SETTINGS[name], default="open") for name in _MODELS}
"""Each benchmark's models, where none is named: those that know its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """Options that both benchmarks have."""

    arms: Annotated[str, typer.Option(help='Names with commas between them, or "all".')] = "all"
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results.", show_default="gems-eval/...")
    ] = None
    against: Annotated[
        str, typer.Option(help='A second generator whose arms are run too, such as pocket-large; "none" for none.')
    ] = "none"
    images: Annotated[int, typer.Option(min=1, max=16, help="Maximum images per prompt, in any arm.")] = 5
    orders: Annotated[
        int, typer.Option(min=1, max=20, help="Orders of the prompts in which an arm with a memory is run.")
    ] = 3
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Prompts in flight, in arms without memory.")] = 2
    scorer: Annotated[
        str, typer.Option("--scorer", help='"oracle" (pocket generators only), "soft-tifa" or "auto".')
    ] = "auto"
    judge: Annotated[
        str,
        typer.Option(
            help="Chat model for soft-tifa; it must give log-probabilities. Both the judge and the verifier are pocket "
            "by default: choose another judge, or the verifier judges its own choices."
        ),
    ] = "pocket"
    as_json: AsJson = False
    quiet: Quiet = False


@app.command()
@guarded
@with_options(_Options, "options")
@with_settings("generator", "mllm", "embedder", "skills_dir", seed=SEED, **_POCKET)
def geneval2(
    *,
    data: Annotated[Path, typer.Option(help="The benchmark's geneval2_data.jsonl, which you provide (CC BY-NC 4.0).")],
    limit: Annotated[int | None, typer.Option(min=1, help="Number of prompts, from the start of the file.")] = None,
    context: GemsContext,
    options: _Options,
) -> None:
    """GenEval 2 (arXiv 2512.16853), on the file that you provide."""
    from gems.evals.prompts import read_geneval2

    _evaluate("GenEval 2", read_geneval2(data)[:limit], f"geneval2-{data.stem}", context, options)


@app.command()
@guarded
@with_options(_Options, "options")
@with_settings("generator", "mllm", "embedder", "skills_dir", seed=SEED, **_POCKET)
def grammar(
    *,
    n: Annotated[int, typer.Option(min=1, help="Fresh prompts.")] = 1000,
    context: GemsContext,
    options: _Options,
) -> None:
    """Fresh prompts in the benchmark's wording: no file is needed, and there is nothing to overfit to."""
    from gems.evals.prompts import fresh_prompts

    seed = context.seed or 0
    _evaluate("Fresh grammar prompts", fresh_prompts(n, seed), f"grammar-{n}-{seed}", context, options)


@app.command("open")
@guarded
@with_options(_Options, "options")
@with_settings("generator", "mllm", "embedder", "skills_dir", seed=SEED, **_OPEN)
def open_world(
    *,
    n: Annotated[int, typer.Option(min=1, help="Fresh prompts.")] = 1000,
    context: GemsContext,
    options: _Options,
) -> None:
    """Fresh prompts of the open models' world, for --generator open: counts, negations, texts, languages and more."""
    from gems.evals.open_prompts import open_prompts

    seed = context.seed or 0
    _evaluate("Fresh prompts of the open world", open_prompts(n, seed), f"open-{n}-{seed}", context, options)


def _evaluate(
    benchmark: str, prompts: list[EvalPrompt], folder_name: str, context: GemsContext, options: _Options
) -> None:
    from gems.evals.arms import choose_arms
    from gems.evals.evaluate import evaluate
    from gems.evals.runner import EvaluationPlan
    from gems.evals.scorers import init_scorer

    folder = options.folder or Path("gems-eval") / folder_name
    generators = list(dict.fromkeys([context.generator, options.against]))
    generators = [name for name in generators if name != "none"]
    context = context.with_authority(context.authority.allowing([*generators, options.judge]))
    arms = choose_arms([name.strip() for name in options.arms.split(",") if name.strip()], generators, options.images)
    plan = EvaluationPlan(
        benchmark, tuple(prompts), tuple(arms), context, context.seed or 0, options.images, folder, options.orders
    )
    with stoppable() as control:
        report = evaluate(
            plan,
            init_scorer(options.scorer, generators, options.judge, folder, context.authority),
            concurrency=options.concurrency,
            control=control,
            bar=lambda what, total: batch_bar(total, what=what, quiet=options.quiet),
            command=f"gems {shlex.join(sys.argv[1:])}",
        )
    if report is None:
        err.print("stopped; run the same command again to resume")
        raise typer.Exit(INTERRUPTED)
    if options.as_json:
        print_json(report)
    else:
        _print_report(report)
    _print_warnings(report)
    err.print(f"report: {escape(str(folder / 'report.html'))}", highlight=False, soft_wrap=True)
    raise typer.Exit(_exit_code(report))


def _exit_code(report: dict[str, Any]) -> int:
    """As of ``gems batch``: what can be mended by another start comes before what cannot."""
    kinds = {kind for arm in report["arms"].values() for kind in arm["failed_by_kind"]}
    return BACKEND_FAILURE if "backend" in kinds else BAD_INPUT if kinds else 0


def _print_warnings(report: dict[str, Any]) -> None:
    """What a reader of the figures has to know."""
    from gems.bulk.faults import in_words
    from gems.evals.summary import interrupted_in_words

    if report["judge_is_verifier"]:
        _warn(f"the judge is the verifier ({report['judge']}), so it judges its own choices; --judge names another one")
    for name, arm in report["arms"].items():
        if arm["failed"]:
            again = arm["failed_by_kind"].get("backend", 0)
            rest = f"the same command tries {again} of them again" if again else "another start changes nothing"
            _warn(f"{name}: {arm['failed']} failed and count as wrong; {rest} (the first: {arm['first_error']})")
        for fault in arm["errors"]:
            if fault["failed"] < fault["prompts"]:
                _warn(f"{name}: {fault['step']} failed: {in_words(fault)}")
        if interrupted := interrupted_in_words(arm):
            _warn(f"{name}: {interrupted}")


def _warn(text: str) -> None:
    err.print(f"[yellow]![/] {escape(text)}", highlight=False, soft_wrap=True)


def _print_report(report: dict[str, Any]) -> None:
    table = Table("arm", "all correct", "95% interval", "images", "chat calls", "seconds")
    for name, arm in report["arms"].items():
        low, high = arm["ci95"]
        table.add_row(
            escape(name),
            f"{100 * arm['all_correct']:.1f}%",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{arm['images_per_prompt']:.2f}",
            f"{arm['chat_calls_per_prompt']:.2f}",
            f"{arm['seconds_per_prompt']:.2f}",
        )
    out.print(table)
    if report["comparisons"]:
        table = Table("arm", "against", "points", "95% interval", "images spent")
        for c in report["comparisons"]:
            low, high = c["points_ci95"]
            points, ratio = f"{c['points']:+.1f}", f"× {c['images_ratio']:.2f}"
            table.add_row(escape(c["better"]), escape(c["than"]), points, f"{low:+.1f} to {high:+.1f}", ratio)
        out.print(table)
