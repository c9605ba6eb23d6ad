"""``gems generate --service URL``: a run of a service, shown as a run of this machine is.

Nothing here imports the graph or a model, so that an image takes what it takes the service to draw it.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer
from rich.markup import escape

from gems.cli.arguments import SETTINGS, fields_of
from gems.cli.console import err, exit_at_once, handling, notify, print_json
from gems.cli.live import LiveRun
from gems.cli.summaries import CheckedRequirement, RunSummary, exit_code, print_summary
from gems.json_text import parse_json

if TYPE_CHECKING:
    import httpx

__all__ = ["run_on_service", "service_settings"]

_OWN_OPTIONS: Final = frozenset({"prompt", "service", "folder", "as_json", "quiet"})
"""Options that say what happens on this machine."""
_FINAL: Final = ("done", "failed", "cancelled")
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MAX_BYTES: Final = 64 * 2**20
"""Bytes of a file that is fetched."""
_SECONDS: Final = 60.0
"""Seconds without a byte of the service, which sends some every 15 seconds."""


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
    _write(out, {})  # before the service draws what could not be kept here
    with _connected(url) as client, _answers_of_a_service(url):
        view = _answer(client.post("/v1/runs", json={"prompt": prompt, "settings": settings}))
        with _cancelled_by_interrupts(client, view["id"]), LiveRun(err) if not quiet else nullcontext() as live:
            if not quiet:
                err.print(f"[dim]{escape(view['id'])} at {escape(str(client.base_url))}[/]", highlight=False)
            view = _follow(client, view, live)
        _check_ended(view)
        paths = _fetch_files(client, view, out)
        if as_json:
            texts = {name: str(path) if path else None for name, path in paths.items()}
            print_json({**_as_record(view), "paths": texts})
        else:
            print_summary(_summary(view), {name: path for name, path in paths.items() if name != "folder"})
        raise typer.Exit(exit_code(view["outcome"]))


@contextmanager
def _connected(url: str) -> Iterator[httpx.Client]:
    """A client of the service. The key goes to this address alone: redirects are not followed."""
    import httpx

    from gems.errors import InputError

    if not re.match(r"https?://[^/@]+(/|$)", url):
        raise InputError("--service takes the address of a gems serve, such as http://127.0.0.1:8000")
    key = os.environ.get("GEMS_API_KEY", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=_SECONDS) as client:
        yield client


@contextmanager
def _answers_of_a_service(url: str) -> Iterator[None]:
    """Tell what went wrong between here and the service."""
    import httpx

    from gems.errors import BackendError, GemsError

    try:
        yield
    except GemsError:
        raise
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise BackendError(
            f"the service {url} does not answer ({reason}); start gems serve, or leave --service out"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(f"{url} does not answer as gems serve does ({type(error).__name__}: {error})") from error


def _answer(response: httpx.Response) -> dict[str, Any]:
    """The run in an answer.

    Raises:
        InputError: The request cannot be used, or the key is wrong.
        BackendError: The service failed, or is full.
    """
    from gems.errors import BackendError, InputError

    status = response.status_code
    content = parse_json(response.content) if response.content else {}
    if status < 300:
        if not _SAFE_NAME.fullmatch(content["id"]):
            raise ValueError("a run's id is no name")
        return dict(content)
    message = str(content["error"]["message"])
    if status in (401, 403):
        raise InputError(f"the service refuses the request: {message}; set GEMS_API_KEY to your key")
    raise (InputError if status < 429 else BackendError)(f"the service refuses the request: {message}")


def _follow(client: httpx.Client, view: dict[str, Any], live: LiveRun | None) -> dict[str, Any]:
    """Show a run's events until it has ended, or waits for a person. Returns the run as it then stands."""
    from httpx_sse import connect_sse

    with connect_sse(client, "GET", f"/v1/runs/{view['id']}/events") as source:
        for message in source.iter_sse():
            event = parse_json(message.data)
            if message.event == "run":
                view = event
                if view["status"] in (*_FINAL, "waiting"):
                    break
            elif live is not None:
                live(event)
    return view if view["status"] in _FINAL else _answer(client.get(f"/v1/runs/{view['id']}"))


@contextmanager
def _cancelled_by_interrupts(client: httpx.Client, run: str) -> Iterator[None]:
    """Let the first Ctrl-C stop the run after its current step, and the second one end this command."""
    import httpx

    presses: list[bool] = []

    def on_interrupt(*_: object) -> None:
        if presses:
            exit_at_once()
        presses.append(True)
        notify("stopping after this step; Ctrl-C again to leave the run to the service")
        with suppress(httpx.HTTPError), httpx.Client(base_url=client.base_url, headers=client.headers) as other:
            other.post(f"/v1/runs/{run}/cancel")

    with handling(on_interrupt, signal.SIGINT):
        yield


def _check_ended(view: Mapping[str, Any]) -> None:
    """Raise what ended a run without a result.

    Raises:
        InputError: It was the input, or the run waits for a person.
        BackendError: A model or the service failed.
    """
    from gems.errors import BackendError, InputError

    if view["status"] not in _FINAL:
        raise InputError(f"run {view['id']} is {view['status']} on the service: open its page to go on with it")
    if view["outcome"] is None:
        raise (InputError if view["error_kind"] == "input" else BackendError)(view["error"] or "the run was cancelled")


def _fetch_files(client: httpx.Client, view: Mapping[str, Any], out: Path) -> dict[str, Path | None]:
    """Write the best image and the report into the run's folder. Returns the paths, None for what there is not."""
    folder = out / view["id"]
    sources = {"best.png": (view["image"] or {}).get("url"), "report.html": view["report"]}
    files = {name: _fetched(client, source) for name, source in sources.items() if source}
    _write(folder, files)
    image, report = (folder / name if name in files else None for name in sources)
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


def _fetched(client: httpx.Client, address: str) -> bytes:
    if not address.startswith("/") or address.startswith("//"):
        raise ValueError("a file is on another host")
    content = b""
    with client.stream("GET", address) as response:
        response.raise_for_status()
        for part in response.iter_bytes():
            content += part
            if len(content) > _MAX_BYTES:
                raise ValueError(f"a file has more than {_MAX_BYTES} bytes")
    return content


def _summary(view: Mapping[str, Any]) -> RunSummary:
    usage, attempts = view["usage"], view["attempts"]
    rows = [
        CheckedRequirement(
            row["question"], row["kind"], row["skill"], row["answer"], row["confidence"] or 0.0, row["reason"]
        )
        for row in (view["requirements"] if attempts else ())
    ]
    return RunSummary(
        view["prompt"],
        view["outcome"],
        view["score"],
        attempts[-1]["round"] if attempts else 0,
        usage["images"],
        usage["chat_calls"],
        usage["seconds"],
        rows,
        view["errors"],
    )


def _as_record(view: Mapping[str, Any]) -> dict[str, Any]:
    """The run under the names of ``run.json``, as far as the service tells."""
    times = {"started_at": view["started_at"], "finished_at": view["ended_at"]}
    return {
        "run_id": view["id"],
        **{name: view[name] for name in ("thread", "prompt", "outcome", "score", "best")},
        "seed": view["attempts"][0]["seed"] if view["attempts"] else None,
        **{name: view[name] for name in ("requirements", "skills", "attempts", "usage", "errors")},
        **{
            name: datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None
            for name, seconds in times.items()
        },
    }
