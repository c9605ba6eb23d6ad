"""The command line. Commands import everything heavy themselves, so that ``gems --help`` is instant."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from gems import __version__
from gems.cli.arguments import MODEL_SETTINGS, AsJson, with_settings
from gems.cli.batch_commands import app as batch_app
from gems.cli.console import BACKEND_FAILURE, err, guarded, out, prepare_streams, print_json, yes_or_no
from gems.cli.eval_commands import app as eval_app
from gems.cli.export_command import export
from gems.cli.generate import generate, replay
from gems.cli.memory_commands import app as memory_app
from gems.cli.serve_commands import new_key, serve
from gems.cli.skills_commands import app as skills_app

if TYPE_CHECKING:
    from gems.graph.context import GemsContext

__all__ = ["app"]


class _CommandLine(TyperGroup):
    """All commands. The process is prepared when one is run, not when this module is imported."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line."""
        prepare_streams()
        return super().main(*args, **kwargs)


app = typer.Typer(
    name="gems",
    cls=_CommandLine,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""An agent graph around a text-to-image model: it plans, draws, checks and refines until the image is right.

[bold]gems generate "three blue cars to the left of a striped elephant"[/bold]

Exit codes: 0 solved, 1 best effort, 2 bad input, 3 a model or server failed.""",
)
# The order of the help: commands as registered, then groups.
app.command()(generate)
app.command()(replay)
app.command()(serve)
app.command("new-key")(new_key)
app.command()(export)
app.add_typer(batch_app, name="batch")
app.add_typer(eval_app, name="eval")
app.add_typer(memory_app, name="memory")
app.add_typer(skills_app, name="skills")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(f"gems {__version__}", highlight=False)
        raise typer.Exit


@app.command()
@guarded
@with_settings(*MODEL_SETTINGS)
def doctor(*, context: GemsContext, as_json: AsJson = False) -> None:
    """Check that a setup works: versions, folders, weights, what each option does, and one trial of every model."""
    with err.status("trying the models") if err.is_terminal else nullcontext():
        from gems.cli.doctor import diagnose

        checks = diagnose(context)
    if as_json:
        rows = [asdict(check) for check in checks]
        print_json([{key: value for key, value in row.items() if value != ()} for row in rows])
    else:
        table = Table(show_header=False, box=None)
        for check in checks:
            table.add_row(yes_or_no(check.ok), check.name, escape(check.detail))
        out.print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else BACKEND_FAILURE)


@app.command()
@guarded
def graph() -> None:
    """Print the graph as a Mermaid drawing."""
    from gems.graph.builder import build_graph

    drawing = build_graph().get_graph()
    for name in [name for name in drawing.nodes if name.startswith("__error_handler__")]:  # LangGraph's bookkeeping
        drawing.remove_node(drawing.nodes[name])
    sys.stdout.write(drawing.draw_mermaid())
