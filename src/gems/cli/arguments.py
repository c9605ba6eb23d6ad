"""The options that several commands share, and the settings that they make."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gems.graph.context import GemsContext

__all__ = [
    "LIMITS",
    "MODELS",
    "OUTPUT",
    "AsJson",
    "BudgetChatCalls",
    "BudgetCost",
    "BudgetImages",
    "BudgetSeconds",
    "BudgetTokens",
    "Candidates",
    "ChatOption",
    "Decomposer",
    "Embedder",
    "Generator",
    "GeneratorOption",
    "Images",
    "MaxRounds",
    "Memory",
    "Mllm",
    "NoBuiltinSkills",
    "NoPlan",
    "NoSkills",
    "Patience",
    "Planner",
    "Price",
    "Quiet",
    "Refiner",
    "SkillsDir",
    "User",
    "Verifier",
    "images_given",
    "make_context",
    "memory_given",
    "skills_path",
]


MODELS = "Models"


LIMITS = "Limits"


OUTPUT = "Output"


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
