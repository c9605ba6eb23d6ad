"""What all commands share: consoles, options, exit codes, one-line errors, Ctrl-C and progress bars."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeAlias, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from langgraph.runtime import RunControl

    from gems.bulk.results import Tally
    from gems.graph.context import GemsContext
    from gems.graph.state import Prices, Usage

SOLVED, BEST_EFFORT, BAD_INPUT, BACKEND_FAILURE, LIMIT_REACHED, INTERRUPTED = 0, 1, 2, 3, 4, 130

for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="replace")  # a terminal that knows no check marks shows question marks

out, err = Console(), Console(stderr=True)

P = ParamSpec("P")
R = TypeVar("R")
Row: TypeAlias = dict[str, Any]
"""One line of a batch's results.jsonl."""


def print_json(value: Any) -> None:
    """One line of JSON on standard output, for scripts."""
    sys.stdout.write(json.dumps(value) + "\n")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors into one line on stderr and the right exit code; GEMS_DEBUG=1 shows the traceback instead."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from gems.errors import BackendError, InputError
        from gems.secrets import conceal

        _quiet_libraries()
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output has gone: the command line library ends quietly
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except (InputError, BackendError, OSError, sqlite3.Error) as error:
            if os.environ.get("GEMS_DEBUG"):
                raise
            err.print(f"[red]error:[/] {escape(conceal(str(error)))}", highlight=False, soft_wrap=True)
            raise typer.Exit(BAD_INPUT if isinstance(error, InputError) else BACKEND_FAILURE) from None

    return run


def _quiet_libraries() -> None:
    """Loading bars and hub look-ups of the model libraries are noise here; the user's own settings win."""
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        # State types are declared: nothing else may come out of a checkpoint file.
        "LANGGRAPH_STRICT_MSGPACK": "true",
    }.items():
        os.environ.setdefault(name, value)


# --- options --------------------------------------------------------------------------------------------------------

MODELS, LIMITS, OUTPUT = "Models", "Limits", "Output"

Mllm = Annotated[
    str,
    typer.Option(
        help="Vision chat model: pocket, PROVIDER:MODEL such as openai:gpt-5, transformers:FOLDER_OR_REPO, or your own "
        "python:MODULE:FACTORY.",
        rich_help_panel=MODELS,
    ),
]
Generator = Annotated[
    str,
    typer.Option(
        help="Image generator: pocket, pocket-large, diffusers:FOLDER_OR_REPO, openai:MODEL, http:URL, comfyui:URL, or "
        "your own python:MODULE:FACTORY.",
        rich_help_panel=MODELS,
    ),
]
Planner = Annotated[str | None, typer.Option(help="Another chat model for the planner.", rich_help_panel=MODELS)]
Decomposer = Annotated[str | None, typer.Option(help="Another chat model for the decomposer.", rich_help_panel=MODELS)]
Verifier = Annotated[str | None, typer.Option(help="Another vision model for the verifier.", rich_help_panel=MODELS)]
Refiner = Annotated[str | None, typer.Option(help="Another vision model for the refiner.", rich_help_panel=MODELS)]
ChatOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="How chat models are called: base_url, image_size, temperature, ... Repeatable.",
        rich_help_panel=MODELS,
    ),
]
GeneratorOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="How the generator is run: steps, width, guidance_scale, device, offload, base_url, ... Repeatable.",
        rich_help_panel=MODELS,
    ),
]
Embedder = Annotated[str, typer.Option(help="Embedder of the memory.", rich_help_panel=MODELS)]
SkillsDir = Annotated[
    list[Path] | None,
    typer.Option(
        help="A folder of SKILL.md folders; may be given more than once.",
        show_default="./skills",
        rich_help_panel=MODELS,
    ),
]
NoSkills = Annotated[bool, typer.Option("--no-skills", help="Offer the planner no skills.", rich_help_panel=MODELS)]
NoBuiltinSkills = Annotated[
    bool,
    typer.Option("--no-builtin-skills", help="Offer only your own skills and learned ones.", rich_help_panel=MODELS),
]
NoPlan = Annotated[
    bool, typer.Option("--no-plan", help="Draw the prompt as it is first, unplanned.", rich_help_panel=MODELS)
]
MaxRounds = Annotated[int, typer.Option(help="Most rounds of draw, check and refine.", rich_help_panel=LIMITS)]
Candidates = Annotated[int, typer.Option(help="Images per round.", rich_help_panel=LIMITS)]
Patience = Annotated[
    int, typer.Option(help="Stop after this many rounds without a better image.", rich_help_panel=LIMITS)
]
BudgetChatCalls = Annotated[int | None, typer.Option(help="Most chat model calls.", rich_help_panel=LIMITS)]
BudgetTokens = Annotated[int | None, typer.Option(help="Most tokens, in and out.", rich_help_panel=LIMITS)]
BudgetImages = Annotated[int | None, typer.Option(help="Most images.", rich_help_panel=LIMITS)]
BudgetSeconds = Annotated[float | None, typer.Option(help="Most seconds of work.", rich_help_panel=LIMITS)]
BudgetCost = Annotated[float | None, typer.Option(help="Most money, by --price.", rich_help_panel=LIMITS)]
Price = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="What models cost: image=0.04 for one; prompt=1.25 and completion=10 for a million tokens. Repeatable.",
        rich_help_panel=LIMITS,
    ),
]
User = Annotated[str, typer.Option(help="Whose memory to use.", rich_help_panel=MODELS)]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Where to recall and remember: a folder, or postgresql://USER@HOST/DATABASE, where checkpoints lie too.",
        show_default="$GEMS_MEMORY, or $GEMS_HOME/memory",
        rich_help_panel=MODELS,
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Where images are kept: a folder, or any fsspec URL such as s3://BUCKET/FOLDER.",
        show_default="$GEMS_IMAGES, or $GEMS_HOME/images",
        rich_help_panel=OUTPUT,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=OUTPUT)]


