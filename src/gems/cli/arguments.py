"""The options that several commands share, and the decorators that hand their values to a command in one piece.

A setting of a run is described once, in the tables below. ``with_settings`` turns entries of the tables into options of
a command, and passes the command one ``context``.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, get_args, get_origin

import typer

from gems.default_models import CHAT_MODEL, GENERATOR

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from gems.graph.context import GemsContext

__all__ = [
    "LIMITS",
    "LIMIT_SETTINGS",
    "MEMORY_SETTINGS",
    "MODELS",
    "MODEL_SETTINGS",
    "OUTPUT",
    "SETTINGS",
    "SKILL_SETTINGS",
    "AsJson",
    "Quiet",
    "Setting",
    "fields_of",
    "given_options",
    "images_location",
    "make_context",
    "memory_location",
    "with_options",
    "with_settings",
]

MODELS: Final = "Models"
LIMITS: Final = "Limits"
OUTPUT: Final = "Output"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress to stderr.", rich_help_panel=OUTPUT)]

_Command: TypeAlias = Callable[..., None]


# --- what options mean ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """An option that sets fields of the context."""

    annotation: Any
    """The type, help text and panel, as typer reads them."""
    default: Any = None
    """The same as the field's default; repeated here because importing the context would make ``--help`` slow."""
    fields: Callable[[Any], Mapping[str, Any]] | None = None
    """Turns the option's value into fields by dotted name. None: the field that is named like the option."""


def memory_location(location: str | None) -> str | None:
    """The memory's location: as given, or as in ``GEMS_MEMORY``. A folder becomes absolute, for a run's record."""
    return _absolute(location or os.environ.get("GEMS_MEMORY"))


def images_location(location: str | None) -> str | None:
    """The images' location: as given, or as in ``GEMS_IMAGES``. A folder becomes absolute."""
    return _absolute(location or os.environ.get("GEMS_IMAGES"))


def _absolute(location: str | None) -> str | None:
    if not location or "://" in location:
        return location
    return str(Path(location).expanduser().absolute())


def _skills_path(folders: Sequence[Path] | None) -> str | None:
    return os.pathsep.join(str(folder.absolute()) for folder in folders) if folders else None


def _pairs(
    option: str, texts: Sequence[str] | None, example: str, lists: Sequence[str] = ()
) -> dict[str, str | list[str]]:
    """The values of a repeatable NAME=VALUE option.

    Args:
        option: The option.
        texts: What was given.
        example: An example of NAME=VALUE, for the error.
        lists: Names that can be given several times.
    """
    from gems.errors import InputError

    pairs: dict[str, str | list[str]] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{option} {text}: write NAME=VALUE, such as {example}")
        name = name.strip().replace("-", "_")
        pairs[name] = [*pairs.get(name, ()), value] if name in lists else value
    return pairs


