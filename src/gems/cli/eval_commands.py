"""``gems eval``: arms against each other on a benchmark, with a report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gems.cli.arguments import AsJson, Embedder, Generator, Mllm, Quiet, SkillsDir, make_context, skills_path
from gems.cli.console import INTERRUPTED, batch_bar, err, guarded, out, print_json, stoppable

if TYPE_CHECKING:
    from gems.evals.prompts import EvalPrompt

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="""Measure arms (single, rewrite, best-of-n, loop, loop+memory, ...) against each other, on the same seeds.

[bold]gems eval grammar --n 200 --arms single,loop[/bold]

Stopped or killed, the same command goes on. OUT gets report.html, report.md, report.json, and for each arm
image_paths.json, which GenEval 2's own scorer reads.""",
)

Arms = Annotated[str, typer.Option(help='Names with commas between, or "all".')]
Against = Annotated[
    str,
    typer.Option(help='A second generator whose arms are run too; "none" for none. Default: pocket-large for pocket.'),
]
Images = Annotated[int, typer.Option(min=1, max=16, help="Most images a prompt may cost in any arm.")]
Seed = Annotated[int, typer.Option(help="Seed of the prompts (grammar) and of the images.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the results.", show_default="gems-eval/...")]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Prompts in flight, in arms without memory.")]
ScorerName = Annotated[str, typer.Option("--scorer", help='"oracle" (pocket generators only), "soft-tifa" or "auto".')]
Judge = Annotated[str, typer.Option(help="Chat model for soft-tifa; it has to give log-probabilities.")]


@app.command()
@guarded
def geneval2(
    *,
    data: Annotated[Path, typer.Option(help="The benchmark's geneval2_data.jsonl, which you bring (CC BY-NC 4.0).")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    arms: Arms = "all",
    folder: Out = None,
    generator: Generator = "pocket",
    against: Against = "auto",
    mllm: Mllm = "pocket",
    embedder: Embedder = "minilm",
    skills_dir: SkillsDir = None,
    images: Images = 5,
    seed: Seed = 0,
    concurrency: Concurrency = 2,
    scorer: ScorerName = "auto",
    judge: Judge = "pocket",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """GenEval 2 (arXiv 2512.16853), on the file that you bring."""
    from gems.evals.prompts import read_geneval2

    _evaluate(
        "GenEval 2",
        read_geneval2(data)[:limit],
        folder or Path("gems-eval") / f"geneval2-{data.stem}",
        **_options(arms, generator, against, mllm, embedder, skills_dir, images, seed, concurrency, scorer, judge),
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
@guarded
def grammar(
    *,
    n: Annotated[int, typer.Option(min=1, help="Fresh prompts.")] = 1000,
    arms: Arms = "all",
    folder: Out = None,
    generator: Generator = "pocket",
    against: Against = "auto",
    mllm: Mllm = "pocket",
    embedder: Embedder = "minilm",
    skills_dir: SkillsDir = None,
    images: Images = 5,
    seed: Seed = 0,
    concurrency: Concurrency = 2,
    scorer: ScorerName = "auto",
    judge: Judge = "pocket",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fresh prompts in the benchmark's wording: no file needed, and nothing to overfit to."""
    from gems.evals.prompts import fresh_prompts

    _evaluate(
        "Fresh grammar prompts",
        fresh_prompts(n, seed),
        folder or Path("gems-eval") / f"grammar-{n}-{seed}",
        **_options(arms, generator, against, mllm, embedder, skills_dir, images, seed, concurrency, scorer, judge),
        as_json=as_json,
        quiet=quiet,
    )


def _options(
    arms: str,
    generator: str,
    against: str,
    mllm: str,
    embedder: str,
    skills_dir: list[Path] | None,
    images: int,
    seed: int,
    concurrency: int,
    scorer: str,
    judge: str,
) -> dict[str, Any]:
    second = {"auto": "pocket-large" if generator == "pocket" else "none"}.get(against, against)
    return {
        "arms": [name.strip() for name in arms.split(",") if name.strip()],
        "generators": [generator] if second == "none" else [generator, second],
        "settings": {
            "mllm": mllm,
            "generator": generator,
            "embedder": embedder,
            "skills_dir": skills_path(skills_dir),
        },
        "images": images,
        "seed": seed,
        "concurrency": concurrency,
        "scorer": scorer,
        "judge": judge,
    }


def _evaluate(
    benchmark: str,
    prompts: list[EvalPrompt],
    folder: Path,
    *,
    arms: list[str],
    generators: list[str],
    settings: dict[str, Any],
    images: int,
    seed: int,
    concurrency: int,
    scorer: str,
    judge: str,
    as_json: bool,
    quiet: bool,
) -> None:
    from gems.evals.arms import choose_arms
    from gems.evals.evaluate import evaluate
    from gems.evals.runner import Plan
    from gems.evals.scorers import init_scorer

    chosen = choose_arms(arms, generators, images)
    context = make_context(**settings, seed=seed)
    context = context.with_authority(context.authority.allowing([*generators, judge]))
    plan = Plan(benchmark, tuple(prompts), tuple(chosen), context, seed, images, folder)
    command = f"gems {shlex.join(sys.argv[1:])}"
    with stoppable() as control:
        report = evaluate(
            plan,
            init_scorer(scorer, generators, judge, folder, context.authority),
            concurrency=concurrency,
            control=control,
            bar=lambda what, total: batch_bar(total, what=what, quiet=quiet),
            command=command,
        )
    if report is None:
        err.print("stopped; run the same command again to go on")
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print_json(report)
    else:
        _print(report)
    err.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _print(report: dict[str, Any]) -> None:
    table = Table("arm", "all correct", "95% interval", "images", "chat calls", "seconds")
    for name, arm in report["arms"].items():
        low, high = arm["ci95"]
        table.add_row(
            name,
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
            table.add_row(
                c["better"],
                c["than"],
                f"{c['points']:+.1f}",
                f"{low:+.1f} to {high:+.1f}",
                f"× {c['images_ratio']:.2f}",
            )
        out.print(table)
