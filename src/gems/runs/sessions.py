"""Sessions: a run from its beginning, or from its last step, to its record. ``gems generate`` is one on the console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from langgraph.runtime import RunControl

from gems.authority import MODEL
from gems.database import is_database
from gems.errors import InputError
from gems.files import cannot_lock
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.context import GemsContext
from gems.graph.state import GemsState
from gems.leases import FileLeases, leased_in_database
from gems.memory.image_store import ImageStore, open_images
from gems.memory.opening import database_of, memory_location
from gems.paths import home, make_file
from gems.runs.checkpoints import open_checkpoints
from gems.runs.folder import make_folder
from gems.runs.interrupted import run_counted
from gems.runs.operator_settings import adopt, check_complete, named, operator_settings
from gems.runs.record import RunRecord, run_record
from gems.runs.threads import (
    Listener,
    Thread,
    begin_thread,
    can_be_reopened,
    check_models,
    finished_at,
    has_begun,
    has_ended,
    load_thread,
    location_mark,
    memory_mark,
    reopen_failed,
)

__all__ = ["Ending", "Session", "begin_run", "resume_run", "run_to_end"]


@dataclass(frozen=True, slots=True)
class Session:
    """A run that this process works on."""

    thread: Thread
    images: ImageStore
    is_new: bool
    has_other_memory: bool = False
    """Whether it is resumed with another memory than it was begun with."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of a session."""

    record: RunRecord
    had_ended: bool
    """Whether the run had ended before this session, so that nothing was done."""
    can_be_reopened: bool = False
    """Whether a model or server has ended it, so that resuming the run does the step that failed again."""


def begin_run(prompt: str, context: GemsContext, out: Path) -> Session:
    """A new run: its input is checked, its models are loaded, and it can be resumed. See ``begin_thread``."""
    return Session(begin_thread(prompt, context, out), open_images(context.images_url), is_new=True)


def resume_run(run: str, operator: GemsContext, *, out: Path | None = None) -> Session:
    """Look up a run that was stopped.

    Args:
        run: The id or the folder of the run.
        operator: The operator's settings. From here, and not from the run's file, come addresses, keys, folders, stores
            and code; everything else is as the run was begun.
        out: Folder for the run's evidence. None: the folder that ``run`` is in, or else ``gems-out``.

    Raises:
        InputError: There is no such run, it is damaged, it needs a setting that ``operator`` does not give, or a folder
            cannot be written to.
        BackendError: The database cannot be reached.
    """
    location = memory_location(operator) or ""
    thread = load_thread(Path(run).name, location if is_database(location) else None)
    context = adopt(thread.context, operator)
    models = {context.embedder, *context.models}
    if other_models := sorted(t for kind, t in operator.authority.grants if kind == MODEL and t not in models):
        raise InputError(
            f"run {thread.id} was not begun with {other_models[0]}: leave that option out, or start a new run"
        )
    context.check_authority()
    if context.user != operator.user:
        raise InputError(f"run {thread.id} is that of the user {context.user!r}: give --user {context.user}")
    if new := [path for path in operator_settings(context) if "." in path and path not in thread.operator_settings]:
        raise InputError(f"run {thread.id} was not begun with {named(new[0])}: leave that out, or start a new run")
    check_complete(context, thread.operator_settings, f"run {thread.id}")
    thread = replace(thread, context=context)
    has_other_memory = context.memory and thread.memory_mark not in ("", memory_mark(context))
    if out is None and len(Path(run).parts) > 1:
        out = Path(run).parent
    if out is None and thread.out_mark not in ("", location_mark(thread.out.absolute())):
        raise InputError(
            f"run {thread.id} was begun with another --out, which no record keeps: give it again, or give the run's "
            f"folder, --resume OUT/{thread.id}"
        )
    thread = replace(thread, out=make_folder((out or thread.out).absolute()))
    return Session(thread, open_images(context.images_url), is_new=False, has_other_memory=has_other_memory)


def run_to_end(session: Session, *, listener: Listener | None = None, control: RunControl | None = None) -> Ending:
    """Run a session to its end, or to the end of the current step once ``control`` asks for a stop.

    Args:
        session: The run.
        listener: Called with each event of the graph.
        control: Asks for a stop.

    Raises:
        InputError: Another process works on the run, or it cannot be resumed with this memory or with these models.
        BackendError: The disk or a database failed.
    """
    thread, control = session.thread, control or RunControl()
    database = database_of(thread.context)
    with _alone(thread.id, database, control), open_checkpoints(home() / "checkpoints.sqlite", database) as saver:
        graph = build_graph(checkpointer=saver, images=session.images)
        had_ended = not session.is_new and _check_resumed(graph, session)
        values = run_counted(
            graph,
            thread.id,
            thread.prompt,
            thread.context,
            listener=listener,
            control=control,
            survives_kill=True,
        )
        finished = finished_at(graph, thread.id)
    record = run_record(values, thread.context, thread.models, thread.id, thread.started, finished)
    return Ending(record, had_ended, can_be_reopened(values, thread.context))


@contextmanager
def _alone(thread: str, database: str | None, control: RunControl) -> Iterator[None]:
    """Keep other processes from working on a run: they would draw the same images, and pay for them again.

    Raises:
        InputError: Another process works on it, or the file system has no locks.
        BackendError: The database cannot be reached.
    """
    refusal = f"another process works on the run {thread}: wait until it has ended, or end it"
    if database is not None:
        with leased_in_database(database, thread, refusal, control.request_drain):
            yield
        return
    path = home() / "threads" / ".leases"
    try:
        make_file(path)
        file_leases = FileLeases(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); set GEMS_HOME to a writable folder") from error
    with closing(file_leases):
        try:
            is_held = file_leases.acquire(thread)
        except OSError as error:
            raise cannot_lock(path, error, "set GEMS_HOME to a folder") from error
        if not is_held:
            raise InputError(refusal)
        yield


def _check_resumed(graph: GemsGraph, session: Session) -> bool:
    """Make sure that a run can be resumed here. Returns whether it has ended already.

    A run that a model or server has ended is taken back to the step that failed.
    """
    thread = session.thread
    if session.has_other_memory and not has_begun(graph, thread.id):
        raise InputError(
            f"run {thread.id} is not in this --memory: leave the option out, or give the memory it was begun with"
        )
    values = cast(GemsState, graph.get_state({"configurable": {"thread_id": thread.id}}).values)
    is_over = has_ended(graph, thread.id)
    if is_over and not can_be_reopened(values, thread.context):
        return True
    check_models(thread)
    for attempt in values.get("attempts", ()):
        if session.images.find(attempt.image.sha256) is None:  # the step that needs it would end the run
            raise InputError(
                f"run {thread.id} has drawn an image that is not in {session.images.url}: give the --images that it "
                "was begun with, or start a new run"
            )
    if is_over:
        reopen_failed(graph, thread.id)
    return False
