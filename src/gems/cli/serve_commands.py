"""``gems serve`` and ``gems new-key``: the agent as a service."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.markup import escape

from gems.cli.arguments import LIMITS, MODEL_SETTINGS, AsJson, with_options, with_settings
from gems.cli.console import err, guarded, out, print_json

if TYPE_CHECKING:
    from gems.graph.context import GemsContext
    from gems.serve.settings import ServiceSettings

__all__ = ["new_key", "serve"]

ACCESS: Final = "Access"

BUDGETS: Final = ("budget_chat_calls", "budget_tokens", "budget_seconds", "budget_cost", "price")
"""Limits of each run, which a request can lower; --max-images limits the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ServiceOptions:
    """Options of the service itself, as opposed to those of its runs."""

    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000
    keys: Annotated[
        Path | None,
        typer.Option(envvar="GEMS_KEYS", help="TOML file of API keys; see gems new-key.", rich_help_panel=ACCESS),
    ] = None
    open_: Annotated[
        bool, typer.Option("--open", help="Listen beyond this machine without a key.", rich_help_panel=ACCESS)
    ] = False
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of another site whose pages may send requests, such as https://example.org; * for all. "
            "Repeatable.",
            show_default="none",
            rich_help_panel=ACCESS,
        ),
    ] = None
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="Maximum runs in progress.", rich_help_panel=LIMITS)
    ] = 2
    queue: Annotated[
        int,
        typer.Option(
            min=0,
            max=100_000,
            help="Maximum waiting runs; another one is refused with 429.",
            rich_help_panel=LIMITS,
        ),
    ] = 256
    queue_per_key: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100_000,
            help="Maximum waiting runs of one key.",
            show_default="a quarter of --queue",
            rich_help_panel=LIMITS,
        ),
    ] = None
    max_connections: Annotated[int, typer.Option(min=1, help="Maximum open connections.", rich_help_panel=LIMITS)] = (
        2048
    )
    max_images: Annotated[int, typer.Option(min=1, help="Maximum images per run.", rich_help_panel=LIMITS)] = 20
    keep_days: Annotated[
        float | None,
        typer.Option(
            help="Delete runs that ended more days ago, with their images.",
            show_default="never",
            rich_help_panel=LIMITS,
        ),
    ] = None
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that runs have to finish at a stop.", rich_help_panel=LIMITS)
    ] = 30
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="Model name that the images endpoint accepts. Repeatable.", show_default="gems"),
    ] = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="Level of the log.")] = "info"
    log_format: Annotated[
        Literal["json", "text"] | None,
        typer.Option(help="Format of the log, on stderr.", show_default="text on a terminal"),
    ] = None

    def settings(self, context: GemsContext) -> ServiceSettings:
        """The service's settings.

        Raises:
            InputError: A value cannot be used, or the service would be open to anybody unasked.
        """
        from pydantic import ValidationError

        from gems.errors import InputError
        from gems.paths import home
        from gems.serve.settings import ServiceSettings

        try:
            return ServiceSettings(
                context=context,
                home=home() / "serve",
                host=self.host,
                port=self.port,
                concurrency=self.concurrency,
                queue=self.queue,
                queue_per_key=self.queue_per_key,
                max_connections=self.max_connections,
                max_images=self.max_images,
                keys=self.keys,
                open=self.open_,
                cors_origins=tuple(self.cors_origin or ()),
                served_names=tuple(self.served_model_name or ("gems",)),
                grace=self.grace,
                keep_days=self.keep_days,
            ).check_address()
        except ValidationError as error:
            fault = error.errors()[0]
            raise InputError(f"{fault['loc'][0]}: {fault['msg'].removeprefix('Value error, ')}") from None


@guarded
@with_options(_ServiceOptions, "options")
@with_settings(
    "max_rounds", *BUDGETS, *MODEL_SETTINGS, "skills_dir", "no_builtin_skills", "memory", "no_memory", "images"
)
def serve(*, options: _ServiceOptions, context: GemsContext) -> None:
    """Serve the agent: a page at /, LangServe at /gems, OpenAI's images endpoint at /v1/images/generations.

    [bold]gems serve[/bold]

    [bold]gems new-key ann >> keys.toml; gems serve --host 0.0.0.0 --keys keys.toml[/bold]

    An accepted run is on disk: however the service ends, the run resumes at the next start. The first Ctrl-C or SIGTERM
    lets runs finish (--grace), a second one stops each at its next step.
    """
    from gems.errors import InputError
    from gems.extras import how_to_install

    try:
        from gems.serve.server import run_server, write_logs
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("gems"):
            raise
        raise InputError(f"{error.name} is not installed: {how_to_install('serve')}") from error
    settings = options.settings(context)
    log_format = options.log_format or ("text" if sys.stderr.isatty() else "json")
    write_logs(options.log_level, as_json=log_format == "json")
    _share_cores(options.concurrency)
    err.print("loading the models", highlight=False)
    run_server(settings, on_ready=lambda url: err.print(f"listening at {url}", highlight=False, soft_wrap=True))


def _share_cores(concurrency: int) -> None:
    """Divide the cores among the runs at work: with more threads than that, they only slow each other down."""
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // concurrency))


@guarded
def new_key(
    name: Annotated[str, typer.Argument(help="Name of the user of the key, who owns memory, images and runs.")],
    *,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="The key may read /metrics, which covers all users.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an API key. Its entry for the file of keys goes to stdout, the key itself to stderr, once.

    [bold]gems new-key ann >> keys.toml[/bold]

    Limits go below the entry: daily = { images = 100, chat_calls = 500, tokens = 1000000, cost = 5.0 }
    """
    from gems.serve.keys import new_key as make_key

    key, entry = make_key(name, metrics=metrics)
    if as_json:
        print_json({"key": key, "entry": entry})
        return
    out.print(entry, highlight=False, markup=False, soft_wrap=True)
    err.print(f"the key of {escape(name)}, shown only once: {key}", highlight=False, soft_wrap=True)
