"""``gems serve``: the agent as a service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gems.cli.arguments import (
    LIMITS,
    MODELS,
    AsJson,
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
    Planner,
    Refiner,
    SkillsDir,
    Verifier,
    images_given,
    make_context,
    memory_given,
    skills_path,
)
from gems.cli.console import err, guarded, out, print_json

__all__ = ["new_key", "serve"]

SECURITY = "Who may ask"


@guarded
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(envvar="GEMS_KEYS", help="TOML file of API keys; see gems new-key.", rich_help_panel=SECURITY),
    ] = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Listen beyond this machine without a key.", rich_help_panel=SECURITY)
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Let pages of this origin ask. Repeatable.", show_default="none", rich_help_panel=SECURITY),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Runs at work at once.", rich_help_panel=LIMITS)] = 2,
    queue: Annotated[
        int, typer.Option(min=0, max=100_000, help="Runs that may wait; one more gets 429.", rich_help_panel=LIMITS)
    ] = 256,
    max_images: Annotated[int, typer.Option(min=1, help="Most images of one run.", rich_help_panel=LIMITS)] = 20,
    max_rounds: MaxRounds = 5,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that runs get to finish at a stop.", rich_help_panel=LIMITS)
    ] = 30,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="What the images endpoint takes as model. Repeatable.", show_default="gems"),
    ] = None,
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
    no_builtin_skills: NoBuiltinSkills = False,
    memory: Memory = None,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Neither recall nor remember.", rich_help_panel=MODELS)
    ] = False,
    images: Images = None,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="Of the log.")] = "info",
    log_format: Annotated[
        Literal["json", "text"] | None, typer.Option(help="Of the log, on stderr.", show_default="text on a terminal")
    ] = None,
) -> None:
    """Serve the agent: a page at /, LangServe at /gems, OpenAI's images endpoint at /v1/images/generations.

    [bold]gems serve[/bold]

    [bold]gems new-key ann >> keys.toml; gems serve --host 0.0.0.0 --keys keys.toml[/bold]

    A run that was accepted is on disk: however the service ends, it goes on when it is started again. The first Ctrl-C
    or SIGTERM lets runs finish (--grace), a second one stops each at its next step.
    """
    from gems.errors import InputError

    try:
        from gems.serve.server import run_server, write_logs
        from gems.serve.settings import ServiceSettings
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("gems"):
            raise
        raise InputError(f'{error.name} is not installed: pip install "gems-graph[serve]"') from error
    from pydantic import ValidationError

    from gems.paths import home

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
        builtin_skills=not no_builtin_skills,
        memory=not no_memory,
        memory_url=None if no_memory else memory_given(memory),
        images_url=images_given(images),
        max_rounds=max_rounds,
    )
    try:
        settings = ServiceSettings(
            context=context,
            home=home() / "serve",
            host=host,
            port=port,
            concurrency=concurrency,
            queue=queue,
            max_images=max_images,
            keys=keys,
            open=open_,
            cors_origins=tuple(cors_origin or ()),
            served_names=tuple(served_model_name or ("gems",)),
            grace=grace,
        ).check_address()
    except ValidationError as error:
        raise InputError(f"{error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None
    write_logs(log_level, as_json=(log_format or ("text" if sys.stderr.isatty() else "json")) == "json")
    _share_cores(concurrency)
    err.print(f"loading the models; then http://{host}:{port}/", highlight=False)
    run_server(settings)


def _share_cores(concurrency: int) -> None:
    """Runs at once share the cores: more threads than that only get in each other's way."""
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // concurrency))


@guarded
def new_key(
    name: Annotated[str, typer.Argument(help="Whose key: a user's name, of whom memory, images and runs are.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make an API key. Its entry for the file of keys goes to stdout, the key itself to stderr, once.

    [bold]gems new-key ann >> keys.toml[/bold]

    Limits go below the entry: daily = { images = 100, chat_calls = 500, tokens = 1000000 }
    """
    from gems.serve.keys import new_key as make

    key, entry = make(name)
    if as_json:
        print_json({"key": key, "entry": entry})
        return
    out.print(entry, highlight=False, markup=False, soft_wrap=True)
    err.print(f"the key of {name}, shown this once: {key}", highlight=False, soft_wrap=True)