def make_context(**settings: Any) -> GemsContext:
    """The settings as a context with the operator's authority: code that an option names may run.

    Raises:
        InputError: A value is out of its bounds; the option is named.
    """
    from pydantic import ValidationError

    from gems.errors import InputError
    from gems.graph.context import GemsContext

    for kind in ("chat_option", "generator_option"):
        settings[f"{kind}s"] = _pairs(kind, settings.pop(kind, None) or ())
    prices = _pairs("price", settings.pop("price", None) or ())
    budget = {name.removeprefix("budget_"): settings.pop(name) for name in list(settings) if name.startswith("budget_")}
    try:
        context = GemsContext.model_validate({**settings, "budget": {**budget, "prices": prices}})
        return context.as_operator()
    except ValidationError as error:
        first = error.errors()[0]
        kind = str(first["loc"][0])
        if kind in ("chat_options", "generator_options"):
            raise InputError(_bad_option(kind, str(first["loc"][-1]), first)) from None
        option = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise InputError(f"{option} {first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def skills_path(folders: Sequence[Path] | None) -> str | None:
    """Folders of skills as the context names them."""
    return os.pathsep.join(str(folder.absolute()) for folder in folders) if folders else None


def memory_given(where: str | None) -> str | None:
    """Where the memory is to be: as given, or as ``GEMS_MEMORY`` has it; a folder by its whole path, for a record."""
    return _whole(where or os.environ.get("GEMS_MEMORY"))


def images_given(where: str | None) -> str | None:
    """Where images are to be kept: as given, or as ``GEMS_IMAGES`` has it."""
    return _whole(where or os.environ.get("GEMS_IMAGES"))


def _whole(where: str | None) -> str | None:
    return where if not where or "://" in where else str(Path(where).expanduser().absolute())


def _pairs(kind: str, given: Sequence[str]) -> dict[str, str]:
    from gems.errors import InputError

    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--{kind.replace('_', '-')} {text}: write NAME=VALUE, such as {_EXAMPLES[kind]}")
        pairs[name.strip().replace("-", "_")] = value
    return pairs


_EXAMPLES = {"chat_option": "temperature=0", "generator_option": "steps=20", "price": "image=0.04"}


def _bad_option(kind: str, name: str, fault: Mapping[str, Any]) -> str:
    """What is wrong with one NAME=VALUE."""
    from gems.graph.context import GemsContext

    option = f"--{kind.removesuffix('s').replace('_', '-')}"
    if fault["type"] == "extra_forbidden":
        options: Any = GemsContext.model_fields[kind].annotation
        return f"{option} {name}: there is no such option; there are {', '.join(options.model_fields)}"
    value = "" if name in ("api_key",) else f"={fault['input']}"
    return f"{option} {name}{value}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


# --- stopping and progress -------------------------------------------------------------------------------------------


@contextmanager
def stoppable() -> Iterator[RunControl]:
    """Ctrl-C once asks the run to stop at the next step; twice stops at once."""
    from langgraph.runtime import RunControl

    control = RunControl()

    def on_interrupt(*_: object) -> None:
        if control.drain_requested:
            err.show_cursor()
            os._exit(INTERRUPTED)  # every step is on disk; worker threads would hold up any other way out
        control.request_drain("interrupted")
        err.print("stopping after this step; Ctrl-C again to stop at once")

    with handling(on_interrupt, signal.SIGINT):
        yield control


@contextmanager
def handling(handler: Callable[..., None], *signs: signal.Signals) -> Iterator[None]:
    """Have signals handled meanwhile; afterwards by what handled them before."""
    before = {sign: signal.signal(sign, handler) for sign in signs}
    try:
        yield
    finally:
        for sign, theirs in before.items():
            signal.signal(sign, theirs)


@contextmanager
def batch_bar(
    total: int, *, what: str = "", quiet: bool, prices: Prices | None = None
) -> Iterator[tuple[Callable[[Tally], None], Callable[[Row], None]]]:
    """A progress bar over prompts. Gives what it is to be called with: how far it had come before, and each new result.

    Args:
        total: How many prompts there are.
        what: What they are run for.
        quiet: No bar.
        prices: For what has been spent, in money; None: spending is not shown.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from gems.bulk.results import Tally

    tally, start, run = Tally(), time.monotonic(), 0
    prefix, step = f"{what}: " if what else "", max(10, total // 20)
    with Progress(
        *([TextColumn(what)] if what else []),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[spent]}"),
        console=err,
        disable=quiet or not err.is_terminal,
        speed_estimate_period=3600,  # seconds; a prompt of a large model can take minutes
    ) as progress:
        task = progress.add_task("", total=total, rate="", spent="")

        def spent() -> str:
            return spending(tally.spent, prices) if prices is not None else ""

        def on_start(before: Tally) -> None:
            nonlocal tally
            tally = Tally(Counter(before.outcomes), before.spent)
            progress.update(task, completed=before.done, spent=spent())
            if before.done and not quiet:
                err.print(f"{prefix}{before.done} of {total} prompts were done before", highlight=False)

        def on_done(row: Row) -> None:
            nonlocal run
            run += 1
            tally.add(row)
            rate = f"{60 * run / (time.monotonic() - start):.1f} a minute"
            solved = f"{tally.outcomes['solved']} of {tally.done} solved"
            progress.update(task, advance=1, description=solved, rate=rate, spent=spent())
            if not quiet and not err.is_terminal and tally.done % step == 0:
                more = f", {rate}, {spent()}" if prices is not None else ""
                err.print(f"{prefix}{tally.done} prompts, {tally.outcomes['solved']} solved{more}", highlight=False)

        yield on_start, on_done


def spending(spent: Usage, prices: Prices) -> str:
    """What was spent, in words: images, tokens if there were any, money if there are prices."""
    parts = [f"{spent.images:,} images"]
    if spent.tokens:
        parts.append(f"{_short(spent.tokens)} tokens")
    if cost := prices.cost(spent):
        parts.append(f"cost {cost:,.2f}")
    return ", ".join(parts)


def _short(n: float) -> str:
    """A large number to three digits: 1234567 is 1.23M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"
