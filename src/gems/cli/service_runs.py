"""``gems generate --service URL``: a run of a service, shown as a run of this machine is.

Nothing here imports the graph or a model, so that an image takes what it takes the service to draw it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from html import escape as escape_html
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import typer
from rich.markup import escape

from gems.cli.arguments import SETTINGS, fields_of
from gems.cli.console import err, exit_at_once, handling, notify, print_json
from gems.cli.live import LiveRun
from gems.cli.summaries import CheckedRequirement, RunSummary, exit_code, print_summary

if TYPE_CHECKING:
    from gems.cli.service_client import ServiceClient, ServiceRun
    from gems.graph.events import Event
    from gems.graph.state import Outcome

__all__ = ["run_on_service", "service_settings"]

_OWN_OPTIONS: Final = frozenset({"prompt", "service", "folder", "as_json", "quiet"})
"""Options that say what happens on this machine."""
_SHIELD: Final = """<!doctype html>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>GEMS report</title>
<iframe sandbox style="position: fixed; inset: 0; width: 100%; height: 100%; border: 0" srcdoc="{report}"></iframe>
"""
"""Holds a report, so that it runs no script, fetches nothing and leads nowhere, whoever has written it.

A policy alone does not keep a page from sending the browser to another one; a frame without permissions is kept.
"""
_PNG: Final = b"\x89PNG\r\n\x1a\n"


def service_settings(options: set[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a request, from the options that were given.

    Args:
        options: The names of those that were given.
        values: The values of all.

    Raises:
        InputError: An option is the business of the service's operator.
    """
    from gems.errors import InputError
    from gems.graph.context import open_settings

    settings: dict[str, Any] = {}
    for name in sorted(options - _OWN_OPTIONS):
        fields = fields_of(name, values[name]) if name in SETTINGS else {name: values[name]}
        for path, value in fields.items():
            group, _, field = path.rpartition(".")
            if value is None:
                continue  # --no-memory names no location either
            if (group or field) not in open_settings() or field == "prices":
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"--service draws with the service's own models and folders: leave {option} out")
            (settings.setdefault(group, {}) if group else settings)[field] = value
    return settings


def run_on_service(
    url: str, prompt: str, settings: Mapping[str, Any], out: Path, *, as_json: bool, quiet: bool
) -> NoReturn:
    """Run a prompt on a service, show its progress, and leave its best image and its report in a folder.

    Args:
        url: The service's address.
        prompt: The prompt.
        settings: Settings of the run that are open to requests.
        out: The folder in which the run's own folder is made.
        as_json: Print JSON in place of a table.
        quiet: Print no progress.

    Raises:
        InputError: The address, the key, the prompt, a setting or the folder cannot be used.
        BackendError: The service cannot be reached, or failed.
        Exit: Always, with the exit code of the run.
    """
    from gems.cli.service_client import connected

    _write(out, {})  # before the service draws what could not be kept here
    with connected(url) as client:
        with _cancelled_by_interrupts(client) as note_run:
            run = client.begin(prompt, settings)
            note_run(run.id)
            _check_new(out / run.id)
            with LiveRun(err) if not quiet else nullcontext() as live:
                if not quiet:
                    err.print(f"[dim]{escape(run.id)} at {escape(client.url)}[/]", highlight=False)
                run = _follow(client, run, live)
        outcome = _ending(run)
        paths = _fetch_files(client, run, out)
        if as_json:
            texts = {name: str(path) if path else None for name, path in paths.items()}
            print_json({**_as_record(run), "outcome": outcome, "paths": texts})
        else:
            summary = _summary(run, outcome, live.notes if live else ())
            print_summary(summary, {name: path for name, path in paths.items() if name != "folder"})
        raise typer.Exit(exit_code(outcome))


def _check_new(folder: Path) -> None:
    """Refuse a run that has the name of a folder: what lies there is another run's."""
    from gems.errors import BackendError

    if folder.exists() or folder.is_symlink():
        raise BackendError(f"the service names its run as a folder that is there already, {folder}; give another --out")


