"""Sphinx directives that write the reference from the program itself, at each build.

``{gems-commands}``
    Every command of the command line with its arguments and options.
``{gems-routes}``
    The routes of the service, from its OpenAPI description.
``{gems-model} MODULE.CLASS``
    The fields of a pydantic model, from its JSON schema.

Docstrings of pydantic models are shown by autodoc; the table of their fields comes from the same schema. The functions
that end in ``_markdown`` know nothing of Sphinx.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import typer
from docutils import nodes
from pydantic import BaseModel
from pygments.lexers.special import TextLexer
from rich.text import Text
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import gems

COMMAND_LINE = "gems.cli.main.app"
SERVICE = "gems.serve.web_app.make_app"
SERVICE_SETTINGS = "gems.serve.settings.ServiceSettings"

JsonObject = Mapping[str, Any]


def find_object(path: str) -> Any:
    """The object at ``MODULE.NAME``."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ExtensionError(f"the reference names {path}, which cannot be imported: {error}") from error


# --- Markdown -------------------------------------------------------------------------------------------------------


def table_markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table; columns that are empty in every row are left out."""
    columns = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [[head[i] for i in columns], ["---"] * len(columns), *([row[i] for i in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def code(text: str) -> str:
    """Text in a code span."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def prose(text: str) -> str:
    """Plain text as Markdown: nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#$])", r"\\\1", " ".join(text.split()))


# --- settings -------------------------------------------------------------------------------------------------------


def model_markdown(model: type[BaseModel]) -> str:
    """The fields of a pydantic model as a table: name, type and bounds, default, meaning."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    rows = [
        (
            code(name),
            ", ".join(part for part in (type_of(field, definitions), limits_of(field)) if part),
            default_of(name, field, schema),
            meaning_of(name, field),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return table_markdown(("Name", "Type", "Default", "Meaning"), rows) if rows else ""


def variants(field: JsonObject) -> list[JsonObject]:
    """The alternatives of a field, without null."""
    return [variant for variant in field.get("anyOf", [field]) if variant.get("type") != "null"]


def type_of(field: JsonObject, definitions: JsonObject) -> str:
    """The type of a field, in the words of Python."""
    return " or ".join(_type_of(variant, definitions) for variant in variants(field))


def _type_of(variant: JsonObject, definitions: JsonObject) -> str:
    if "$ref" in variant:
        name = variant["$ref"].rpartition("/")[2]
        target = definitions[name]
        return code(name) if target.get("type") == "object" else _type_of(target, definitions)
    if "enum" in variant:
        return ", ".join(code(str(value)) if value else "empty" for value in variant["enum"])
    if "const" in variant:
        return code(str(variant["const"]))
    if variant.get("format") in ("path", "password"):
        return {"path": "path", "password": "secret text"}[variant["format"]]
    if variant.get("type") == "array":
        return f"list of {type_of(variant['items'], definitions)}" if "items" in variant else "list"
    names = {
        "string": "text",
        "integer": "integer",
        "number": "number",
        "boolean": "`true`, `false`",
        "object": "object",
    }
    return names[variant["type"]] if "type" in variant else "anything"


def default_of(name: str, field: JsonObject, schema: JsonObject) -> str:
    """The default of a field; a model's own defaults stand in its own table."""
    if "default" not in field:
        return "required" if name in schema.get("required", ()) else "its own defaults"
    default = field["default"]
    return "empty" if default in (None, "", []) else code(default if isinstance(default, str) else json.dumps(default))


def limits_of(field: JsonObject) -> str:
    """The bounds of a field, in words."""
    return "; ".join(words for variant in variants(field) for words in _limits_of(variant))


def _limits_of(variant: JsonObject) -> Iterator[str]:
    low, high = variant.get("minimum"), variant.get("maximum")
    above = variant.get("exclusiveMinimum")
    if low is not None and high is not None:
        yield f"{low:,} to {high:,}"
    elif above is not None:
        yield f"above {above:,}" + (f", at most {high:,}" if high is not None else "")
    elif low is not None:
        yield f"at least {low:,}"
    elif high is not None:
        yield f"at most {high:,}"
    if variant.get("minLength") == 1:
        yield "not empty"
    elif "minLength" in variant:
        yield f"at least {variant['minLength']:,} characters"
    if "maxLength" in variant:
        yield f"at most {variant['maxLength']:,} characters"
    if "maxItems" in variant:
        yield f"at most {variant['maxItems']:,}"
    if "pattern" in variant:
        yield f"matches {code(variant['pattern'])}"


def meaning_of(name: str, field: JsonObject) -> str:
    """Title and description of a field, without a title that only repeats the name."""
    description, title = prose(field.get("description", "")), prose(field.get("title", ""))
    if description and title.casefold() == name.replace("_", " "):
        return description
    return f"**{title}.** {description}".rstrip() if title else description


# --- the command line -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its words, as in ``gems memory search``, and how the command line library describes it."""

    words: tuple[str, ...]
    command: Any
    context: Any

    @property
    def name(self) -> str:
        """As a user types it."""
        return " ".join(self.words)

    def subcommands(self) -> Iterator[Command]:
        """The commands of a group, in the order of ``--help``."""
        if not hasattr(self.command, "commands"):
            return
        for name in self.command.list_commands(self.context):
            command = self.command.get_command(self.context, name)
            if not command.hidden:
                context = command.context_class(command, info_name=name, parent=self.context)
                yield Command((*self.words, name), command, context)


def command_line() -> Command:
    """The whole command line."""
    command = typer.main.get_command(find_object(COMMAND_LINE))
    return Command(("gems",), command, command.context_class(command, info_name="gems"))


def commands_markdown(level: int = 2) -> str:
    """All commands: a section for each, with a table for each panel of options."""
    top = command_line()
    return "\n\n".join(part for command in top.subcommands() for part in _command_markdown(command, level))


def _command_markdown(command: Command, level: int) -> Iterator[str]:
    yield f"{'#' * level} {command.name}"
    yield help_markdown(command.command.help or "")
    children = list(command.subcommands())
    if not children:
        usage = " ".join([command.name, *command.command.collect_usage_pieces(command.context)])
        yield f"```text\n{usage}\n```"
        yield from _parameters_markdown(command)
    for child in children:
        yield from _command_markdown(child, level + 1)


def help_markdown(text: str) -> str:
    """The help of a command: rich's ``[bold]`` marks examples of commands."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(_paragraph(paragraph) for paragraph in paragraphs)


def _paragraph(text: str) -> str:
    example = re.fullmatch(r"\[bold\](.*)\[/bold\]", text.strip(), re.DOTALL)
    return f"```sh\n{example[1]}\n```" if example else prose(_plain(text))


def _plain(text: str) -> str:
    return Text.from_markup(text).plain


def _parameters_markdown(command: Command) -> Iterator[str]:
    panels: dict[str, list[tuple[str, ...]]] = {}
    for parameter in command.command.get_params(command.context):
        record = parameter.get_help_record(command.context)
        if record is None or parameter.name == "help":
            continue
        panel = getattr(parameter, "rich_help_panel", None)
        heading = panel or ("Arguments" if parameter.param_type_name == "argument" else "Options")
        panels.setdefault(heading, []).append(parameter_row(record))
    for heading, rows in panels.items():
        yield table_markdown((heading, "Default", "Bounds", "Meaning"), rows)


def parameter_row(record: tuple[str, str]) -> tuple[str, ...]:
    """A row of the table, from what ``--help`` shows: names, default, limits, meaning."""
    names, _, kind = record[0].partition(" ")
    if names.endswith(","):  # a short name and a long one
        long, _, kind = kind.partition(" ")
        names = f"{names} {long}"
    meaning, _, extras = record[1].partition("  [")
    facts = dict(part.partition(": ")[::2] for part in extras.removesuffix("]").split("; ") if part)
    default = facts.pop("default", "").removeprefix("(").removesuffix(")")
    variable = facts.pop("env var", "")
    limits = ", ".join(facts)
    label = code(f"{names} {kind}".strip())
    also = f" Environment: {code(variable)}." if variable else ""
    return label, code(default) if default else "", limits and prose(limits), prose(_plain(meaning)) + also


# --- the service ----------------------------------------------------------------------------------------------------


def routes_markdown() -> str:
    """All routes of the service, with a table for each group; LangServe's share links are left out."""
    with tempfile.TemporaryDirectory() as folder:
        service = find_object(SERVICE)(find_object(SERVICE_SETTINGS)(home=Path(folder)))
        paths = service.openapi()["paths"]
    groups: dict[str, list[tuple[str, ...]]] = {}
    for path, operations in paths.items():
        for method, operation in operations.items():
            if tags := set(operation.get("tags", ())) - {"gems/config"}:
                about = operation.get("description", "").split("\n\n")[0]
                row = (code(f"{method.upper()} {path}"), prose(about), ", ".join(operation["responses"]))
                groups.setdefault(min(tags), []).append(row)
    tables = (f"## {tag}\n\n{table_markdown(('Route', 'Meaning', 'Status'), rows)}" for tag, rows in groups.items())
    return "\n\n".join(tables)


# --- Sphinx ---------------------------------------------------------------------------------------------------------


class CommandsDirective(SphinxDirective):
    """``{gems-commands}``."""

    def run(self) -> list[nodes.Node]:
        """The sections of all commands."""
        return self.parse_text_to_nodes(commands_markdown(), allow_section_headings=True)


class RoutesDirective(SphinxDirective):
    """``{gems-routes}``."""

    def run(self) -> list[nodes.Node]:
        """The sections of all routes."""
        return self.parse_text_to_nodes(routes_markdown(), allow_section_headings=True)


class ModelDirective(SphinxDirective):
    """``{gems-model} MODULE.CLASS``."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """The table of a model's fields."""
        return self.parse_text_to_nodes(model_markdown(find_object(self.arguments[0])))


def is_model(target: object) -> bool:
    """Whether autodoc is at a pydantic model."""
    return isinstance(target, type) and issubclass(target, BaseModel)


def hide_signature(app: Sphinx, what: str, name: str, target: Any, options: Any, *_: Any) -> tuple[str, str] | None:
    """A model's signature repeats the table of its fields."""
    return ("", "") if is_model(target) else None


def add_what_autodoc_lacks(app: Sphinx, what: str, name: str, target: Any, options: Any, lines: list[str]) -> None:
    """The fields of a model; the docstring of a type alias, which stands below it in the module that defines it."""
    if is_model(target):
        lines += ["", ".. gems-fields:: " + name, ""]
    elif what == "data" and name.startswith("gems."):
        variable = name.removeprefix("gems.")
        documented = ModuleAnalyzer.for_module(gems._MODULE_OF[variable]).find_attr_docs()
        lines[:] = documented.get(("", variable), [])


class FieldsDirective(SphinxDirective):
    """``gems-fields MODULE.CLASS``: the same for docstrings, which are reStructuredText, as a list of fields."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """A list with one entry for each field of the model."""
        schema = find_object(self.arguments[0]).model_json_schema()
        entries = [
            nodes.definition_list_item(
                "",
                nodes.term("", "", nodes.literal("", name)),
                nodes.definition("", nodes.paragraph("", self.about(name, field, schema))),
            )
            for name, field in schema.get("properties", {}).items()
        ]
        return [nodes.definition_list("", *entries)] if entries else []

    def about(self, name: str, field: JsonObject, schema: JsonObject) -> str:
        """Meaning, type, default and bounds, without markup."""
        default = default_of(name, field, schema)
        facts = [type_of(field, schema.get("$defs", {})), default if default == "required" else f"default: {default}"]
        words = "; ".join(part for part in (*facts, limits_of(field)) if part).replace("`", "")
        return f"{field.get('description', '')} ({words})".strip()


def skip_configuration(app: Sphinx, what: str, name: str, target: Any, skip: bool, options: Any) -> bool | None:
    """Pydantic's own ``model_config`` is no part of the interface."""
    return True if name == "model_config" else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("gems-commands", CommandsDirective)
    app.add_directive("gems-routes", RoutesDirective)
    app.add_directive("gems-model", ModelDirective)
    app.add_directive("gems-fields", FieldsDirective)
    app.connect("autodoc-process-signature", hide_signature)
    app.connect("autodoc-skip-member", skip_configuration)
    app.connect("autodoc-process-docstring", add_what_autodoc_lacks)
    app.add_lexer("mermaid", TextLexer)  # shown as text: drawing it would need a script from the network
    return {"parallel_read_safe": True, "parallel_write_safe": True}
