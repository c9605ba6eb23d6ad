"""A run from its beginning, or from where it was stopped, to its record: ``gems generate`` without the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langgraph.runtime import RunControl
from pydantic import SecretStr

from gems.database import is_database, without_password
from gems.errors import InputError
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.memory.opening import database_of
from gems.nodes.intake import check_prompt
from gems.paths import home
from gems.runs.checkpoints import open_checkpoints
from gems.runs.record import make_folder, model_records, run_record
from gems.runs.threads import (
    Listener,
    Thread,
    check_models,
    finished_at,
    has_begun,
    has_ended,
    load_thread,
    new_thread_id,
    run_thread,
)
from gems.skills.loader import load_skills

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
    """What a session came to."""

    record: dict[str, Any]
    """The run, as in run.json."""
    had_ended: bool
    """Whether the run had ended before this session, so that nothing was done."""


def begin_run(prompt: str, context: GemsContext, out: Path) -> Session:
    """Check a new run's input, load its models, and save its settings so that it can be resumed.

    Raises:
        InputError: The prompt or a setting cannot be used, or a folder cannot be written to.
        BackendError: Weights are missing, or the database cannot be reached.
    """
    checked_prompt = check_prompt(prompt)
    load_skills(context.skills_dir, builtin=context.builtin_skills)  # a missing folder leaves no run behind
    make_folder(out)
    images, models = ImageStore(context.images_url), model_records(context)
    thread = Thread(new_thread_id(checked_prompt), checked_prompt, context, out, datetime.now(UTC), models)
    thread.save(database_of(context))
    return Session(thread, images, is_new=True)


def resume_run(run: str, *, out: Path | None = None, memory_url: str | None = None) -> Session:
    """Look up a run that was stopped.

    Args:
        run: Its id, or its folder.
        out: Where to leave its evidence. None: where it was begun to.
        memory_url: Its memory, with a password if the database needs one: none is saved with the run. None: the memory
            that it was begun with.

    Raises:
        InputError: There is no such run, it is damaged, or a folder cannot be written to.
        BackendError: The database cannot be reached.
    """
    location = memory_url or os.environ.get("GEMS_MEMORY") or ""
    thread = load_thread(Path(run).name, location if is_database(location) else None)
    has_other_memory = False
    if memory_url is not None:
        earlier_url = thread.context.memory_url.get_secret_value() if thread.context.memory_url else ""
        has_other_memory = without_password(memory_url) != without_password(earlier_url)
        context = thread.context.model_copy(update={"memory_url": SecretStr(memory_url)})
        thread = replace(thread, context=context)
    thread = replace(thread, out=make_folder(out or thread.out))
    return Session(thread, ImageStore(thread.context.images_url), is_new=False, has_other_memory=has_other_memory)


def run_to_end(session: Session, *, listener: Listener | None = None, control: RunControl | None = None) -> Ending:
    """Run a session to its end, or to the end of the current step once ``control`` asks for a stop.

    Args:
        session: The run.
        listener: Gets the graph's events.
        control: Asks for a stop.

    Raises:
        InputError: The run cannot be resumed with this memory or with these models.
        BackendError: The disk or a database failed.
    """
    thread = session.thread
    with open_checkpoints(home() / "checkpoints.sqlite", database_of(thread.context)) as saver:
        graph = build_graph(checkpointer=saver, images=session.images)
        had_ended = not session.is_new and _check_resumed(graph, session)
        values = run_thread(graph, thread.id, thread.prompt, thread.context, listener=listener, control=control)
        finished = finished_at(graph, thread.id)
    record = run_record(values, thread.context, thread.models, thread.id, thread.started, finished)
    return Ending(record, had_ended)


def _check_resumed(graph: GemsGraph, session: Session) -> bool:
    """Make sure that a run can be resumed here. Returns whether it has ended already."""
    thread = session.thread
    if session.has_other_memory and not has_begun(graph, thread.id):
        raise InputError(
            f"run {thread.id} is not in this --memory: leave the option out, or give the memory it was begun with"
        )
    if has_ended(graph, thread.id):
        return True
    check_models(thread)
    return False