def _by_role(pairs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The values of all roles, and those of single ones: ``verifier.timeout`` is a timeout of the verifier."""
    common: dict[str, Any] = {}
    roles: dict[str, dict[str, Any]] = {}
    for name, value in pairs.items():
        role, dot, option = name.partition(".")
        (roles.setdefault(role, {}) if dot else common)[option if dot else name] = value
    return common, roles


def _chat_options(pairs: Mapping[str, Any]) -> dict[str, Any]:
    common, roles = _by_role(pairs)
    return {"chat_options": common} | ({"role_options": roles} if roles else {})


def _prices(pairs: Mapping[str, Any]) -> dict[str, Any]:
    common, roles = _by_role(pairs)
    return {**common, **({"roles": roles} if roles else {})}


def fields_of(name: str, value: Any) -> Mapping[str, Any]:
    """The fields that an option of ``SETTINGS`` sets, by dotted name."""
    return (SETTINGS[name].fields or _as(name))(value)


def _as(field: str) -> Callable[[Any], Mapping[str, Any]]:
    return lambda value: {field: value}


def _unless(field: str) -> Callable[[bool], Mapping[str, Any]]:
    """The conversion of an option that switches a field off."""
    return lambda is_off: {field: not is_off}


# --- the tables of settings -----------------------------------------------------------------------------------------

MODEL_SETTINGS: Final[dict[str, Setting]] = {
    "mllm": Setting(
        Annotated[
            str,
            typer.Option(
                help="Vision chat model: open, pocket, PROVIDER:MODEL such as openai:gpt-5, "
                "transformers:FOLDER_OR_REPO[@REVISION], or your own python:MODULE:FACTORY.",
                show_default="open, or what GEMS_MLLM names",
                rich_help_panel=MODELS,
            ),
        ],
        CHAT_MODEL,
    ),
    "generator": Setting(
        Annotated[
            str,
            typer.Option(
                help="Image generator: open, pocket, pocket-large, diffusers:FOLDER_OR_REPO[@REVISION], openai:MODEL, "
                "http:URL, comfyui:URL, or your own python:MODULE:FACTORY.",
                show_default="open, or what GEMS_GENERATOR names",
                rich_help_panel=MODELS,
            ),
        ],
        GENERATOR,
    ),
    "generator_option": Setting(
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME=VALUE",
                help="Option for the generator: steps, width, guidance_scale, device, offload, base_url, ... "
                "Repeatable.",
                rich_help_panel=MODELS,
            ),
        ],
        fields=lambda texts: {"generator_options": _pairs("--generator-option", texts, "steps=20", ("lora",))},
    ),
    "chat_option": Setting(
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME=VALUE",
                help="Option for the chat models: base_url, image_size, temperature, reasoning_effort, ...; "
                "of one role: verifier.temperature=0. Repeatable.",
                rich_help_panel=MODELS,
            ),
        ],
        fields=lambda texts: _chat_options(_pairs("--chat-option", texts, "temperature=0")),
    ),
    "planner": Setting(
        Annotated[str | None, typer.Option(help="Another chat model for the planner.", rich_help_panel=MODELS)]
    ),
    "decomposer": Setting(
        Annotated[str | None, typer.Option(help="Another chat model for the decomposer.", rich_help_panel=MODELS)]
    ),
    "verifier": Setting(
        Annotated[str | None, typer.Option(help="Another vision model for the verifier.", rich_help_panel=MODELS)]
    ),
    "refiner": Setting(
        Annotated[str | None, typer.Option(help="Another vision model for the refiner.", rich_help_panel=MODELS)]
    ),
    "embedder": Setting(
        Annotated[str, typer.Option(help="Embedding model of the memory.", rich_help_panel=MODELS)], "minilm"
    ),
}
"""Which models a run uses, and how they are called."""

SKILL_SETTINGS: Final[dict[str, Setting]] = {
    "skills_dir": Setting(
        Annotated[
            list[Path] | None,
            typer.Option(
                help="Folder of skills, each a folder with a SKILL.md. Repeatable.",
                show_default="./skills",
                rich_help_panel=MODELS,
            ),
        ],
        fields=lambda folders: {"skills_dir": _skills_path(folders)},
    ),
    "no_skills": Setting(
        Annotated[bool, typer.Option("--no-skills", help="Offer the planner no skills.", rich_help_panel=MODELS)],
        default=False,
        fields=_unless("skills"),
    ),
    "no_builtin_skills": Setting(
        Annotated[
            bool,
            typer.Option(
                "--no-builtin-skills", help="Offer only your own skills and learned ones.", rich_help_panel=MODELS
            ),
        ],
        default=False,
        fields=_unless("builtin_skills"),
    ),
    "no_plan": Setting(
        Annotated[
            bool, typer.Option("--no-plan", help="Draw the prompt as written first, unplanned.", rich_help_panel=MODELS)
        ],
        default=False,
        fields=_unless("plan"),
    ),
}
"""How the planner works."""

MEMORY_SETTINGS: Final[dict[str, Setting]] = {
    "user": Setting(Annotated[str, typer.Option(help="User whose memory is used.", rich_help_panel=MODELS)], "default"),
    "memory": Setting(
        Annotated[
            str | None,
            typer.Option(
                metavar="LOCATION",
                help="Memory of past runs: a folder, or postgresql://USER@HOST/DATABASE, which then holds the "
                "checkpoints too.",
                show_default="$GEMS_MEMORY, or $GEMS_HOME/memory",
                rich_help_panel=MODELS,
            ),
        ],
        fields=lambda location: {"memory_url": memory_location(location)},
    ),
    "no_memory": Setting(
        Annotated[bool, typer.Option("--no-memory", help="Neither recall nor remember.", rich_help_panel=MODELS)],
        default=False,
        fields=lambda is_off: {"memory": False, "memory_url": None} if is_off else {},
    ),
}
"""What a run recalls, and where it is remembered."""

LIMIT_SETTINGS: Final[dict[str, Setting]] = {
    "max_rounds": Setting(
        Annotated[int, typer.Option(help="Maximum rounds of draw, check and refine.", rich_help_panel=LIMITS)], 5
    ),
    "candidates": Setting(Annotated[int, typer.Option(help="Images per round.", rich_help_panel=LIMITS)], 1),
    "proposals": Setting(
        Annotated[
            int,
            typer.Option(
                help="Prompts per round, which share its images; each has at least one.", rich_help_panel=LIMITS
            ),
        ],
        1,
    ),
    "verify_concurrency": Setting(
        Annotated[int, typer.Option(help="Images verified at the same time.", rich_help_panel=LIMITS)], 1
    ),
    "patience": Setting(
        Annotated[
            int, typer.Option(help="Stop after this many rounds without a better image.", rich_help_panel=LIMITS)
        ],
        4,
    ),
    "budget_chat_calls": Setting(
        Annotated[int | None, typer.Option(help="Maximum chat model calls.", rich_help_panel=LIMITS)],
        fields=_as("budget.chat_calls"),
    ),
    "budget_tokens": Setting(
        Annotated[int | None, typer.Option(help="Maximum tokens, in and out.", rich_help_panel=LIMITS)],
        fields=_as("budget.tokens"),
    ),
    "budget_images": Setting(
        Annotated[int | None, typer.Option(help="Maximum images.", rich_help_panel=LIMITS)],
        fields=_as("budget.images"),
    ),
    "budget_seconds": Setting(
        Annotated[float | None, typer.Option(help="Maximum seconds of work.", rich_help_panel=LIMITS)],
        fields=_as("budget.seconds"),
    ),
    "budget_cost": Setting(
        Annotated[float | None, typer.Option(help="Maximum cost, by --price.", rich_help_panel=LIMITS)],
        fields=_as("budget.cost"),
    ),
    "price": Setting(
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME=VALUE",
                help="Prices of models: image=0.04 per image; prompt=1.25 and completion=10 per million tokens. "
                "Of one role: verifier.prompt=5. Repeatable.",
                rich_help_panel=LIMITS,
            ),
        ],
        fields=lambda texts: {"budget.prices": _prices(_pairs("--price", texts, "image=0.04"))},
    ),
}
"""When a run ends."""

SETTINGS: Final[dict[str, Setting]] = {
    **MODEL_SETTINGS,
    **SKILL_SETTINGS,
    **MEMORY_SETTINGS,
    **LIMIT_SETTINGS,
    "reuse": Setting(
        Annotated[
            bool,
            typer.Option(
                "--reuse",
                help="Return the image of an earlier run that solved the same prompt with the same settings.",
                rich_help_panel=MODELS,
            ),
        ],
        default=False,
    ),
    "seed": Setting(Annotated[int | None, typer.Option(help="Seed of the first image. Default: random.")]),
    "images": Setting(
        Annotated[
            str | None,
            typer.Option(
                metavar="LOCATION",
                help="Where images are kept: a folder, or any fsspec URL such as s3://BUCKET/FOLDER.",
                show_default="$GEMS_IMAGES, or $GEMS_HOME/images",
                rich_help_panel=OUTPUT,
            ),
        ],
        fields=lambda location: {"images_url": images_location(location)},
    ),
}
"""Every setting of a run that has an option."""


# --- the decorators -------------------------------------------------------------------------------------------------


def with_settings(*names: str, **own: Setting) -> Callable[[_Command], _Command]:
    """Give a command options in place of its parameter ``context``, which gets the settings that they make.

    Args:
        names: Entries of ``SETTINGS``, in the order in which the help shows them.
        own: Settings whose option differs in this command, by name; they come last unless ``names`` has them too.
    """
    table = {name: own.get(name) or SETTINGS[name] for name in names} | own
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=setting.default, annotation=setting.annotation)
        for name, setting in table.items()
    ]
    return lambda command: _replace_parameter(command, "context", options, functools.partial(make_context, table=table))


def with_options(group: type, parameter: str) -> Callable[[_Command], _Command]:
    """Give a command the fields of a dataclass as options in place of a parameter, which gets the dataclass."""
    fields = inspect.signature(group, eval_str=True).parameters.values()
    options = [field.replace(kind=inspect.Parameter.KEYWORD_ONLY) for field in fields]
    return lambda command: _replace_parameter(command, parameter, options, lambda values: group(**values))


def _replace_parameter(
    command: _Command, name: str, options: Sequence[inspect.Parameter], build: Callable[[dict[str, Any]], Any]
) -> _Command:
    """Show typer several options in place of one keyword-only parameter, and build the command's argument from them."""
    # Commands import the context for type checkers alone; its name has to mean something while annotations are read.
    signature = inspect.signature(command, eval_str=True, locals={"GemsContext": object})
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += options if parameter.name == name else [parameter]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        values[name] = build({option.name: values.pop(option.name) for option in options})
        command(**values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect looks for it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def given_options(ctx: typer.Context) -> set[str]:
    """Names of the parameters that were given on the command line, rather than left at their defaults."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


# --- from options to a context --------------------------------------------------------------------------------------


def make_context(options: Mapping[str, Any], table: Mapping[str, Setting] = SETTINGS) -> GemsContext:
    """The settings that options make, with the operator's authority: code that an option names may run.

    Args:
        options: Values by name; what is left out has the context's default.
        table: The settings that each option sets.

    Raises:
        InputError: A value is out of its bounds, or options exclude each other; the option is named.
    """
    from pydantic import ValidationError

    from gems.errors import InputError
    from gems.graph.context import GemsContext

    if options.get("memory") is not None and options.get("no_memory"):
        raise InputError("--memory and --no-memory cannot be combined: leave one out")
    fields: dict[str, Any] = {"budget": {}}
    option_of: dict[str, str] = {}
    for name, value in options.items():
        convert = table[name].fields or _as(name)
        for path, content in convert(value).items():
            option_of[path] = f"--{name.replace('_', '-')}"
            group, _, field = path.rpartition(".")
            (fields[group] if group else fields)[field] = content
    try:
        return GemsContext.model_validate(fields).as_operator()
    except ValidationError as error:
        raise InputError(_fault(error.errors()[0], option_of)) from None


def _fault(fault: ErrorDetails, option_of: Mapping[str, str]) -> str:
    """One line about a value that cannot be used: the option, the value, and what is wrong with it."""
    from gems.graph.context import ROLES

    location = [str(part) for part in fault["loc"] if part != "[key]"]
    path = next((p for n in range(len(location), 0, -1) if (p := ".".join(location[:n])) in option_of), "")
    option = option_of.get(path, f"--{'-'.join(location).replace('_', '-')}")
    reason = fault["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if not path or path == ".".join(location):
        return f"{option} {fault['input']}: {reason}"
    role = location[-2] + "." if location[-2] in ROLES else ""
    name = f"{role}{location[-1]}"  # of a NAME=VALUE
    if fault["loc"][-1] == "[key]":
        return f"{option} {name}: {reason}"
    if fault["type"] == "extra_forbidden":
        return f"{option} {name}: unknown option; choose from: {', '.join(_names_in(location[:-1]))}"
    return (
        f"{option} {name}: {reason}"
        if location[-1] in ("api_key", "headers", "extra_body")
        else f"{option} {name}={fault['input']}: {reason}"
    )


def _names_in(path: Sequence[str]) -> list[str]:
    """The fields of a group of settings."""
    from gems.graph.context import GemsContext

    group: Any = GemsContext
    for part in path:
        if get_origin(group) is dict:  # by role
            group = get_args(group)[1]
            continue
        annotation = group.model_fields[part].annotation
        kinds = () if get_origin(annotation) is dict else get_args(annotation)
        group = next((kind for kind in kinds if hasattr(kind, "model_fields")), annotation)
    return [name for name in group.model_fields if name != "roles"]  # which are written before a name