def _follow(client: ServiceClient, run: ServiceRun, live: LiveRun | None) -> ServiceRun:
    """Show a run's events until it has ended, or waits for a person. Returns the run as it then stands."""
    from gems.cli.service_client import FINAL, ServiceRun

    for event in client.events(run.id):
        if isinstance(event, ServiceRun):
            run = event
            if run.status in (*FINAL, "waiting"):
                break
        elif live is not None:
            if live.lacks_question(news := cast("Event", event)):  # the run was quicker than this listener
                live.learn_questions({row.id: row.question for row in client.run(run.id).requirements})
            live(news)
    return run if run.status in FINAL else client.run(run.id)


@contextmanager
def _cancelled_by_interrupts(client: ServiceClient) -> Iterator[Callable[[str], None]]:
    """Let the first Ctrl-C or SIGTERM stop the run after its current step, and the second one end this command.

    Gives a function to call with the run, once the service has begun it: only then can it be cancelled.
    """
    presses: list[bool] = []
    runs: list[str] = []

    def on_interrupt(*_: object) -> None:
        if presses:
            exit_at_once()
        presses.append(True)
        when = "after this step" if runs else "once the service says which run it has begun"
        notify(f"stopping {when}; Ctrl-C again to leave the run to the service")
        for run in runs:
            client.cancel(run)

    def note_run(run: str) -> None:
        runs.append(run)
        if presses:
            client.cancel(run)

    with handling(on_interrupt, signal.SIGINT, signal.SIGTERM):
        yield note_run


def _ending(run: ServiceRun) -> Outcome:
    """How a run ended.

    Raises:
        InputError: Without a result, because of the input; or the run waits for a person.
        BackendError: Without a result, because a model or the service failed.
    """
    from gems.cli.service_client import FINAL
    from gems.errors import BackendError, InputError

    if run.status not in FINAL:
        raise InputError(f"run {run.id} is {run.status} on the service: open its page to go on with it")
    if run.status == "cancelled":
        return "cancelled"  # also before it began, when there is no outcome
    if run.outcome is None:
        raise (InputError if run.error_kind == "input" else BackendError)(run.error or "the run ended without a result")
    return run.outcome


def _fetch_files(client: ServiceClient, run: ServiceRun, out: Path) -> dict[str, Path | None]:
    """Write the best image and the report into the run's folder. Returns the paths, None for what there is not."""
    folder = out / run.id
    files: dict[str, bytes] = {}
    if run.image is not None:
        files["best.png"] = client.file(run.image.url)
        if not files["best.png"].startswith(_PNG):
            raise ValueError("the image is no PNG")
    if run.report is not None:
        page = client.file(run.report).decode(errors="replace")
        files["report.html"] = _SHIELD.format(report=escape_html(page)).encode()
    _write(folder, files)
    image, report = (folder / name if name in files else None for name in ("best.png", "report.html"))
    return {"folder": folder, "image": image, "record": None, "report": report}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    from gems.errors import InputError
    from gems.files import write_atomically
    from gems.paths import make_folder

    try:
        make_folder(folder)
        with TemporaryFile(dir=folder):
            pass
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from error


def _summary(run: ServiceRun, outcome: Outcome, shown_notes: Collection[str]) -> RunSummary:
    usage, attempts = run.usage, run.attempts
    rows = [
        CheckedRequirement(row.question, row.kind, row.skill, row.answer, row.confidence or 0.0, row.reason)
        for row in (run.requirements if attempts else ())
    ]
    rounds = attempts[-1].round if attempts else 0
    return RunSummary(
        run.prompt,
        outcome,
        run.score,
        rounds,
        usage.images,
        usage.chat_calls,
        usage.seconds,
        rows,
        run.errors,
        run.notes,
        shown_notes,
    )


def _as_record(run: ServiceRun) -> dict[str, Any]:
    """The run under the names of ``run.json``, as far as the service tells."""
    times, view = {"started_at": run.started_at, "finished_at": run.ended_at}, run.model_dump()
    return {
        "run_id": run.id,
        **{name: view[name] for name in ("thread", "prompt", "outcome", "score", "best")},
        "seed": run.attempts[0].seed if run.attempts else None,
        **{name: view[name] for name in ("requirements", "skills", "attempts", "usage", "errors", "notes")},
        **{
            name: datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None
            for name, seconds in times.items()
        },
    }
